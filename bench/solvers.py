"""A solver's step alone, with a network that costs nothing: 20 steps, in processor time of one thread."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.goals import Case, Goal
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import processor_seconds
from latentdiff import Denoiser, NoiseSchedule, Sampler
from latentdiff.solvers import SolverName

STEPS = 20
SHAPES = ((1, 4, 64, 64), (16, 4, 64, 64))
PASSES = (
    "the estimates of sample and noise take two passes over the latent and the sum of three terms another three, as "
    "torch has no public operation that adds more than two scaled tensors in one; at one latent the rest is Python's"
)
TWO_SUMS = "predictor and corrector are two sums of three and four terms, a pass over the latent for each term"
SINGLE = (
    Goal("DPMSolverMultistep / ours, time", cpu=4.0, cuda=4.0, reason=PASSES),
    Goal("UniPCMultistep / ours, time", cpu=8.0, cuda=8.0, reason=PASSES),
    Goal("k-diffusion / ours, time", cpu=1.0, cuda=1.0),
)
CORRECTED = (Goal("UniPCMultistep / ours, time", cpu=8.0, cuda=8.0, reason=TWO_SUMS),)
SCHEDULE = NoiseSchedule.linear()


def network(x: Tensor, t: Tensor | float, condition: object = None) -> Tensor:
    """A network that costs nothing: its input as the noise."""
    return x


def run(settings: Settings) -> list[Case]:
    """DPM-Solver++(2M) and UniPC, each beside the same solver of others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [case for shape in (SHAPES[:1] if settings.quick else SHAPES) for case in _cases(shape, settings)]
    finally:
        torch.set_num_threads(threads)


def _cases(shape: tuple[int, ...], settings: Settings) -> list[Case]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(settings.device)
    others: list[tuple[str, dict[str, bool]]]
    others = [("DPMSolverMultistep", {"lower_order_final": False}), ("UniPCMultistep", {})]
    return [
        _case("dpmpp_2m", x, others, SINGLE, settings),
        _case("unipc", x, others[1:], CORRECTED, settings),
    ]


def _case(
    solver: SolverName,
    x: Tensor,
    others: list[tuple[str, dict[str, bool]]],
    goals: tuple[Goal, ...],
    settings: Settings,
) -> Case:
    contestants = [Contestant("ours", lambda: ours(solver, x))]
    for index, (name, options) in enumerate(others):
        reserve = "another solver" if index else ""
        contestants.append(Contestant(name, lambda n=name, o=options: theirs(n, o, x), reserve))
    if solver == "dpmpp_2m":
        contestants.append(Contestant("k-diffusion", lambda: k_diffusion(x)))
    tolerance = 1e-3 if solver == "dpmpp_2m" else 1e-2  # tables in float32; their last step is of another order
    name = f"{solver}, latent {list(x.shape)}"
    return race(name, contestants, settings, goals=goals, tolerance=tolerance, clock=processor_seconds)


def times() -> list[float]:
    """The whole times that diffusers takes by default, and the clean end."""
    return [*torch.linspace(0, 999, STEPS + 1).round().flip(0)[:-1].tolist(), -1.0]


def ours(solver: SolverName, x: Tensor) -> Callable[[], Tensor]:
    """A walk of this library."""
    sampler, denoiser = Sampler(solver, times=times()), Denoiser(network, SCHEDULE)
    return lambda: sampler.sample(denoiser, x)


def theirs(name: str, options: dict[str, bool], x: Tensor) -> Callable[[], Tensor]:
    """A scheduler of diffusers, its times set for each walk as its users do."""
    diffusers: Any = importlib.import_module("diffusers")
    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)

    def walk() -> Tensor:
        latent = x
        scheduler.set_timesteps(STEPS, device=x.device)
        for t in scheduler.timesteps:
            latent = scheduler.step(network(latent, t), t, latent, return_dict=False)[0]
        return latent

    return walk


def k_diffusion(x: Tensor) -> Callable[[], Tensor]:
    """`sample_dpmpp_2m`, whose latents are ours over alpha."""
    sampling: Any = importlib.import_module("k_diffusion.sampling")
    points = [SCHEDULE.point(t) for t in times()]
    levels = torch.tensor([point.noise_level for point in points], device=x.device)

    def denoised(y: Tensor, level: Tensor) -> Tensor:
        level = level.reshape(-1, *(1,) * (y.ndim - 1))
        return y - level * network(y / (level**2 + 1).sqrt(), level)

    return lambda: sampling.sample_dpmpp_2m(denoised, x / points[0].alpha, levels, disable=True)
