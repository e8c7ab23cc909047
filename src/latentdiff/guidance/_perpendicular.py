"""A negative that cannot cancel what is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from latentdiff._checks import like
from latentdiff._denoised import Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance, Scale, along, check_scale, factor, scale_at
from latentdiff.guidance._classifier_free import both


@dataclass(frozen=True, eq=False)
class PerpendicularNegative(Guidance):
    r"""Perp-Neg: lead away from a negative at right angles to the condition (Armandpour et al. 2023, arXiv 2304.04968).

    With \(\epsilon_p\) and \(\epsilon_n\) what the condition and the negative add to the unconditional estimate,

    \[ \hat\epsilon = \epsilon + s\,(\epsilon_p - w\,\epsilon_{n\perp}), \quad
       \epsilon_{n\perp} = \epsilon_n - \frac{\langle\epsilon_n, \epsilon_p\rangle}{\|\epsilon_p\|^2}\,\epsilon_p, \]

    so that what both have in common is not lost. Differences of estimates are proportional in epsilon, x_0 and v, so
    the result does not depend on the prediction type. Three calls of the network, or two where the negative and the
    unconditional condition can be joined.

    Attributes:
        denoiser: What is guided.
        scale: s; or a function of the share (t + 1) / T of the time.
        negative: The condition to lead away from.
        unconditional: The condition of the unconditional call, such as `encoder.null(batch)`; None is passed as None.
        weight: w, at least 0; with 0 this is `ClassifierFree`.
        batched: Whether calls are joined where their conditions can be.

    Raises:
        ValueError: If `scale` is not finite, or `weight` is negative or not finite.
        TypeError: If `scale` is neither a number nor a function.
    """

    scale: Scale
    negative: object
    unconditional: object = None
    weight: float = 1.0
    batched: bool = True

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        scale = scale_at(self.scale, t, self.schedule)
        positive = self.denoiser(x_t, t, condition)
        negative, base = both(self.denoiser, x_t, t, self.negative, self.unconditional, batched=self.batched)
        # at sigma = 0 samples do not differ, at alpha = 0 noises do not: each is split by its own product
        sample = _away(base.sample, positive.sample, negative.sample, scale, self.weight)
        noise = _away(base.noise, positive.noise, negative.noise, scale, self.weight)
        return replace(positive, sample=sample, noise=noise)


def _away(base: Tensor, positive: Tensor, negative: Tensor, scale: float | Tensor, weight: float) -> Tensor:
    towards, away = positive - base, negative - base
    across = away - like(along(away, towards), towards) * towards
    return base + factor(scale, base) * (towards - weight * across)
