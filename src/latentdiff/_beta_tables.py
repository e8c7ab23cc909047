"""The beta tables of the literature, float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PUBLISHED_STEPS = 1000
"""The number of steps that published values of beta refer to."""


def linear_betas(start: float, end: float) -> Tensor:
    """Beta linear, `[1000]` (Ho et al. 2020, arXiv 2006.11239)."""
    _check_ends(start, end)
    return torch.linspace(start, end, PUBLISHED_STEPS, dtype=torch.float64, device="cpu")


def scaled_linear_betas(start: float, end: float) -> Tensor:
    """Square root of beta linear, `[1000]` (Rombach et al. 2022, arXiv 2112.10752)."""
    _check_ends(start, end)
    return linear_betas(start**0.5, end**0.5).square()


def sqrt_betas(start: float, end: float) -> Tensor:
    """Square of beta linear, `[1000]`."""
    return linear_betas(start, end).sqrt()


def cosine_betas(num_timesteps: int, offset: float, max_beta: float) -> Tensor:
    """Alpha-bar a squared cosine, `[T]` (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    if not 0 <= offset < math.inf:
        raise ValueError(f"offset must be at least 0 and finite, got {offset}")
    u = torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
    alphas_cumprod = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()
    return _bounded(alphas_cumprod, max_beta)


def sigmoid_betas(num_timesteps: int, start: float, end: float, tau: float, max_beta: float) -> Tensor:
    """Alpha-bar a logistic curve, `[T]` (Jabri et al. 2022, arXiv 2212.11972, alg. 1)."""
    if not 0 < tau < math.inf:
        raise ValueError(f"tau must be positive, got {tau}")
    if not -math.inf < start < end < math.inf:
        raise ValueError(f"start must be below end, both finite, got start={start} and end={end}")
    u = torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
    curve = torch.sigmoid(-(start + u * (end - start)) / tau)
    return _bounded((curve - curve[-1]) / (curve[0] - curve[-1]), max_beta)


def resample_betas(betas: Tensor, num_timesteps: int) -> Tensor:
    """The same curve of log alpha-bar over another number of steps, `[num_timesteps]`.

    Log alpha-bar, 0 before the first step, is interpolated linearly in the fraction of the way; both ends stay, so that
    the terminal signal-to-noise ratio does not depend on the number of steps. For many steps beta scales with 1 / T.
    """
    if num_timesteps == len(betas):
        return betas
    curve = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), torch.log1p(-betas).cumsum(0)])
    position = torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") * (len(betas) / num_timesteps)
    low = position.floor().long().clamp(max=len(betas) - 1)
    resampled = torch.lerp(curve[low], curve[low + 1], position - low)
    return -torch.expm1(resampled.diff())


def _check_ends(start: float, end: float) -> None:
    for name, value in (("beta_start", start), ("beta_end", end)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")


def _bounded(alphas_cumprod: Tensor, max_beta: float) -> Tensor:
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must be in (0, 1], got {max_beta}")
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)
