"""Euler and Heun in Karras' frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import Evaluation, Solver, Stepped, straight


@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """The slope at the start (Karras et al. 2022, arXiv 2206.00364, alg. 1 without its second order); equals DDIM."""

    order: ClassVar[int] = 1

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        return Stepped(straight(denoised, to), denoised)


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """The mean of the slopes at start and end (Karras et al. 2022, arXiv 2206.00364, alg. 1).

    It takes Euler's step from alpha = 0 and to sigma = 0.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Two calls of the network."""
        denoised = denoise(x, now)
        predicted = straight(denoised, to)
        if now.alpha == 0 or to.sigma == 0:
            return Stepped(predicted, denoised)
        half = 0.5 * to.alpha * (to.noise_level - now.noise_level)
        change = denoise(predicted, to).noise - denoised.noise
        return Stepped(torch.add(predicted, change, alpha=half), denoised)
