"""Guidance: denoisers made of denoisers.

Each class takes a denoiser and is one, so that guidance composes and solvers never see it. Conditions are passed on as
they are: anything that knows how to join two of its kind along the batch (`a.cat(b)`, as `Condition` does), a tensor,
or None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from latentdiff._checks import like
from latentdiff._denoised import Denoise, Denoised
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Times

__all__ = ["ClassifierFree"]


@runtime_checkable
class _Joinable(Protocol):
    def cat(self, other: object, /) -> object: ...


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional) (Ho and Salimans 2022).

    Sample and noise are combined alike, so the result does not depend on the prediction type (arXiv 2207.12598, eq.
    6 with scale = 1 + w).

    Attributes:
        denoiser: What is guided.
        scale: 1 is the conditional denoiser itself, 0 the unconditional one (one call of the network each).
        negative: The condition of the unconditional call, such as `encoder.null(batch)` or what to lead away from;
            None is passed on as None.
        rescale: In [0, 1]: how far the sample's standard deviation (each sample's, over all its values) is drawn
            back to that of the conditional one (Lin et al. 2024, arXiv 2305.08891, eq. 15 and 16).
        interval: Part (low, high] of the way, in shares (t + 1) / T of the time, where guidance acts; elsewhere the
            scale is 1 (Kynkäänniemi et al. 2024, arXiv 2404.07724).
        batched: Whether both calls are made as one of twice the batch.

    Raises:
        ValueError: If `rescale` or `interval` is out of [0, 1].
    """

    denoiser: Denoise
    scale: float
    negative: object = None
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    batched: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval must be (low, high) with 0 <= low <= high <= 1, got {self.interval}")

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of the denoiser."""
        return self.denoiser.schedule

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        scale = self._scale_at(t)
        if not isinstance(scale, Tensor):
            if scale == 1:
                return self.denoiser(x_t, t, condition)
            if scale == 0:
                return self.denoiser(x_t, t, self.negative)
        conditional, unconditional = self._both(x_t, t, condition)
        sample = _extrapolate(unconditional.sample, conditional.sample, scale)
        noise = _extrapolate(unconditional.noise, conditional.noise, scale)
        guided = Denoised(sample, noise, conditional.log_variance)
        return self._rescaled(guided, conditional, x_t, t) if self.rescale else guided

    def _scale_at(self, t: Times) -> float | Tensor:
        low, high = self.interval
        if (low, high) == (0.0, 1.0):
            return self.scale
        last = self.schedule.num_timesteps
        if isinstance(t, Tensor):
            share = (t + 1).double().div(last)
            return torch.full_like(share, self.scale).masked_fill(share.le(low).logical_or(share.gt(high)), 1.0)
        return self.scale if low < (t + 1) / last <= high else 1.0

    def _both(self, x_t: Latents, t: Times, condition: object) -> tuple[Denoised, Denoised]:
        joined = _join(condition, self.negative) if self.batched else None
        if joined is None:
            return self.denoiser(x_t, t, condition), self.denoiser(x_t, t, self.negative)
        twice_t = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        both = self.denoiser(torch.cat([x_t, x_t]), twice_t, joined)
        (sample, null_sample), (noise, null_noise) = both.sample.chunk(2), both.noise.chunk(2)
        log_variance = both.log_variance
        if log_variance is not None and log_variance.ndim:
            log_variance = log_variance.chunk(2)[0]
        return Denoised(sample, noise, log_variance), Denoised(null_sample, null_noise)

    def _rescaled(self, guided: Denoised, conditional: Denoised, x_t: Latents, t: Times) -> Denoised:
        axes = tuple(range(1, x_t.ndim))
        wanted, found = (one.sample.std(axes, keepdim=True) for one in (conditional, guided))
        factor = 1 + self.rescale * (wanted / found - 1)
        sample = guided.sample * factor
        alpha, sigma = self.schedule.scales(torch.as_tensor(t, dtype=torch.float64, device=x_t.device))
        safe = torch.where(sigma == 0, 1.0, sigma)  # where there is no noise its estimate is left alone
        noise = (x_t - like(alpha, x_t) * sample) / like(safe, x_t)
        is_clean = torch.as_tensor(like((sigma == 0).to(x_t.dtype), x_t) == 1)
        noise = torch.where(is_clean, guided.noise, noise)
        return Denoised(sample, noise, guided.log_variance)


def _extrapolate(unconditional: Tensor, conditional: Tensor, scale: float | Tensor) -> Tensor:
    return torch.lerp(unconditional, conditional, like(scale, conditional))


def _join(condition: object, negative: object) -> object:
    """Both conditions as one of twice the batch; None where they have no way to be joined."""
    if isinstance(condition, Tensor) and isinstance(negative, Tensor):
        return torch.cat([condition, negative]) if condition.shape == negative.shape else None
    if isinstance(condition, _Joinable) and type(condition) is type(negative):
        return condition.cat(negative)
    return None
