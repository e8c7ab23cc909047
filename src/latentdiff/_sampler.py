"""From noise to samples: which times, in which order, who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from latentdiff._checks import check_choice, check_floating, check_shape, working_dtype
from latentdiff._denoised import Denoise, Denoised
from latentdiff._schedule import NoiseSchedule, Point
from latentdiff._spacing import SPACINGS
from latentdiff._typing import Generator, Latents
from latentdiff.solvers import SOLVERS, Evaluation, Solver, SolverName, Spacing, Stepped
from latentdiff.solvers._base import DRAWS_PER_STEP


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step of a walk.

    Attributes:
        index: Its number, from 0.
        t: Time before the step.
        next_t: Time after the step.
        x: `[batch, channels, *spatial]` at `next_t`.
        denoised: The estimate at `t` that the step followed.
        state: What the solver remembers.
    """

    index: int
    t: float
    next_t: float
    x: Latents
    denoised: Denoised
    state: object = None


Callback: TypeAlias = Callable[[Step], None]


@dataclass(frozen=True)
class Sampler:
    """A solver and the times it visits: a value, safe to share between threads.

    Attributes:
        solver: A name (see `latentdiff.solvers`) or a solver.
        steps: Number of steps, at least 1; calls of the network are that times the solver's calls a step.
        spacing: How the times are spaced; None is the solver's own choice.
        times: Explicit times `[steps + 1]`, falling, in -1 ... T - 1, instead of `steps` and `spacing`.

    Raises:
        ValueError: If a name is unknown, a number is out of range, or times do not fall.
    """

    solver: Solver | SolverName
    steps: int = 25
    spacing: Spacing | None = None
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            check_choice("solver", self.solver, tuple(SOLVERS))
        if self.spacing is not None:
            check_choice("spacing", self.spacing, tuple(SPACINGS))
        if self.times is None:
            if self.steps < 1:
                raise ValueError(f"steps must be at least 1, got {self.steps}")
            return
        times = tuple(float(t) for t in self.times)
        if len(times) < 2 or any(a <= b for a, b in pairwise(times)):
            raise ValueError(f"times must fall strictly and be at least two, got {times}")
        if self.spacing is not None:
            raise ValueError("times must come without a spacing; give one or the other")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "steps", len(times) - 1)

    @property
    def method(self) -> Solver:
        """The solver itself."""
        return self.solver if isinstance(self.solver, Solver) else SOLVERS[self.solver]()

    def timesteps(self, schedule: NoiseSchedule) -> Tensor:
        """The times visited: float64 `[steps + 1]`, falling; the last one is -1, the clean end, unless given.

        Raises:
            ValueError: If explicit times are out of the schedule's range.
        """
        with torch.device("cpu"):  # numbers for the host, whatever the default device
            return self._timesteps(schedule)

    def _timesteps(self, schedule: NoiseSchedule) -> Tensor:
        if self.times is not None:
            times = torch.tensor(self.times, dtype=torch.float64)
            if times[0] > schedule.num_timesteps - 1 or times[-1] < -1:
                raise ValueError(
                    f"times must be in [-1, {schedule.num_timesteps - 1}], got {self.times[0]}, {self.times[-1]}"
                )
            return times
        spacing = self.spacing or self.method.default_spacing
        clean = torch.tensor([-1.0], dtype=torch.float64)
        return torch.cat([SPACINGS[spacing](schedule, self.steps), clean])

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoise,
        noise: Latents,
        condition: object = None,
        *,
        generator: Generator = None,
        start: Latents | None = None,
        strength: float = 1.0,
        known: Latents | None = None,
        mask: Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Latents:
        """Walk all the way, without recording gradients (`iterate` leaves that to the caller).

        Args:
            denoiser: Whose estimates are followed.
            noise: `[batch, channels, *spatial]`, standard normal.
            condition: Passed on to the denoiser.
            generator: Where further noise comes from, for stochastic solvers and known pixels.
            start: A sample shaped like `noise` to begin from, noised as far as `strength` says.
            strength: In [0, 1]: the share of the steps that is made, rounded; 0 returns `start`.
            known: A sample shaped like `noise` whose pixels are kept where `mask` is 0.
            mask: 1 (or True) where to generate; broadcasts against `noise`.
            callback: Called after each step.
            progress: Whether to show a progress bar.

        Returns:
            Samples shaped and typed like `noise`.

        Raises:
            ValueError: If shapes differ, or `known` comes without `mask`.
            TypeError: If `noise` is not floating.
        """
        walk = self.iterate(
            denoiser, noise, condition, generator=generator, start=start, strength=strength, known=known, mask=mask
        )
        x = noise if start is None else start
        for step in _with_progress(walk, self._steps_made(start, strength), progress):
            x = step.x
            if callback is not None:
                callback(step)
        return x.to(noise.dtype)

    def iterate(
        self,
        denoiser: Denoise,
        noise: Latents,
        condition: object = None,
        *,
        generator: Generator = None,
        start: Latents | None = None,
        strength: float = 1.0,
        known: Latents | None = None,
        mask: Tensor | None = None,
    ) -> Iterator[Step]:
        """The walk, step by step: for previews, early stops and loops of one's own. Arguments as for `sample`."""
        _check_inputs(noise, start, strength, known, mask)
        points = [denoiser.schedule.point(t) for t in self.timesteps(denoiser.schedule).tolist()]
        first = self.steps - self._steps_made(start, strength)
        x = _begin(points[first], denoiser.schedule, noise, start, strength)
        return self._walk(denoiser, x, condition, points, first, generator, known, mask)

    def _walk(
        self,
        denoiser: Denoise,
        x: Latents,
        condition: object,
        points: list[Point],
        first: int,
        generator: Generator,
        known: Latents | None,
        mask: Tensor | None,
    ) -> Iterator[Step]:
        solver, state = self.method, None
        for index in range(first, self.steps):
            now, to = points[index], points[index + 1]
            evaluation = Evaluation(denoiser, condition, generator, index)
            stepped: Stepped = solver.step(evaluation, x, now, to, state)
            x, state = stepped.x, stepped.state
            if known is not None and mask is not None:
                noise = evaluation.noise(x, DRAWS_PER_STEP - 1) if to.sigma else torch.zeros_like(x)
                x = torch.where(mask.bool(), x, to.alpha * known.to(x.dtype) + to.sigma * noise)
            yield Step(index, now.t, to.t, x, stepped.denoised, state)

    def _steps_made(self, start: Latents | None, strength: float) -> int:
        return self.steps if start is None else round(self.steps * strength)


def _begin(point: Point, schedule: NoiseSchedule, noise: Latents, start: Latents | None, strength: float) -> Latents:
    """Where the walk begins: noise of unit size (of size sigma for exploding variance), or a noised sample."""
    noise = noise.to(working_dtype(noise.dtype))
    if start is not None and strength < 1:
        return point.alpha * start.to(noise.dtype) + point.sigma * noise
    return noise * point.sigma if schedule.frame == "variance_exploding" else noise


def _check_inputs(
    noise: Latents, start: Latents | None, strength: float, known: Latents | None, mask: Tensor | None
) -> None:
    check_floating("noise", noise)
    check_shape("noise", noise, "batch ...")
    for name, sample in (("start", start), ("known", known)):
        if sample is not None and sample.shape != noise.shape:
            raise ValueError(f"{name} must have noise's shape {list(noise.shape)}, got {list(sample.shape)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if start is None and strength != 1:
        raise ValueError("strength must come with start, the sample to begin from")
    if (known is None) != (mask is None):
        raise ValueError("known and mask must come together")


def _with_progress(walk: Iterator[Step], total: int, progress: bool) -> Iterator[Step]:
    if not progress:
        return walk
    from tqdm import tqdm  # type: ignore[import-untyped]  # imported when a bar is asked for

    return iter(tqdm(walk, total=total, desc="sampling"))
