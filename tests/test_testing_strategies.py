"""Strategies draw what they promise, and reach what they should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st

import latentdiff as ld
from latentdiff._prediction import PREDICTIONS
from latentdiff._schedule import FRAMES, Frame
from latentdiff._spacing import SPACINGS
from latentdiff.testing import strategies as lds


@given(data=st.data())
def test_times_are_those_of_the_schedule(data: st.DataObject) -> None:
    schedule = data.draw(lds.schedules())
    t = data.draw(lds.times(schedule))
    assert t.dtype == torch.float64
    assert t.ndim == 1
    assert schedule.log_snr(t).shape == t.shape  # refused if one is out of range
    assert data.draw(lds.times(schedule, batch=3)).shape == (3,)


@given(shape=lds.shapes(max_side=7), narrow=lds.shapes(2, 2, batch=4))
def test_axes_of_shapes_all_differ(shape: tuple[int, ...], narrow: tuple[int, ...]) -> None:
    assert 3 <= len(shape) <= 5
    assert len(set(shape)) == len(shape)
    assert 1 <= min(shape) <= max(shape) <= 7
    assert len(narrow) == 4
    assert narrow[0] == 4
    assert len(set(narrow)) == 4


@given(data=st.data(), seed=lds.seeds())
def test_tensors_are_functions_of_shape_and_seed(data: st.DataObject, seed: int) -> None:
    x = data.draw(lds.normal_tensors((3, 4), dtype=torch.bfloat16))
    assert x.shape == (3, 4)
    assert x.dtype == torch.bfloat16
    y = data.draw(lds.normal_tensors(lds.shapes(1, 1)))
    assert y.ndim == 3
    assert y.dtype == torch.float64
    assert data.draw(lds.normal_tensors()).ndim in (3, 4, 5)
    torch.Generator().manual_seed(seed)
    ld.CounterNoise(seed)


@given(prediction=lds.predictions(), spacing=lds.spacings(), frame=st.sampled_from(FRAMES), data=st.data())
def test_names_are_those_of_the_library(prediction: str, spacing: str, frame: Frame, data: st.DataObject) -> None:
    assert prediction in PREDICTIONS
    assert spacing in SPACINGS
    assert data.draw(lds.schedules([frame])).frame == frame


@pytest.mark.parametrize("frame", FRAMES)
def test_schedules_of_every_frame_are_found(frame: Frame) -> None:
    assert find(lds.schedules(), lambda schedule: schedule.frame == frame).frame == frame


def test_failures_shrink_to_what_is_simple() -> None:
    assert sorted(find(lds.shapes(), lambda shape: len(shape) == 4)) == [1, 2, 3, 4]
    schedule = find(lds.schedules(), lambda schedule: schedule.alpha(schedule.num_timesteps - 1.0) == 0)
    assert schedule.num_timesteps == 2
