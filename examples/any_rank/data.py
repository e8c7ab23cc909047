"""Rendered data: heartbeats as signals, hollow bodies as volumes. Each sample has parameters of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATE = 128
"""Samples of a signal in a second."""

WAVES = ((-0.20, 0.12, 0.025), (-0.035, -0.14, 0.010), (0.0, 1.0, 0.012), (0.035, -0.25, 0.010), (0.30, 0.30, 0.050))
"""P, Q, R, S and T of a heartbeat: place in seconds around R, height, width in seconds."""


def heartbeats(count: int, length: int, seed: int) -> Tensor:
    """Electrocardiograms of 55 to 110 beats a minute, `[count, 1, length]` in [-1, 1], `RATE` samples a second.

    Each beat is a sum of five bells (McSharry et al. 2003, IEEE TBME 50(3), whose system of equations draws them);
    heart rate, heights, widths, the drift of the baseline and the noise differ from sample to sample, and the time from
    one beat to the next by some percent within one.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *more, generator=generator)

    times = torch.arange(length) / RATE
    period = 60 / uniform(55, 110, 1)
    beats = math.ceil(length / RATE * 110 / 60) + 3
    gaps = period * (1 + 0.03 * torch.randn(count, beats, generator=generator))
    peaks = gaps.cumsum(1) - period * (1 + uniform(0, 1, 1))  # `[count, beats]`
    signal = torch.zeros(count, length)
    stretch = period.sqrt()  # the T wave comes later in a slower heart
    for place, height, width in WAVES:
        heights, widths = height * uniform(0.7, 1.3, 1), width * uniform(0.8, 1.25, 1)
        distance = times - peaks[:, :, None] - (place * stretch)[:, :, None]
        signal += (heights[:, :, None] * torch.exp(-0.5 * (distance / widths[:, :, None]) ** 2)).sum(1)
    drift = uniform(0.02, 0.08, 1) * torch.sin(2 * math.pi * (uniform(0.1, 0.4, 1) * times + uniform(0, 1, 1)))
    noise = 0.01 * torch.randn(count, length, generator=generator)
    return (1.2 * (signal + drift + noise) - 0.4).clamp(-1, 1).unsqueeze(1)


def bodies(count: int, side: int, seed: int) -> Tensor:
    """Volumes `[count, 1, side, side, side]` in [-1, 1]: one to three turned ellipsoids, brightest at the wall."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, side)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    volumes = torch.zeros(count, side, side, side)
    numbers = torch.randint(1, 4, (count,), generator=generator)
    for body in range(3):
        there = (numbers > body).float().reshape(-1, 1, 1, 1)
        centre = 1.2 * torch.rand(count, 3, generator=generator) - 0.6
        radii = 0.25 + 0.25 * torch.rand(count, 3, generator=generator)
        turn = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator)).Q
        local = torch.einsum("nxyzi,nij->nxyzj", points[None] - centre[:, None, None, None], turn)
        distance = (local / radii[:, None, None, None]).square().sum(-1).sqrt()
        inside = torch.sigmoid((1 - distance) * 14)
        wall = torch.exp(-0.5 * ((distance - 0.85) / 0.16) ** 2)
        volumes = torch.maximum(volumes, there * (0.35 * inside + 0.65 * wall))
    noise = 0.02 * torch.randn(volumes.shape, generator=generator)
    return (2 * (0.95 * volumes + 0.02 + noise) - 1).clamp(-1, 1).unsqueeze(1)
