"""How fast a solver's error falls with the number of steps: of its samples, and of their mean and variance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._denoised import Denoise
from latentdiff._sampler import Sampler
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents
from latentdiff.solvers import Solver, SolverName, Spacing
from latentdiff.testing._flow import integrate_flow
from latentdiff.testing._gaussian import GaussianDenoiser
from latentdiff.testing._mixture import MixtureDenoiser
from latentdiff.testing._oracle import Oracle

STEPS = (32, 64, 128)
LOG_SNR = (-10.0, 4.0)
ROUNDING = 1e-12
"""Relative errors up to here are those of float64, not of the method."""


@dataclass(frozen=True)
class Convergence:
    """Errors of one solver.

    Attributes:
        steps: Numbers of steps, rising.
        errors: For each, the error in units of what is right.
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def order(self) -> float:
        """Slope of log error against log step length, by least squares; infinite where errors are rounding alone."""
        points = [(math.log(n), math.log(e)) for n, e in zip(self.steps, self.errors, strict=True) if e > ROUNDING]
        if len(points) < 2:
            return math.inf
        x, y = (math.fsum(values) / len(points) for values in zip(*points, strict=True))
        return -math.fsum((a - x) * (b - y) for a, b in points) / math.fsum((a - x) ** 2 for a, _ in points)

    def __str__(self) -> str:
        """A table of steps, errors, and the slope from each line to the next."""
        lines = [f"{'steps':>6} {'error':>10} {'slope':>6}"]
        before: tuple[int, float] | None = None
        for n, error in zip(self.steps, self.errors, strict=True):
            slope = ""
            if before is not None and min(error, before[1]) > ROUNDING:
                slope = f"{math.log(before[1] / error) / math.log(n / before[0]):.2f}"
            lines.append(f"{n:>6} {error:>10.3e} {slope:>6}".rstrip())
            before = n, error
        return "\n".join(lines)


def convergence(
    solver: Solver | SolverName,
    denoiser: Denoise,
    *,
    steps: Sequence[int] = STEPS,
    log_snr: tuple[float, float] = LOG_SNR,
    spacing: Spacing | None = None,
    x: Latents | None = None,
) -> Convergence:
    """Errors of a solver that draws no noise, against the probability flow of `denoiser`.

    The flow is `flow_map` of an oracle, and where that is not known, or the denoiser is another one, it is integrated
    numerically (`integrate_flow`).

    Args:
        solver: A solver or its name.
        denoiser: A smooth one: an oracle of `latentdiff.testing`, or any other in float64.
        steps: Numbers of steps, two or more, rising.
        log_snr: Between which log SNR the walk goes, evenly in it, from more to less noise; cut to what the schedule
            has. The end has noise, so that the order is the solver's own and not that of the last jump to sigma = 0.
        spacing: Walk all the way instead, from T - 1 to the clean end, as a user would.
        x: Where the walk begins, as `noise` of `Sampler.sample`: `[batch, *event]`; quantiles of the normal
            distribution if not given.

    Returns:
        Root mean square errors, in units of the root mean square of what is right.

    Raises:
        ValueError: If the solver draws noise, or there are fewer than two numbers of steps.
    """
    method = Sampler(solver).method
    if method.stochastic:
        raise ValueError(f"solver must draw no noise, got {method}; see weak_convergence")
    check_steps(steps)
    noise = _quantiles(denoiser) if x is None else x.double()
    known: dict[tuple[float, float], Tensor] = {}
    errors = []
    for n in steps:
        sampler = walker(method, denoiser.schedule, n, log_snr, spacing)
        ends = tuple(sampler.timesteps(denoiser.schedule)[[0, -1]].tolist())
        if ends not in known:
            known[ends] = _exact(denoiser, _begun(noise, denoiser.schedule, ends[0]), *ends)
        found = sampler.sample(denoiser, noise)
        errors.append(rms(found - known[ends]) / rms(known[ends]))
    return Convergence(tuple(steps), tuple(errors))


def convergence_order(
    solver: Solver | SolverName,
    denoiser: Denoise,
    *,
    steps: Sequence[int] = STEPS,
    log_snr: tuple[float, float] = LOG_SNR,
    spacing: Spacing | None = None,
    x: Latents | None = None,
) -> float:
    """The order of a solver that draws no noise: see `convergence`, which gives the errors themselves.

    Args:
        solver: A solver or its name.
        denoiser: A smooth one.
        steps: Numbers of steps.
        log_snr: Between which log SNR the walk goes.
        spacing: Walk all the way instead.
        x: `[batch, *event]`, where the walk begins.

    Raises:
        ValueError: As `convergence`.
    """
    return convergence(solver, denoiser, steps=steps, log_snr=log_snr, spacing=spacing, x=x).order


def check_steps(steps: Sequence[int]) -> None:
    """Require two numbers of steps or more, rising."""
    if len(steps) < 2 or sorted({*steps}) != list(steps):
        raise ValueError(f"steps must be two or more and rise, got {tuple(steps)}")


def walker(
    solver: Solver, schedule: NoiseSchedule, steps: int, log_snr: tuple[float, float], spacing: Spacing | None
) -> Sampler:
    """A sampler of `steps` steps, even in log SNR, or all the way if a spacing is given."""
    if spacing is not None:
        return Sampler(solver, steps, spacing)
    start, end = max(log_snr[0], schedule.log_snr(schedule.num_timesteps - 1.0)), log_snr[1]
    if not start < end < math.inf:
        raise ValueError(f"log_snr must rise from more noise to less and end in some, got {log_snr}")
    grid = torch.linspace(start, end, steps + 1, dtype=torch.float64, device="cpu")
    return Sampler(solver, times=schedule.timestep(grid).tolist())


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.square().mean().sqrt().item()


def normal_example(schedule: NoiseSchedule | None = None) -> GaussianDenoiser:
    """Three values of different mean and spread, so that an error that vanishes for one does not for the others."""
    mean, std = torch.tensor([0.3, -0.7, 0.1]), torch.tensor([0.5, 0.25, 1.5])
    return GaussianDenoiser(mean=mean, std=std, schedule=schedule or NoiseSchedule.cosine())


def mixture_example(schedule: NoiseSchedule | None = None) -> MixtureDenoiser:
    """Three modes of one value: the estimate is not linear, and its flow is known."""
    parts = ([0.5, 0.3, 0.2], [-0.8, 0.2, 1.1], [0.3, 0.4, 0.5])
    weights, means, stds = (torch.tensor(part, dtype=torch.float64) for part in parts)
    return MixtureDenoiser(weights=weights, means=means, stds=stds, schedule=schedule or NoiseSchedule.cosine())


def event_of(denoiser: GaussianDenoiser) -> tuple[int, ...]:
    """Shape of one sample."""
    mean, std = (torch.as_tensor(value) for value in (denoiser.mean, denoiser.std))
    return tuple(torch.broadcast_shapes(mean.shape, std.shape)) or (1,)


def _quantiles(denoiser: Denoise) -> Tensor:
    """Standard normal quantiles `[16, *event]`, the same for every value of a sample."""
    event = event_of(denoiser) if isinstance(denoiser, GaussianDenoiser) else (1,)
    share = (torch.arange(16, dtype=torch.float64, device="cpu") + 0.5) / 16
    quantiles: Tensor = torch.special.ndtri(share)
    return quantiles.reshape(-1, *(1,) * len(event)).expand(-1, *event).clone()


def _begun(noise: Tensor, schedule: NoiseSchedule, t: float) -> Tensor:
    """Where a walk from `noise` begins."""
    return noise * schedule.sigma(t) if schedule.frame == "variance_exploding" else noise


def _exact(denoiser: Denoise, x: Tensor, t: float, next_t: float) -> Tensor:
    if isinstance(denoiser, Oracle):
        with contextlib.suppress(NotImplementedError):
            return denoiser.flow_map(x, t, next_t)
    with torch.no_grad():
        return integrate_flow(denoiser, x, t, next_t)
