"""The cost of a solver's step beside diffusers' schedulers: interleaved runs, ratios pair by pair.

Both sides walk the same times of the same betas with a network that costs nothing; their results are compared before
the clock runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import diffusers
import torch
from torch import Tensor

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


def seconds(walk: Walk, x: Tensor) -> float:
    """Time of one walk."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    walk(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(own: Walk, peer: Walk, x: Tensor, rounds: int) -> dict[str, float]:
    """Median and quartiles of peer's time over ours, and our median time a step in microseconds."""
    for walk in (own, peer):
        walk(x)
    pairs = [(seconds(own, x), seconds(peer, x)) for _ in range(rounds)]
    ratios = [b / a for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": middle, "low": low, "high": high, "us": statistics.median(a for a, _ in pairs) / STEPS * 1e6}


def main() -> None:
    """Print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # the peer's, with numpy 2
    peers = {
        "DPMSolverMultistep": diffusers.DPMSolverMultistepScheduler(lower_order_final=False),
        "UniPCMultistep": diffusers.UniPCMultistepScheduler(),
    }
    rows = []
    print(f"{'peer':<20} {'latent':<18} {'peer / ours':>11} {'quartiles':>15} {'ours, us a step':>16}")
    for name, scheduler in peers.items():
        peer = theirs(scheduler)
        scheduler.set_timesteps(STEPS)
        own = ours([float(t) for t in scheduler.timesteps])
        for shape in SHAPES:
            x = torch.randn(shape, device=arguments.device)
            if name == "DPMSolverMultistep":
                torch.testing.assert_close(own(x), peer(x), rtol=1e-3, atol=1e-3)  # its tables are float32
            row = compare(own, peer, x, arguments.rounds)
            rows.append({"peer": name, "shape": shape} | row)
            spread = f"{row['low']:.2f} ... {row['high']:.2f}"
            print(f"{name:<20} {shape!s:<18} {row['ratio']:>11.2f} {spread:>15} {row['us']:>16.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
