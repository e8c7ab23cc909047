"""Strategies for hypothesis: schedules, predictions, times, spacings, and tensors made of a shape and a seed.

Sizes and seeds are drawn, not elements: that is faster, and a failure shrinks to small shapes all the same. Needs the
extra `[test]`.

    >>> from hypothesis import given
    >>> import latentdiff as ld
    >>> from latentdiff.testing import strategies as lds
    >>> @given(schedule=lds.schedules(), x=lds.normal_tensors())
    ... def test_the_clean_end_adds_no_noise(schedule, x):
    ...     assert schedule.add_noise(x, x, -1.0).equal(x)
    >>> test_the_clean_end_adds_no_noise()
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentdiff._prediction import PREDICTIONS
from latentdiff._schedule import FRAMES, Frame, NoiseSchedule
from latentdiff._spacing import SPACINGS
from latentdiff._typing import Prediction
from latentdiff.solvers import Spacing

try:
    from hypothesis import strategies as st
except ImportError as _error:
    raise ImportError(
        "latentdiff.testing.strategies needs hypothesis, which is not installed; pip install 'latentdiff[test]'"
    ) from _error

_TIMESTEPS = st.one_of(st.integers(2, 12), st.sampled_from((100, 1000, 4000)))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of a `torch.Generator` or a `CounterNoise`."""
    return st.integers(0, 2**63 - 1)


def predictions() -> st.SearchStrategy[Prediction]:
    """What a network's output may mean."""
    return st.sampled_from(PREDICTIONS)


def spacings() -> st.SearchStrategy[Spacing]:
    """Names of spacings of a `Sampler`."""
    return st.sampled_from(tuple(SPACINGS))


@st.composite
def schedules(draw: st.DrawFn, frames: Sequence[Frame] = FRAMES) -> NoiseSchedule:
    """Schedules of all frames: published ones, shifted ones, and ones that end in pure noise.

    Args:
        draw: Given by hypothesis.
        frames: Which frames.
    """
    steps, frame = draw(_TIMESTEPS), draw(st.sampled_from(tuple(frames)))
    shift = draw(st.sampled_from((1.0, 1.0, 0.5, 3.0)))
    if frame == "flow":
        return NoiseSchedule.flow(steps, shift)
    if frame == "variance_exploding":
        return NoiseSchedule.edm(draw(st.floats(0.002, 0.1)), draw(st.floats(5.0, 80.0)), steps).shifted(shift)
    make = draw(st.sampled_from((NoiseSchedule.linear, NoiseSchedule.scaled_linear, NoiseSchedule.cosine)))
    schedule = make(steps).shifted(shift)
    return schedule.zero_terminal_snr() if draw(st.booleans()) else schedule


@st.composite
def times(draw: st.DrawFn, schedule: NoiseSchedule, batch: int | None = None) -> Tensor:
    """Times of a schedule, float64: whole ones, times between, and both ends.

    Args:
        draw: Given by hypothesis.
        schedule: Whose.
        batch: Size of the batch; by default one that is drawn.

    Returns:
        `[batch]`, in -1 ... T - 1.
    """
    last = schedule.num_timesteps - 1
    size = draw(st.integers(1, 8)) if batch is None else batch
    one = st.one_of(st.integers(-1, last).map(float), st.floats(-1.0, last, width=32), st.sampled_from((-1.0, 0.0)))
    return torch.tensor(draw(st.lists(one, min_size=size, max_size=size)), dtype=torch.float64, device="cpu")


@st.composite
def shapes(
    draw: st.DrawFn, min_spatial: int = 1, max_spatial: int = 3, max_side: int = 9, batch: int | None = None
) -> tuple[int, ...]:
    """Shapes `[batch, channels, *spatial]` whose axes all differ in size, so that a wrong broadcast fails.

    Args:
        draw: Given by hypothesis.
        min_spatial: Fewest spatial axes.
        max_spatial: Most spatial axes.
        max_side: Largest size of an axis.
        batch: Size of the batch; by default one that is drawn.
    """
    axes = 1 + draw(st.integers(min_spatial, max_spatial)) + (batch is None)
    sides = st.integers(1, max_side).filter(lambda side: side != batch)
    drawn = draw(st.lists(sides, min_size=axes, max_size=axes, unique=True))
    return tuple(drawn) if batch is None else (batch, *drawn)


@st.composite
def normal_tensors(
    draw: st.DrawFn,
    shape: Sequence[int] | st.SearchStrategy[tuple[int, ...]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Standard normal tensors, functions of a shape and a seed.

    Args:
        draw: Given by hypothesis.
        shape: `[batch, ...]`, or a strategy of shapes; by default `shapes()`.
        dtype: Drawn in float64 and rounded.

    Returns:
        A tensor on the CPU of that shape.
    """
    drawn = draw(shapes() if shape is None else shape) if not isinstance(shape, Sequence) else shape
    generator = torch.Generator().manual_seed(draw(seeds()))
    return torch.randn(*drawn, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
