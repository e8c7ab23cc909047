"""Euler, Heun and their stochastic kin in Karras' frame, x / alpha against sigma / alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import (
    FARTHEST_LEVEL,
    FOLLOWING_NOISE,
    Ancestral,
    Beginning,
    Evaluation,
    Solver,
    Spacing,
    Stepped,
    ancestral,
    is_end,
    is_noise,
    renoised,
    straight,
    weighted_sum,
)


@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """The slope at the start (Karras et al. 2022, arXiv 2206.00364, alg. 1 without its second order); equals DDIM."""

    order: ClassVar[int] = 1

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        return Stepped(straight(denoised, to), denoised)


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(Ancestral):
    """Euler's step to less noise than wanted, then fresh noise (k-diffusion's `euler_ancestral`).

    With eta = 1 it equals DDPM of the fixed small variance, and for all eta up to 1 DDIM.
    """

    order: ClassVar[int] = 1
    weak_order: ClassVar[int | None] = 1

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        down, fresh = ancestral(now, to, self.eta)
        return Stepped(renoised(straight(denoised, down), fresh, denoise, now, to), denoised)


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """The mean of the slopes at start and end (Karras et al. 2022, arXiv 2206.00364, alg. 1).

    It takes Euler's step from pure noise (sigma / alpha above 1000) and to sigma = 0.
    """

    order: ClassVar[int] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        denoised = denoise(x, now)
        predicted = straight(denoised, to)
        if is_end(now, to) or is_noise(now):
            return Stepped(predicted, denoised)
        half = 0.5 * (to.sigma - to.alpha * now.noise_level)
        change = denoise(predicted, to).noise - denoised.noise
        return Stepped(torch.add(predicted, change, alpha=half), denoised)


@dataclass(frozen=True, kw_only=True)
class EDM(Solver):
    r"""Heun's step after a little fresh noise, "churn" (Karras et al. 2022, arXiv 2206.00364, alg. 2).

    In every step whose noise level \(\ell = \sigma / \alpha\) lies in `churn_range`, noise is added first, up to
    \(\hat\ell = \ell\,(1 + \min(\mathrm{churn} / N, \sqrt 2 - 1))\), though not above the schedule's highest level or
    990; the network is asked *there*. It then corrects errors of earlier steps. Second order without churn, on the mean
    and variance with it.

    Attributes:
        churn: S_churn, at least 0; the paper's best for ImageNet-64 is 40 of 256 steps.
        churn_range: (S_tmin, S_tmax), of noise levels.
        churn_noise: S_noise, the standard deviation of what is added; other than 1 it biases the result.
    """

    order: ClassVar[int] = 2
    weak_order: ClassVar[int | None] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    churn: float = 0.0
    churn_range: tuple[float, float] = (0.0, math.inf)
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.churn_range
        if not (self.churn >= 0 and 0 <= low <= high and self.churn_noise > 0):
            raise ValueError(
                "churn must be at least 0, churn_range rise from 0 or above and churn_noise be positive, got "
                f"{self.churn}, {self.churn_range}, {self.churn_noise}"
            )

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.churn > 0

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        noisier = self._noisier(denoise, now)
        if noisier is not now:
            added = (noisier.sigma**2 - (noisier.alpha * now.noise_level) ** 2) ** 0.5
            x = weighted_sum((noisier.alpha / now.alpha, x), (added * self.churn_noise, denoise.noise(x)))
        return Heun().step(denoise, x, noisier, to, None)

    def _noisier(self, denoise: Evaluation, now: Point) -> Point:
        """Where the churn leads, or `now` itself."""
        low, high = self.churn_range
        if not self.churn or is_noise(now) or not low <= now.noise_level <= high:
            return now
        schedule = denoise.denoiser.schedule
        level = min(now.noise_level * (1 + min(self.churn / denoise.steps, 2**0.5 - 1)), 0.99 * FARTHEST_LEVEL)
        t = schedule.timestep(-2 * math.log(level))
        if schedule.alpha(t) == 0 or t <= now.t:  # the schedule's end
            return now
        return schedule.point(t)
