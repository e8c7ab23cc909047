"""The contract of a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentdiff._denoised import Denoise, Denoised
from latentdiff._noise import CounterNoise
from latentdiff._sampler import Sampler, Step
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Times
from latentdiff.solvers import Solver, SolverName
from latentdiff.testing._assert_order import assert_order, stated_order
from latentdiff.testing._checking import normal, require, require_close
from latentdiff.testing._gaussian import GaussianDenoiser

STEPS = (1, 2, 3, 7, 50)
SHAPE = (5, 2, 3)
LATENT_ROUNDING = 1e-9
"""Rows of a batch may differ from the same rows alone by the rounding of float64, through 50 steps."""


def check_solver(solver: Solver | SolverName, *, order: bool = True) -> None:
    """Require what every solver promises, in each frame of a schedule.

    Walks of 1 to 50 steps from pure noise to the clean end (also where alpha is 0 at the start) are finite, have the
    dtype and shape of their noise, and leave what they are given as it is; the same noise gives the same sample, alone
    and in a batch; a solver that says it draws no noise draws none, and nothing in it changes. At last it has the order
    it states (`assert_order`; where that is 0 there is none to measure).

    Args:
        solver: A solver or its name.
        order: Whether to measure the order; False for solvers that choose their steps themselves.

    Raises:
        AssertionError: If it does not, saying what.
    """
    method = Sampler(solver).method
    before = repr(method), dict(vars(method))
    for name, schedule in _schedules().items():
        data = GaussianDenoiser(mean=0.3, std=0.5, schedule=schedule)
        for steps in STEPS:
            _check_walk(method, data, steps, f"{method}, {name}, {steps} steps")
        _check_dtypes(method, data, f"{method}, {name}")
        _check_batch(method, data, f"{method}, {name}")
    require((repr(method), dict(vars(method))) == before, f"{method} must not change: it is shared between walks")
    _check_draws(method)
    stated = stated_order(method)
    require(stated is not None, f"{method} must state {'weak_order' if method.stochastic else 'order'}")
    if order and stated != 0:
        assert_order(method)


def _schedules() -> dict[str, NoiseSchedule]:
    return {
        "variance preserving": NoiseSchedule.cosine(),
        "zero terminal SNR": NoiseSchedule.scaled_linear().zero_terminal_snr(),
        "variance exploding": NoiseSchedule.edm(),
        "flow": NoiseSchedule.flow(),
    }


def _check_walk(solver: Solver, data: GaussianDenoiser, steps: int, name: str) -> None:
    """Count, shape, finiteness; nothing written to; the same again."""
    noise = normal(SHAPE)
    kept = noise.clone()
    watched = _Watched(data)
    walk: list[tuple[Step, Tensor]] = []
    for step in Sampler(solver, steps).iterate(watched, noise, generator=CounterNoise(1)):
        where = f"{name}, from t = {step.t:g} to {step.next_t:g}"
        require(step.x.shape == noise.shape, f"{where}: shape must be {list(noise.shape)}, got {list(step.x.shape)}")
        require(bool(step.x.isfinite().all()), f"{where}: x must be finite")
        require(bool(step.denoised.sample.isfinite().all()), f"{where}: the estimate followed must be finite")
        walk.append((step, step.x.clone()))
    require(len(walk) == steps, f"{name}: a walk must have as many steps as asked for, got {len(walk)}")
    require(torch.equal(noise, kept), f"{name}: the noise given must not be written to")
    watched.check(name)
    require(all(torch.equal(step.x, x) for step, x in walk), f"{name}: a step must not write to an earlier one's x")
    again = Sampler(solver, steps).iterate(data, noise, generator=CounterNoise(1))
    equal = all(torch.equal(step.x, x) for step, (_, x) in zip(again, walk, strict=True))
    require(equal, f"{name}: the same noise must give the same walk")


def _check_dtypes(solver: Solver, data: GaussianDenoiser, name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        for step in Sampler(solver, 3).iterate(data, normal(SHAPE).to(dtype), generator=CounterNoise(1)):
            require(step.x.dtype == dtype, f"{name}: dtype must stay {dtype}, got {step.x.dtype}")


def _check_batch(solver: Solver, data: GaussianDenoiser, name: str) -> None:
    """A sample must not depend on its neighbours; with counter-based noise each is a function of its number."""
    noise, sampler = normal(SHAPE), Sampler(solver, 5)
    whole = sampler.sample(data, noise, generator=CounterNoise(1))
    part = sampler.sample(data, noise[2:4], generator=CounterNoise(1, 2))
    require_close(part, whole[2:4], LATENT_ROUNDING, f"{name}: a sample must not depend on its batch")


def _check_draws(solver: Solver) -> None:
    draws = _Counting()
    Sampler(solver, 4).sample(GaussianDenoiser(schedule=NoiseSchedule.cosine()), normal(SHAPE), generator=draws)
    if solver.stochastic:
        require(bool(draws.steps), f"{solver} says that it is stochastic but draws no noise")
    else:
        require(not draws.steps, f"{solver} must say that it is stochastic: it draws noise")


@dataclass(frozen=True, eq=False)
class _Watched:
    """A denoiser that keeps what it saw and answered, to see whether anybody writes to it."""

    denoiser: Denoise
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        denoised = self.denoiser(x_t, t, condition)
        self.kept.extend((one, one.clone()) for one in (denoised.sample, denoised.noise))
        return denoised

    def check(self, name: str) -> None:
        for given, copy in self.kept:
            require(torch.equal(given, copy), f"{name}: what the denoiser answered must not be written to")


@dataclass(frozen=True)
class _Counting:
    """A source of noise that notes who drew."""

    steps: list[int] = field(default_factory=list)

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        self.steps.append(step)
        return CounterNoise(0).normal(shape, step=step, device=device, dtype=dtype)
