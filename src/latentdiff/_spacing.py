"""Where on the path a sampler stops: times of n steps, falling, the clean end excluded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

import torch
from torch import Tensor

from latentdiff._schedule import NoiseSchedule
from latentdiff.solvers import Spacing

Ramp: TypeAlias = Callable[[float, float, Tensor], Tensor]
"""Noise levels between the highest and the lowest, for fractions 0 ... 1 of the way."""


def _leading(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Multiples of T / steps from 0: the last time is 0, the first is at most T - 1 (DDIM)."""
    stride = min(schedule.num_timesteps / steps, (schedule.num_timesteps - 1) / max(steps - 1, 1))
    return torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride


def _linspace(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly from T - 1 to 0, both included."""
    return torch.linspace(schedule.num_timesteps - 1, 0, steps, dtype=torch.float64)


def _trailing(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly from T - 1 in strides of T / steps, so that the clean end is one stride away too (Lin et al. 2024)."""
    return schedule.num_timesteps * (1 - torch.arange(steps, dtype=torch.float64) / steps) - 1


def _beta(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Quantiles of Beta(0.6, 0.6): dense at both ends (Lee et al. 2024, arXiv 2407.12173)."""
    quantiles = torch.tensor(_symmetric_beta_quantiles(steps, 0.6), dtype=torch.float64)
    return quantiles * (schedule.num_timesteps - 1)


def _polynomial(power: float) -> Ramp:
    """Evenly in sigma / alpha to the 1 / power."""
    return lambda high, low, ramp: torch.lerp(
        torch.full_like(ramp, high ** (1 / power)), torch.full_like(ramp, low ** (1 / power)), ramp
    ).pow(power)


def _exponential(power: float) -> Ramp:
    """log(sigma / alpha) along a power of the way; with power 1 evenly in log SNR."""
    return lambda high, low, ramp: torch.exp(
        math.log(high) + (math.log(low) - math.log(high)) * (1 - (1 - ramp).pow(power))
    )


def _by_noise_level(ramp: Ramp) -> Callable[[NoiseSchedule, int], Tensor]:
    """Times of noise levels from T - 1 to 0; pure noise has none, there the ramp begins one time later."""

    def spacing(schedule: NoiseSchedule, steps: int) -> Tensor:
        first = schedule.num_timesteps - 1.0
        start = torch.tensor([first], dtype=torch.float64)
        if steps == 1:
            return start
        starts_in_pure_noise = schedule.alpha(first) == 0
        high = schedule.point(first - 1 if starts_in_pure_noise else first).noise_level
        low = schedule.point(0.0).noise_level
        if high <= low:  # T = 2: one noisy time and pure noise
            return _trailing(schedule, steps)
        fractions = torch.linspace(0, 1, steps - starts_in_pure_noise, dtype=torch.float64)
        levels = ramp(high, low, fractions)
        times = schedule.timestep(-2 * levels.log())
        return torch.cat([start, times if starts_in_pure_noise else times[1:]])

    return spacing


SPACINGS: Final[dict[Spacing, Callable[[NoiseSchedule, int], Tensor]]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
    "karras": _by_noise_level(_polynomial(7.0)),  # Karras et al. 2022, arXiv 2206.00364, eq. 5
    "exponential": _by_noise_level(_exponential(1.0)),
    "polyexponential": _by_noise_level(_exponential(1.5)),
    "beta": _beta,
    "logsnr": _by_noise_level(_exponential(1.0)),
}
"""Times of n steps by name: float64 `[steps]`, falling."""


def spaced_times(spacing: Spacing, schedule: NoiseSchedule, steps: int) -> Tensor:
    """Times of n steps, float64 `[steps]`, falling; evenly down from the only time of a schedule of one."""
    return (_trailing if schedule.num_timesteps == 1 else SPACINGS[spacing])(schedule, steps)


@lru_cache(maxsize=256)
def _symmetric_beta_quantiles(count: int, a: float) -> tuple[float, ...]:
    """Quantiles of Beta(a, a) at `count` even probabilities, falling from 1 to 0: by bisection on its power series."""
    probability = torch.linspace(1, 0, count, dtype=torch.float64)
    target = torch.minimum(probability, 1 - probability)
    low, high = torch.zeros_like(target), torch.full_like(target, 0.5)
    half_mass = 2 * _incomplete_beta(high, a)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = _incomplete_beta(middle, a) / half_mass < target
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    quantile = torch.where(target == 0, 0.0, (low + high) / 2)
    return tuple(torch.where(probability <= 0.5, quantile, 1 - quantile).tolist())


def _incomplete_beta(z: Tensor, a: float) -> Tensor:
    """The integral of (x (1 - x)) ** (a - 1) over 0 ... z, for z up to 1/2: its terms fall like 2 ** -k there."""
    k = torch.arange(64, dtype=torch.float64)
    coefficients = torch.cat([torch.ones(1, dtype=torch.float64), ((k + 1 - a) / (k + 1))[:-1]]).cumprod(0)
    total: Tensor = (z.unsqueeze(-1) ** k) @ (coefficients / (a + k))
    return z**a * total
