"""What all guidance shares: it holds a denoiser, its scale may change on the way, sample and noise stay together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias, overload

import torch
from torch import Tensor

from latentdiff._checks import by_sample, like, working_dtype
from latentdiff._denoised import Denoise, Denoised
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Times

Scale: TypeAlias = float | Callable[[Tensor], Tensor | float]
"""How much to guide: a number, or a function of the share (t + 1) / T of the time, 0 clean ... 1 noisiest.

The function gets float64 `[batch]` or `[]`, and answers in that shape or with one number.
"""


@dataclass(frozen=True, eq=False)
class Guidance(ABC):
    """A denoiser made of a denoiser.

    Attributes:
        denoiser: What is guided.
    """

    holds_condition: ClassVar[bool] = True
    """Whether it has a condition of its own, for a batch of one size, so that batches can't be joined before it."""

    denoiser: Denoise

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of the denoiser."""
        return self.denoiser.schedule

    @abstractmethod
    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided.

        Args:
            x_t: `[batch, channels, *spatial]`, noisy.
            t: `[batch]`, `[]` or a number, in -1 ... T - 1.
            condition: As for `denoiser`.

        Returns:
            Shaped and typed like `x_t`.
        """


def check_scale(name: str, scale: object) -> None:
    """Require a finite number or a function.

    Raises:
        TypeError: If it is neither a number nor callable.
        ValueError: If it is not finite.
    """
    if callable(scale):
        return
    if not isinstance(scale, int | float):
        raise TypeError(f"{name} must be a number or a function of the share of the time, got {type(scale).__name__}")
    if not math.isfinite(scale):
        raise ValueError(f"{name} must be finite, got {scale}")


def scale_at(scale: Scale, t: Times, schedule: NoiseSchedule) -> float | Tensor:
    """The scale at `t`: a number where `t` is one, so that no call is made in vain; else float64 like `t`."""
    if not callable(scale):
        return scale
    if not isinstance(t, Tensor):
        return float(scale(torch.tensor(share_of(t, schedule), dtype=torch.float64, device="cpu")))
    share = share_of(t, schedule)
    value = torch.as_tensor(scale(share), dtype=torch.float64, device=share.device)
    if value.ndim and value.shape != share.shape:
        raise ValueError(f"scale must answer in the shape of the share {list(share.shape)}, got {list(value.shape)}")
    return value.expand_as(share)


@overload
def share_of(t: Tensor, schedule: NoiseSchedule) -> Tensor: ...
@overload
def share_of(t: Times, schedule: NoiseSchedule) -> Times: ...
def share_of(t: Times, schedule: NoiseSchedule) -> Times:
    """(t + 1) / T, in [0, 1]: a number for a number, float64 for a tensor."""
    return (t.double() + 1 if isinstance(t, Tensor) else t + 1) / schedule.num_timesteps


def scales_at(t: Times, schedule: NoiseSchedule, x: Tensor) -> tuple[Tensor, Tensor] | tuple[float, float]:
    """alpha and sigma: numbers for a number, else float64 like `t` on the device of `x`."""
    if isinstance(t, Tensor):
        return schedule.scales(t.to(x.device))
    point = schedule.point(float(t))
    return point.alpha, point.sigma


def factor(scale: float | Tensor, x: Tensor) -> Tensor | float:
    """A scale of `[]` or `[batch]`, wherever its time lay, as it multiplies `x`."""
    return like(scale.to(x.device), x) if isinstance(scale, Tensor) else scale


def extrapolate(start: Denoised, end: Denoised, scale: float | Tensor) -> Denoised:
    """start + scale * (end - start), of sample and noise; the variance is that of `end`."""
    weight = factor(scale, end.sample)
    sample, noise = (torch.lerp(a, b, weight) for a, b in ((start.sample, end.sample), (start.noise, end.noise)))
    return Denoised(sample, noise, end.log_variance)


def with_sample(denoised: Denoised, sample: Tensor, t: Times, schedule: NoiseSchedule) -> Denoised:
    r"""The same x_t, split into another sample and the noise that goes with it.

    From \(\alpha\hat x_0 + \sigma\hat\epsilon = x_t\) for both: the noise grows by \(\alpha/\sigma\) times what the
    sample loses. Said as a difference, an unchanged sample leaves the noise unchanged to the bit, and alpha = 0 needs
    no case. Where sigma is 0 the sample is x_t itself, and both stay.
    """
    alpha, sigma = scales_at(t, schedule, sample)
    if not isinstance(sigma, Tensor):
        if sigma == 0:
            return denoised
        ratio: Tensor | float = alpha / sigma
    else:
        is_clean = sigma == 0
        ratio = torch.where(is_clean, 0.0, alpha / torch.where(is_clean, 1.0, sigma))
        is_clean = by_sample(is_clean, sample) if is_clean.ndim else is_clean
        sample = torch.where(is_clean, denoised.sample, sample)
    lost = (denoised.sample - sample).to(working_dtype(sample.dtype))
    noise = denoised.noise + like(ratio, lost) * lost
    return replace(denoised, sample=sample, noise=noise.to(denoised.noise.dtype))


def along(x: Tensor, direction: Tensor) -> Tensor:
    """The share of `direction` in `x`, <x, direction> / <direction, direction>, `[batch]`; 0 where it has no length."""
    dtype = working_dtype(x.dtype)
    x, direction = x.flatten(1).to(dtype), direction.flatten(1).to(dtype)
    square = direction.square().sum(1)
    return (x * direction).sum(1) / torch.where(square == 0, 1.0, square)
