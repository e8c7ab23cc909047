"""DDPM and DDIM: steps of the reversed diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from latentdiff._checks import check_choice
from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import Evaluation, Solver, Stepped, ancestral, renoised, straight, weighted_sum


@dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    r"""Draw from the posterior with the sample estimated (Ho et al. 2020, arXiv 2006.11239, alg. 2).

    Attributes:
        variance: None is what the denoiser knows of its reverse step (`Denoised.log_variance`), else `"fixed_small"`.
            `"fixed_small"` is the posterior's \((1 - r)\,\sigma_s^2\), right for data in a point; `"fixed_large"` the
            forward step's \(\sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2 = (1 - r)\,\sigma_t^2\), right for normal data of
            unit size. The last step, to sigma = 0, adds none.

    A log variance that a denoiser knows is one of the step from t to t - 1. As a share of the range between the two
    fixed ones it also serves longer steps (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15 and 19).
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int | None] = 1

    variance: Literal["fixed_small", "fixed_large"] | None = None

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, (None, "fixed_small", "fixed_large"))

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Mean of the posterior, and noise."""
        denoised = denoise(x, now)
        kept, replaced = _posterior_weights(now, to)
        mean = weighted_sum((kept, x), (replaced * to.alpha, denoised.sample))
        if to.sigma == 0 or replaced == 0:
            return Stepped(mean, denoised)
        [noise] = denoise.brownian(x, now, to)
        if denoised.log_variance is not None and self.variance is None:
            std = _known_std(denoised.log_variance, denoise, now, to).to(x.dtype)
            return Stepped(mean.addcmul_(std.reshape(*std.shape, *(1,) * (x.ndim - std.ndim)), noise), denoised)
        scale = now.sigma if self.variance == "fixed_large" else to.sigma
        return Stepped(mean.add_(noise, alpha=replaced**0.5 * scale), denoised)


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    r"""Keep sample and noise, change their scales; exchange part of the noise.

    Song et al. 2021, arXiv 2010.02502, eq. 12.

    Attributes:
        eta: 0 is deterministic; 1 has DDPM's (fixed small) variance.
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int | None] = 1

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether `eta` is above 0."""
        return self.eta > 0

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """To alpha * sample + sigma * noise, with a share of the noise drawn anew."""
        denoised = denoise(x, now)
        down, fresh = ancestral(now, to, self.eta)
        return Stepped(renoised(straight(denoised, down), fresh, denoise, now, to), denoised)


def _posterior_weights(now: Point, to: Point) -> tuple[float, float]:
    """Weight of x_t in the posterior's mean, and the share 1 - r of the noise's variance that a step removes."""
    transition = now.alpha / to.alpha
    kept = transition * (to.sigma / now.sigma) ** 2
    return kept, 1 - kept * transition


def _known_std(log_variance: Tensor, denoise: Evaluation, now: Point, to: Point) -> Tensor:
    """Standard deviation of a step of any length, from the log variance of the step to t - 1: `[batch, ...]`."""
    if to.t == now.t - 1:
        return (0.5 * log_variance).exp()
    schedule = denoise.denoiser.schedule
    low, high = schedule.reverse_log_variances(now.t)
    share = (log_variance - low) / (high - low) if high > low else torch.zeros_like(log_variance)
    low, high = schedule.reverse_log_variances(now.t, to.t)
    return (0.5 * (low + share * (high - low))).exp()
