r"""DPM-Solvers of one step: a look at a point between, measured in \(\lambda = \log(\alpha / \sigma)\)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import (
    EVEN_IN_TIME,
    FOLLOWING_NOISE,
    Ancestral,
    Beginning,
    Evaluation,
    Solver,
    Spacing,
    Stepped,
    along_noise,
    along_sample,
    ancestral,
    is_end,
    is_noise,
    renoised,
    straight,
)


@dataclass(frozen=True, kw_only=True)
class DPM2(Solver):
    """The slope in the middle (DPM-Solver-2: Lu et al. 2022, arXiv 2206.00927, alg. 1 with r = 1/2).

    It takes Euler's step from pure noise (sigma / alpha above 1000) and to sigma = 0.
    """

    order: ClassVar[int] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        return _midpoint(denoise, x, now, to, 0.0)


@dataclass(frozen=True, kw_only=True)
class DPM2Ancestral(Ancestral):
    """`DPM2` to less noise than wanted, then fresh noise (k-diffusion's `dpm_2_ancestral`)."""

    order: ClassVar[int] = 2
    weak_order: ClassVar[int | None] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = EVEN_IN_TIME

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        return _midpoint(denoise, x, now, to, self.eta)


def _midpoint(denoise: Evaluation, x: Latents, now: Point, to: Point, eta: float) -> Stepped:
    denoised = denoise(x, now)
    down, fresh = ancestral(now, to, eta)
    if is_end(now, down) or is_noise(now):
        return Stepped(renoised(straight(denoised, down), fresh, denoise, now, to), denoised)
    middle = denoise.between(now, down, 0.5)
    slope = denoise(straight(denoised, middle), middle).noise
    return Stepped(renoised(along_noise(x, slope, now, down), fresh, denoise, now, to), denoised)


@dataclass(frozen=True, kw_only=True)
class DPMpp2S(Solver):
    """DPM-Solver++(2S): the sample in the middle (Lu et al. 2022, arXiv 2211.01095, alg. 1 with r = 1/2).

    First order from alpha = 0 and to sigma = 0.
    """

    order: ClassVar[int] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        return _middle_sample(denoise, x, now, to, 0.0)


@dataclass(frozen=True, kw_only=True)
class DPMpp2SAncestral(Ancestral):
    """`DPMpp2S` to less noise than wanted, then fresh noise (k-diffusion's `dpmpp_2s_ancestral`)."""

    order: ClassVar[int] = 2
    weak_order: ClassVar[int | None] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        return _middle_sample(denoise, x, now, to, self.eta)


def _middle_sample(denoise: Evaluation, x: Latents, now: Point, to: Point, eta: float) -> Stepped:
    denoised = denoise(x, now)
    down, fresh = ancestral(now, to, eta)
    if is_end(now, down):
        return Stepped(renoised(straight(denoised, down), fresh, denoise, now, to), denoised)
    middle = denoise.between(now, down, 0.5)
    sample = denoise(straight(denoised, middle), middle).sample
    return Stepped(renoised(along_sample(x, sample, now, down), fresh, denoise, now, to), denoised)


@dataclass(frozen=True, kw_only=True)
class DPMppSDE(Ancestral):
    """Second order for the reversed diffusion: the sample at a noised point in the middle (k-diffusion's `dpmpp_sde`).

    Lu et al. 2022, arXiv 2211.01095, sec. 5, with r = 1/2. The noise of the middle and that of the end belong to one
    Brownian path; drawn independently they cost an order.
    """

    order: ClassVar[int] = 2
    weak_order: ClassVar[int | None] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        if is_end(now, to):
            return _middle_sample(denoise, x, now, to, self.eta)
        denoised = denoise(x, now)
        middle = denoise.between(now, to, 0.5)
        noises = denoise.brownian(x, now, middle, to) if self.eta else []
        half = self._moved(x, denoised.sample, now, middle, noises[:1])
        return Stepped(self._moved(x, denoise(half, middle).sample, now, to, noises[1:]), denoised)

    def _moved(self, x: Latents, sample: Latents, now: Point, to: Point, noise: list[Latents]) -> Latents:
        down, fresh = ancestral(now, to, self.eta)
        moved = along_sample(x, sample, now, down)
        return moved.add_(noise[0], alpha=fresh) if noise else moved
