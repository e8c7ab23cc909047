"""The cost of a solver's step beside diffusers' schedulers.

Both sides walk the same times of the same betas with a network that costs nothing; their results are compared before
the clock runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

import diffusers
import torch
from torch import Tensor

from bench.timing import compare
from latentdiff import Denoiser, NoiseSchedule, Sampler

Walk: TypeAlias = Callable[[Tensor], Tensor]
STEPS = 20
SHAPES = ((1, 4, 64, 64), (16, 4, 64, 64))


def network(x: Tensor, t: Tensor | float, condition: object = None) -> Tensor:
    """A network that costs nothing: its input as the noise."""
    return x


def ours(times: list[float]) -> Walk:
    """DPM-Solver++(2M) of this library."""
    sampler = Sampler("dpmpp_2m", times=[*times, -1.0])
    denoiser = Denoiser(network, NoiseSchedule.linear())
    return lambda x: sampler.sample(denoiser, x)


def theirs(scheduler: diffusers.SchedulerMixin) -> Walk:
    """A scheduler of diffusers, its times set for each walk as its users do."""

    def walk(x: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        return x

    return walk


def run(device: str, rounds: int) -> list[dict[str, object]]:
    """Print a table, and return its rows."""
    warnings.simplefilter("ignore", DeprecationWarning)  # the peer's, with numpy 2
    peers = {
        "DPMSolverMultistep": diffusers.DPMSolverMultistepScheduler(lower_order_final=False),
        "UniPCMultistep": diffusers.UniPCMultistepScheduler(),
    }
    rows: list[dict[str, object]] = []
    print(f"{'peer':<20} {'latent':<18} {'peer / ours (quartiles)':>24} {'ours, us a step':>16}")
    for name, scheduler in peers.items():
        peer = theirs(scheduler)
        scheduler.set_timesteps(STEPS)
        own = ours([float(t) for t in scheduler.timesteps])
        for shape in SHAPES:
            x = torch.randn(shape, device=device)
            if name == "DPMSolverMultistep":
                torch.testing.assert_close(own(x), peer(x), rtol=1e-3, atol=1e-3)  # its tables are float32
            ratio = compare(lambda: own(x), lambda: peer(x), rounds)  # noqa: B023
            row = {"ratio": ratio.median, "low": ratio.low, "high": ratio.high, "us": ratio.ours / STEPS * 1e6}
            rows.append({"peer": name, "shape": shape} | row)
            print(f"{name:<20} {shape!s:<18} {ratio!s:>24} {row['us']:>16.0f}")
    return rows
