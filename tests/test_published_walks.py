"""Walks of latent diffusion's own samplers, step by step: their times, their tables, their loops.

Their DDIM and PLMS take the times 1, 1 + c, 1 + 2 c, ... with c = T // S for S steps, which may be more than S, and go
to time 0 at the end, not to the clean end. Ours are given these times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import latentdiff as ld
from networks import normal, randomised

Network = Callable[[Tensor, float], Tensor]
"""Noise in `x` at a time of the table."""


class Tables:
    """What the published code keeps of a schedule, by index."""

    def __init__(self, schedule: ld.NoiseSchedule) -> None:
        self.betas, self.kept = schedule.betas, schedule.alphas_cumprod
        self.before = torch.cat([self.kept.new_ones(1), self.kept[:-1]])


def published_times(total: int, steps: int) -> list[int]:
    """From the noisiest down; the last is where the last step goes."""
    return [*reversed(range(1, total + 1, total // steps)), 0]


def moved(x: Tensor, noise: Tensor, kept: Tensor, to: Tensor, eta: float, fresh: Tensor) -> Tensor:
    """A step of DDIM between two products of alphas (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16)."""
    spread = eta * ((1 - to) / (1 - kept) * (1 - kept / to)).sqrt()
    clean = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
    return to.sqrt() * clean + (1 - to - spread**2).sqrt() * noise + spread * fresh


def ddim(network: Network, tables: Tables, x: Tensor, times: list[int], eta: float, fresh: Tensor) -> Iterator[Tensor]:
    for step, (t, to) in enumerate(pairwise(times)):
        x = moved(x, network(x, t), tables.kept[t], tables.kept[to], eta, fresh[step])
        yield x


def plms(network: Network, tables: Tables, x: Tensor, times: list[int]) -> Iterator[Tensor]:
    """The weights of even times in every step, the last one too, which is shorter (Liu et al. 2022, eq. 12)."""
    weights = [(), (3, -1), (23, -16, 5), (55, -59, 37, -9)]
    past: list[Tensor] = []
    for t, to in pairwise(times):
        kept, next_kept, none = tables.kept[t], tables.kept[to], torch.zeros_like(x)
        past = [network(x, t), *past][:4]
        if len(past) == 1:
            noise = (past[0] + network(moved(x, past[0], kept, next_kept, 0.0, none), to)) / 2
        else:
            chosen = weights[len(past) - 1]
            noise = sum((w * e for w, e in zip(chosen, past, strict=True)), start=none) / sum(chosen)
        x = moved(x, noise, kept, next_kept, 0.0, none)
        yield x


def ddpm(network: Network, tables: Tables, x: Tensor, fresh: Tensor) -> Iterator[Tensor]:
    """The mean of the posterior and its own variance (Ho et al. 2020, arXiv:2006.11239, eq. 7), over all times."""
    for step, t in enumerate(reversed(range(len(tables.betas)))):
        beta, kept, before = tables.betas[t], tables.kept[t], tables.before[t]
        clean = (x - (1 - kept).sqrt() * network(x, t)) / kept.sqrt()
        x = (beta * before.sqrt() * clean + (1 - before) * (1 - beta).sqrt() * x) / (1 - kept)
        if t > 0:
            x = x + (beta * (1 - before) / (1 - kept)).sqrt() * fresh[step]
        yield x


SHAPE = (2, 3, 5, 4)
SCHEDULE = ld.NoiseSchedule.scaled_linear(100, 0.0015, 0.0195)


def network() -> ld.UNet:
    unet = ld.UNet(in_channels=3, base_channels=4, channel_multipliers=(1,), blocks_per_level=1)
    return randomised(unet).double().eval()


def walked(sampler: ld.Sampler, unet: ld.UNet, x: Tensor) -> list[Tensor]:
    denoiser = ld.Denoiser(unet, SCHEDULE)
    return [step.x for step in sampler.iterate(denoiser, x, generator=ld.CounterNoise(5))]


def drawn(steps: int) -> Tensor:
    """The noise that a sampler draws in each step."""
    return torch.stack(
        [ld.draw_noise(SHAPE, ld.CounterNoise(5), step=(step + 1) * 256, dtype=torch.float64) for step in range(steps)]
    )


@pytest.mark.parametrize(("steps", "made"), [(10, 10), (7, 8), (20, 20)])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@torch.no_grad()
def test_ddim_walks_as_the_published_code_does(steps: int, made: int, eta: float) -> None:
    unet, x, times = network(), normal(SHAPE), published_times(100, steps)
    assert len(times) == made + 1
    found = walked(ld.Sampler(ld.solvers.DDIM(eta=eta), times=times), unet, x)
    for one, other in zip(found, ddim(unet, Tables(SCHEDULE), x, times, eta, drawn(made)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [2, 10])
@torch.no_grad()
def test_plms_walks_as_the_published_code_does(steps: int) -> None:
    unet, x, times = network(), normal(SHAPE), published_times(100, steps)
    found = walked(ld.Sampler(ld.solvers.PLMS(published=True), times=times), unet, x)
    for one, other in zip(found, plms(unet, Tables(SCHEDULE), x, times), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_ddpm_walks_as_the_published_code_does() -> None:
    unet, x = network(), normal(SHAPE)
    found = walked(ld.Sampler("ddpm", times=range(99, -2, -1)), unet, x)
    for one, other in zip(found, ddpm(unet, Tables(SCHEDULE), x, drawn(100)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
