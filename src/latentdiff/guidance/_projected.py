"""Guidance without the part that oversaturates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._checks import like, working_dtype
from latentdiff._denoised import Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance, Scale, along, check_scale, factor, scale_at, with_sample
from latentdiff.guidance._classifier_free import both


@dataclass(frozen=True, eq=False)
class Projected(Guidance):
    r"""Adaptive projected guidance, APG (Sadat et al. 2024, arXiv 2410.02416, sec. 4).

    With \(D_c\) and \(D_u\) the samples estimated with and without condition, and
    \(\Delta = (D_c - D_u)\,\min(1, r / \|D_c - D_u\|)\) split into the part along \(D_c\) and the rest,

    \[ \hat x_0 = D_c + (s - 1)\,(\Delta_\perp + \eta\,\Delta_\parallel), \]

    and the noise follows. Scale 1 is the conditional denoiser, and with eta = 1 and no bound r this is classifier-free
    guidance. Lengths and products are those of each sample over all its values.

    The paper's momentum, \(\Delta \leftarrow \Delta + \beta\,\Delta_{\text{previous step}}\), is left out: it makes the
    answer depend on the walk so far, which a denoiser does not know and a solver of several calls a step would corrupt.

    Attributes:
        denoiser: What is guided.
        scale: s; or a function of the share (t + 1) / T of the time.
        negative: The condition of the unconditional call, as for `ClassifierFree`.
        eta: How much of the part along the conditional sample is kept; 0 in the paper.
        max_norm: r, positive; the paper takes 2.5 ... 15, depending on the model.
        batched: Whether both calls are made as one of twice the batch, where conditions can be joined.

    Raises:
        ValueError: If `scale` or `eta` is not finite, or `max_norm` is not positive.
        TypeError: If `scale` is neither a number nor a function.
    """

    scale: Scale
    negative: object = None
    eta: float = 0.0
    max_norm: float = math.inf
    batched: bool = True

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        if not math.isfinite(self.eta):
            raise ValueError(f"eta must be finite, got {self.eta}")
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {self.max_norm}")

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        scale = scale_at(self.scale, t, self.schedule)
        if not isinstance(scale, Tensor) and scale == 1:
            return self.denoiser(x_t, t, condition)
        conditional, unconditional = both(self.denoiser, x_t, t, condition, self.negative, batched=self.batched)
        dtype = working_dtype(x_t.dtype)
        kept, other = conditional.sample.to(dtype), unconditional.sample.to(dtype)
        update = self._bounded(kept - other)
        update = update + like((self.eta - 1) * along(update, kept), kept) * kept
        sample = kept + factor(scale - 1, kept) * update
        return with_sample(conditional, sample.to(x_t.dtype), t, self.schedule)

    def _bounded(self, update: Tensor) -> Tensor:
        """At most `max_norm` long."""
        if math.isinf(self.max_norm):
            return update
        norm = update.flatten(1).norm(dim=1)
        return update * like(self.max_norm / torch.clamp(norm, min=self.max_norm), update)
