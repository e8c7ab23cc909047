"""Which times a loss looks at, and how often: maps from even random numbers to times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from latentdiff._checks import check_positive
from latentdiff._schedule import NoiseSchedule

CLOSEST_TO_0: Final = 2.0**-54
CLOSEST_TO_1: Final = 1 - 2.0**-53
"""Quantiles of a normal distribution are taken between these, so that they are finite."""


class DrawnTimes(NamedTuple):
    """Times, and what makes up for how often they come.

    Attributes:
        t: float64 `[batch]`.
        importance: Even density over density, float64 `[batch]`; 1 where the density is meant to change the loss.
    """

    t: Tensor
    importance: Tensor


class TimeSampling(ABC):
    """How often which time is drawn.

    Times are those that a network is trained on: whole ones of a table of betas, all in [0, T - 1] of a
    variance-exploding schedule, all in (-1, T - 1] of flow.
    """

    @abstractmethod
    def draw(self, schedule: NoiseSchedule, u: Tensor) -> DrawnTimes:
        """Times at the quantiles `u`, so that evenly spread `u` are times of this distribution.

        Args:
            schedule: What times mean.
            u: float64 `[batch]`, in [0, 1).

        Returns:
            Times and their importance, `[batch]`.
        """


@dataclass(frozen=True, kw_only=True)
class UniformTimes(TimeSampling):
    """Evenly in time (Ho et al. 2020, arXiv 2006.11239, alg. 1)."""

    def draw(self, schedule: NoiseSchedule, u: Tensor) -> DrawnTimes:
        """Times at the quantiles `u`, `[batch]`."""
        return _meant(time_at(schedule, 1 - u if schedule.frame == "flow" else u))


@dataclass(frozen=True, kw_only=True)
class LogSnrTimes(TimeSampling):
    """Evenly in log SNR, so that the loss does not depend on the schedule but for its ends.

    What it is for: weights that papers give for log SNR (Kingma and Gao 2023, arXiv 2303.00848, eq. 7).

    Attributes:
        low: Least log SNR, where the schedule goes further.
        high: Greatest log SNR, above `low`.

    Raises:
        ValueError: If the bounds are not finite and in order.
    """

    low: float = -15.0
    high: float = 15.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low and high must be finite and in order, got {self.low} and {self.high}")

    def draw(self, schedule: NoiseSchedule, u: Tensor) -> DrawnTimes:
        """Times at the quantiles `u` from noisy to clean, `[batch]`.

        Raises:
            ValueError: If no time of the schedule has such a log SNR.
        """
        first = -1.0 if schedule.frame == "flow" else 0.0
        ends = torch.tensor([schedule.num_timesteps - 1.0, first], dtype=torch.float64, device="cpu")
        noisy, clean = schedule.log_snr(ends)
        low, high = noisy.clamp(min=self.low), clean.clamp(max=self.high)
        if not torch.compiler.is_compiling() and low > high:
            raise ValueError(
                f"low and high must overlap the schedule's log SNR in [{noisy:g}, {clean:g}], "
                f"got {self.low} and {self.high}"
            )
        return _meant(_trained(schedule, schedule.timestep(low + (high - low) * u)))


@dataclass(frozen=True, kw_only=True)
class LogNormalTimes(TimeSampling):
    """log(sigma / alpha) is normal (Karras et al. 2022, arXiv 2206.00364, table 1), in any frame.

    Levels beyond the schedule's ends are moved there.

    Attributes:
        mean: Mean of log(sigma / alpha), their P_mean.
        std: Its standard deviation, positive, their P_std.

    Raises:
        ValueError: If a number is out of range.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_normal(self.mean, self.std)

    def draw(self, schedule: NoiseSchedule, u: Tensor) -> DrawnTimes:
        """Times at the quantiles `u` from clean to noisy, `[batch]`."""
        log_level = self.mean + self.std * _normal_quantile(u)
        return _meant(_trained(schedule, schedule.timestep(-2 * log_level)))


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes(TimeSampling):
    """The logit of the share of time is normal (Esser et al. 2024, arXiv 2403.03206, eq. 19).

    The share is 0 at the clean and 1 at the noisy end: s = (t + 1) / T of flow, before its shift. So on the straight,
    unshifted path it is `LogNormalTimes` with the same two numbers.

    Attributes:
        mean: Of log(s / (1 - s)); positive is noisier.
        std: Its standard deviation, positive.

    Raises:
        ValueError: If a number is out of range.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_normal(self.mean, self.std)

    def draw(self, schedule: NoiseSchedule, u: Tensor) -> DrawnTimes:
        """Times at the quantiles `u` from clean to noisy, `[batch]`."""
        return _meant(time_at(schedule, torch.sigmoid(self.mean + self.std * _normal_quantile(u))))


@dataclass(frozen=True, kw_only=True)
class ImportanceTimes(TimeSampling):
    """Some times more often than others, which weighs them less: the loss of `UniformTimes`, with another variance.

    Attributes:
        probabilities: `[T]`, positive, up to a factor: of each whole time of a table; elsewhere of T even parts of
            time, evenly within each.

    Raises:
        ValueError: If one is not positive: what is never drawn cannot be made up for.
    """

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.probabilities:
            raise ValueError("probabilities must not be empty")
        for probability in self.probabilities:
            check_positive("each of probabilities", probability)

    def draw(self, schedule: NoiseSchedule, u: Tensor) -> DrawnTimes:
        """Times at the quantiles `u` from clean to noisy, and 1 / (T p), `[batch]`.

        Raises:
            ValueError: If there are not as many probabilities as timesteps.
        """
        return draw_by_importance(schedule, torch.tensor(self.probabilities, dtype=torch.float64, device=u.device), u)


def draw_by_importance(schedule: NoiseSchedule, probabilities: Tensor, u: Tensor) -> DrawnTimes:
    """Times by their probability, each weighted by 1 / (T p) (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 18).

    Args:
        schedule: What times mean.
        probabilities: float64 `[T]`, positive, up to a factor.
        u: float64 `[batch]`, in [0, 1).

    Raises:
        ValueError: If there are not as many probabilities as timesteps.
    """
    count = schedule.num_timesteps
    if len(probabilities) != count:
        raise ValueError(f"probabilities must be one for each of {count} timesteps, got {len(probabilities)}")
    p = probabilities / probabilities.sum()
    cumulative = p.cumsum(0)
    part = torch.searchsorted(cumulative, u, right=True).clamp(max=count - 1)
    within = ((u - (cumulative - p)[part]) / p[part]).clamp(0, CLOSEST_TO_1)
    t = time_at(schedule, (part + within) / count)
    return DrawnTimes(t, 1 / (count * p[part_of(schedule, t)]))


def time_at(schedule: NoiseSchedule, share: Tensor) -> Tensor:
    """The time that a network is trained on at `share` `[batch]` of the way from clean to noisy, in [0, 1]."""
    count = schedule.num_timesteps
    match schedule.frame:
        case "flow":
            return count * share - 1
        case "variance_exploding":
            return (count - 1) * share
        case "variance_preserving":
            return (count * share).floor().clamp(max=count - 1)


def part_of(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Which of T even parts of the way from clean to noisy `t` `[batch]` lies in: int64, in 0 ... T - 1."""
    count = schedule.num_timesteps
    match schedule.frame:
        case "flow":
            part = t + 1
        case "variance_exploding":
            part = t * (count / max(count - 1, 1))
        case "variance_preserving":
            part = t
    return part.floor().to(torch.int64).clamp(0, count - 1)


def _trained(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """The nearest time that a network is trained on."""
    match schedule.frame:
        case "flow":
            return t
        case "variance_exploding":
            return t.clamp(min=0)
        case "variance_preserving":
            return t.round().clamp(min=0)


def _meant(t: Tensor) -> DrawnTimes:
    """Times whose density is meant to change the loss."""
    return DrawnTimes(t, torch.ones_like(t))


def _normal_quantile(u: Tensor) -> Tensor:
    quantile: Tensor = torch.special.ndtri(u.clamp(CLOSEST_TO_0, CLOSEST_TO_1))
    return quantile


def _check_normal(mean: float, std: float) -> None:
    if not math.isfinite(mean):
        raise ValueError(f"mean must be finite, got {mean}")
    check_positive("std", std)
