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
from latentdiff._spacing import SPACINGS, spaced_times
from latentdiff._typing import Generator, Latents
from latentdiff.solvers import SOLVERS, Evaluation, Solver, SolverName, Spacing
from latentdiff.solvers._base import DRAWS_PER_STEP, beginning_of, weighted_sum


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
        spacing: How the times are spaced; None is what suits the solver and the schedule (`Solver.default_spacing`).
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
            if type(self.steps) is not int:
                raise TypeError(f"steps must be an int, got {self.steps!r}")
            if self.steps < 1:
                raise ValueError(f"steps must be at least 1, got {self.steps}")
            return
        if isinstance(self.times, str):
            raise TypeError(f"times must be numbers, got {self.times!r}")
        times = tuple(float(t) for t in self.times)
        if len(times) < 2 or not all(a > b for a, b in pairwise(times)):
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
        spacing = self.spacing or self.method.default_spacing[beginning_of(schedule)]
        clean = torch.tensor([-1.0], dtype=torch.float64)
        return torch.cat([spaced_times(spacing, schedule, self.steps), clean])

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
        resamples: int = 1,
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
            strength: In [0, 1]: `round(steps * strength)` steps are made, the last ones; 0 returns `start`, 1 is the
                walk from `noise` alone.
            known: A sample shaped like `noise` whose pixels are kept where `mask` is 0.
            mask: 1 (or True) where to generate; broadcasts against `noise`.
            resamples: How often each step but the last is made, with `known`: between two times the result is noised
                again, so that both parts grow together (RePaint: Lugmayr et al. 2022, arXiv 2201.09865, alg. 1).
            callback: Called after each step.
            progress: Whether to show a progress bar.

        Returns:
            Samples shaped and typed like `noise`.

        Raises:
            ValueError: If shapes differ, or `known` comes without `mask`.
            TypeError: If `noise` is not floating.
        """
        walk = self.iterate(
            denoiser,
            noise,
            condition,
            generator=generator,
            start=start,
            strength=strength,
            known=known,
            mask=mask,
            resamples=resamples,
        )
        x = noise if start is None else start
        made = self._steps_made(start, strength)
        for step in _with_progress(walk, max(0, (made - 1) * resamples + (made > 0)), progress):
            x = step.x
            if callback is not None:
                callback(step)
            del step  # its estimates go before the next ones come
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
        resamples: int = 1,
        resume: Step | None = None,
    ) -> Iterator[Step]:
        """The walk, step by step: for previews, early stops and loops of one's own.

        Args:
            denoiser: As for `sample`, like all that follow.
            noise: `[batch, channels, *spatial]`, standard normal.
            condition: Passed on to the denoiser.
            generator: Where further noise comes from.
            start: A sample shaped like `noise` to begin from.
            strength: How far `start` is noised.
            known: A sample shaped like `noise` to keep.
            mask: Where to generate; broadcasts against `noise`.
            resamples: How often each step is made.
            resume: A step of an earlier walk of this sampler to go on from; `noise` then only tells the shape. With a
                deterministic solver or a `CounterNoise` the end is that of the whole walk, bit for bit (without
                `resamples`).

        Returns:
            An iterator of steps; leaving it early costs nothing.
        """
        _check_inputs(denoiser, noise, start, strength, known, mask)
        if resamples < 1 or (resamples > 1 and known is None):
            raise ValueError(f"resamples must be at least 1, and 1 without known, got {resamples}")
        points = [denoiser.schedule.point(t) for t in self.timesteps(denoiser.schedule).tolist()]
        if resume is None:
            first, state = self.steps - self._steps_made(start, strength), None
            x = _begin(points[first], denoiser.schedule, noise, start, strength)
        else:
            first, state, x = resume.index + 1, resume.state, resume.x
        walk = _Walk(denoiser, condition, generator, self.method, points)
        return walk.steps(x, first, state, known, mask, resamples)

    @torch.no_grad()
    def invert(self, denoiser: Denoise, sample: Latents, condition: object = None) -> Latents:
        """Walk the same times backwards, from a sample to the noise that leads to it (Song et al. 2021, sec. 4.3).

        Between times with some sample and some noise the round trip through `sample` has the solver's order of
        convergence; the steps from and to the clean end are of first order.

        Args:
            denoiser: Whose estimates are followed.
            sample: `[batch, channels, *spatial]`.
            condition: Passed on to the denoiser.

        Returns:
            Noise shaped and typed like `sample`: of unit size, as `sample` (the method) takes it.

        Raises:
            ValueError: If the solver draws noise, which cannot be undone.
        """
        _check_inputs(denoiser, sample, None, 1.0, None, None)
        method, schedule = self.method, denoiser.schedule
        if method.stochastic:
            raise ValueError(
                f"solver must be deterministic to be inverted, got {method}; use e.g. 'ddim' or 'dpmpp_2m'"
            )
        points = [schedule.point(t) for t in reversed(self.timesteps(schedule).tolist())]
        x = sample.to(working_dtype(sample.dtype))
        for step in _Walk(denoiser, condition, None, method, points).steps(x, 0, None, None, None, 1):
            x = step.x
        scale = points[-1].sigma if schedule.frame == "variance_exploding" else 1.0
        return (x / scale).to(sample.dtype)

    def _steps_made(self, start: Latents | None, strength: float) -> int:
        return self.steps if start is None else round(self.steps * strength)


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """A solver on its way over points."""

    denoiser: Denoise
    condition: object
    generator: Generator
    solver: Solver
    points: list[Point]

    def steps(
        self, x: Latents, first: int, state: object, known: Latents | None, mask: Tensor | None, resamples: int
    ) -> Iterator[Step]:
        count = len(self.points) - 1
        for index in range(first, count):
            now, to = self.points[index], self.points[index + 1]
            after, times = state, resamples if index + 1 < count else 1
            for repeat in range(times):
                number = index + repeat * count  # draws of their own for each repetition
                evaluation = Evaluation(self.denoiser, self.condition, self.generator, number, count)
                # what a solver remembers belongs to the x it came from, not to one noised again
                stepped = self.solver.step(evaluation, x, now, to, None if repeat else state)
                x, after = stepped.x, stepped.state
                if known is not None and mask is not None:
                    x = _keep(x, known, mask, to, evaluation)
                is_last = repeat + 1 == times
                denoised = stepped.denoised
                del stepped
                yield Step(index, now.t, to.t, x, denoised, after if is_last else state)
                del denoised
                if not is_last:
                    x = _noised_again(x, to, now, evaluation)
            state = after


def _keep(x: Latents, known: Latents, mask: Tensor, point: Point, evaluation: Evaluation) -> Latents:
    """`x` where the mask is 1, elsewhere what is known, noised as far as `point`."""
    kept = point.alpha * known.to(x.dtype)
    if point.sigma:
        kept = kept.add_(evaluation.noise(x, DRAWS_PER_STEP - 1), alpha=point.sigma)
    return torch.where(mask.bool(), x, kept)


def _noised_again(x: Latents, now: Point, to: Point, evaluation: Evaluation) -> Latents:
    """From `now` to a noisier point by the forward process."""
    transition = to.alpha / now.alpha
    variance = max(0.0, to.sigma**2 - (transition * now.sigma) ** 2)
    return weighted_sum((transition, x), (variance**0.5, evaluation.noise(x, DRAWS_PER_STEP - 2)))


def _begin(point: Point, schedule: NoiseSchedule, noise: Latents, start: Latents | None, strength: float) -> Latents:
    """Where the walk begins: noise of unit size (of size sigma for exploding variance), or a noised sample."""
    noise = noise.to(working_dtype(noise.dtype))
    if start is not None and strength < 1:
        return point.alpha * start.to(noise.dtype) + point.sigma * noise
    return noise * point.sigma if schedule.frame == "variance_exploding" else noise


def _check_inputs(
    denoiser: Denoise,
    noise: Latents,
    start: Latents | None,
    strength: float,
    known: Latents | None,
    mask: Tensor | None,
) -> None:
    if not isinstance(getattr(denoiser, "schedule", None), NoiseSchedule):
        raise TypeError(
            f"denoiser must have a schedule, got {type(denoiser).__name__}; wrap a network as "
            "ld.Denoiser(network, schedule, prediction=...)"
        )
    check_floating("noise", noise)
    check_shape("noise", noise, "batch ...")
    for name, sample in (("start", start), ("known", known)):
        if sample is None:
            continue
        check_floating(name, sample)
        if sample.shape != noise.shape:
            raise ValueError(f"{name} must have noise's shape {list(noise.shape)}, got {list(sample.shape)}")
    if mask is not None:
        _check_mask(mask, noise)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if start is None and strength != 1:
        raise ValueError("strength must come with start, the sample to begin from")
    if (known is None) != (mask is None):
        raise ValueError("known and mask must come together")


def _check_mask(mask: Tensor, noise: Latents) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    axes = zip(reversed(mask.shape), reversed(noise.shape), strict=False)
    if mask.ndim > noise.ndim or any(size not in (1, wanted) for size, wanted in axes):
        raise ValueError(f"mask must broadcast against noise {list(noise.shape)}, got {list(mask.shape)}")


def _with_progress(walk: Iterator[Step], total: int, progress: bool) -> Iterator[Step]:
    if not progress:
        return walk
    from tqdm import tqdm  # type: ignore[import-untyped]  # imported when a bar is asked for

    return iter(tqdm(walk, total=total, desc="sampling"))
