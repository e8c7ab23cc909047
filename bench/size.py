"""Cost against size: memory of attention by the number of tokens, time of a UNet by the area of its latent."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.goals import Case, Goal, Standing, judge
from bench.memory import peak_bytes
from bench.nets import inference, randomise
from bench.settings import Settings
from bench.timing import Ratio, cuda_seconds, host_seconds, in_turns, ratio
from latentdiff import CrossAttention, UNet

TOKENS = (1024, 4096, 16384)
SIDES = (32, 64, 128)
MEMORY = (Goal("memory a token, most over least", cpu=1.05, cuda=1.05, at_most=True),)
TIME = (
    Goal("time an area, largest over smallest size", cpu=1.15, cuda=1.15, at_most=True),
    Goal(
        "time an area, most over least from the second size on",
        cpu=1.15,
        cuda=1.15,
        at_most=True,
        reason="time grows more slowly than the area still: small levels have calls that cost the same at any size",
    ),
)
"""The smallest size is there for what does not grow: where convolutions dominate, time is to be as the area."""


def run(settings: Settings) -> list[Case]:
    """Attention alone, and a UNet that has attention in its middle only."""
    tokens, sides = ((64, 128), (8, 16)) if settings.quick else (TOKENS, SIDES)
    return [_memory(tokens, settings), _time(sides, settings)]


def _memory(counts: tuple[int, ...], settings: Settings) -> Case:
    attention = CrossAttention(query_dim=64, num_heads=4, head_dim=16).to(settings.device, settings.dtype).eval()
    standings: list[Standing] = []
    shares: list[float] = []
    for count in counts:
        x = torch.randn(1, count, 64, device=settings.device).to(settings.dtype)
        peak = peak_bytes(inference(partial(attention, x)))
        shares.append(peak / count)
        standings.append(Standing(f"{count:,} tokens", mib=peak / 2**20))
    spread = max(shares) / min(shares)
    figures = {MEMORY[0].figure: Ratio(spread, spread, spread)}
    return Case("attention, memory", tuple(standings), figures, judge(MEMORY, figures, settings))


def _time(sides: tuple[int, ...], settings: Settings) -> Case:
    base = 32 if settings.quick else 64
    unet = UNet(in_channels=4, base_channels=base, channel_multipliers=(1, 2, 4))
    randomise(unet)
    unet = unet.to(settings.device, settings.dtype).eval()
    calls = {f"{side} x {side}": _forward(unet, side, settings) for side in sides}
    clock = cuda_seconds if settings.is_cuda else host_seconds
    first = [(call(), clock(call))[1] for call in calls.values()]
    rounds = min(settings.rounds, max(3, int(settings.seconds / sum(first))))
    times = in_turns(calls, rounds, clock)
    areas = {name: side**2 for name, side in zip(calls, sides, strict=True)}
    base_name = next(iter(calls))
    by_area = [[t / areas[name] for t in found] for name, found in times.items()]
    spread = [max(shares) / min(shares) for shares in zip(*by_area[1:], strict=True)]
    standings = [
        Standing(
            name,
            statistics.median(found),
            None if name == base_name else ratio(found, times[base_name]),
            note="" if name == base_name else f"area x {areas[name] // areas[base_name]}",
        )
        for name, found in times.items()
    ]
    figures = {TIME[0].figure: ratio(by_area[-1], by_area[0]), TIME[1].figure: ratio(spread, [1.0] * rounds)}
    return Case("UNet, time", tuple(standings), figures, judge(TIME, figures, settings))


def _forward(unet: UNet, side: int, settings: Settings) -> Callable[[], Tensor]:
    x = torch.randn(1, 4, side, side, device=settings.device).to(settings.dtype)
    t = torch.tensor([500.0], device=settings.device)
    return inference(lambda: unet(x, t))
