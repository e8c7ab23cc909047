"""Normal data: the simplest distribution of which everything is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._noise import draw_noise
from latentdiff._typing import Generator, Times
from latentdiff.testing._oracle import Oracle


@dataclass(frozen=True, eq=False, kw_only=True)
class GaussianDenoiser(Oracle):
    r"""Data \(x_0 \sim N(m, s^2)\), each value independent, denoised exactly.

    With \(S_t = \sqrt{\alpha^2 s^2 + \sigma^2}\), the spread of \(x_t\):
    \(E[x_0 \mid x_t] = m + \alpha s^2 (x_t - \alpha m) / S_t^2\), and the probability flow keeps the standardised value
    \((x_t - \alpha_t m) / S_t\).

    Attributes:
        mean: m, a number or `[*event]`, which broadcasts against `[batch, *event]`.
        std: s, likewise, at least 0.
        knows_variance: Whether answers hold the exact variance of the reverse step, that of
            \(p(x_{t-1} \mid x_t)\), as a network with learned variances would. With it ancestral sampling and the
            variational bound are exact for any number of timesteps.
        schedule: What `t` means.

    Raises:
        ValueError: If `std` is negative.
    """

    mean: Tensor | float = 0.0
    std: Tensor | float = 1.0
    knows_variance: bool = False

    def __post_init__(self) -> None:
        if not (self._double(self.std) >= 0).all():
            raise ValueError(f"std must be at least 0, got {self.std}")

    def draw(self, shape: tuple[int, ...], generator: Generator = None) -> Tensor:
        """Data, float64 of `shape` `[batch, *event]`."""
        return self._double(self.mean) + self._double(self.std) * draw_noise(shape, generator, dtype=torch.float64)

    def _estimate(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: object) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = self._double(self.mean, x), self._double(self.std, x).square()
        marginal = alpha.square() * variance + sigma.square()
        gain = alpha * variance / torch.where(marginal == 0, 1.0, marginal)
        sample = mean + gain * (x - alpha * mean)
        score = (alpha * mean - x) / marginal
        log_density = -0.5 * ((x - alpha * mean).square() / marginal + torch.log(2 * math.pi * marginal))
        return sample, score, log_density.flatten(1).sum(1)

    def _transport(self, x: Tensor, now: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        mean, variance = self._double(self.mean, x), self._double(self.std, x).square()
        before, after = ((alpha.square() * variance + sigma.square()).sqrt() for alpha, sigma in (now, to))
        return to[0] * mean + after / before * (x - now[0] * mean)

    def _log_variance(self, x_t: Tensor, t: Times) -> Tensor | None:
        """Var[x_s | x_t] = Var[x_s | x_t, x_0] + (d mean / d x_0)^2 Var[x_0 | x_t], of one step, s = t - 1."""
        if not self.knows_variance:
            return None
        alpha, sigma = self._scales(x_t, t)
        zero, one = torch.zeros_like(x_t.double()), torch.ones_like(x_t.double())
        posterior = self.schedule.posterior(one, zero, t)
        variance = self._double(self.std, x_t).square()
        remaining = variance * sigma.square() / (alpha.square() * variance + sigma.square())
        return (posterior.variance + posterior.mean.square() * remaining).log()

    @staticmethod
    def _double(value: Tensor | float, x: Tensor | None = None) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device="cpu" if x is None else x.device)
