"""The adaptive integrator: order, tolerance, batches, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import RK45
from torch import Tensor

from latentdiff import _ode
from latentdiff._ode import integrate


def turn(_: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A rotation: position and speed of an oscillator."""
    position, speed = state
    return speed, -position


def growth(s: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """dy/ds = y cos(s): y = y_0 exp(sin s)."""
    return tuple(y * math.cos(s) for y in state)


def test_the_tableau_is_that_of_an_independent_implementation() -> None:
    np.testing.assert_allclose(_ode.NODES[:-1], RK45.C[1:], rtol=1e-15)
    for i, weights in enumerate(_ode.STAGES[:-1]):
        np.testing.assert_allclose(weights, RK45.A[i + 1, : i + 1], rtol=1e-15)
    np.testing.assert_allclose(_ode.STAGES[-1], RK45.B, rtol=1e-15)
    np.testing.assert_allclose(np.abs(_ode.ERROR), np.abs(RK45.E), rtol=0, atol=1e-15)


def test_a_step_has_order_five_and_its_error_order_four() -> None:
    """One step's error falls like h^6, its estimate like h^5."""
    y = (torch.tensor([[1.0]], dtype=torch.float64),)
    errors, estimates = [], []
    for h in (0.4, 0.2, 0.1):
        new, _, estimate = _ode._try(growth, 0.3, h, y, growth(0.3, y), 0.0, 1.0)
        errors.append(abs(new[0].item() - math.exp(math.sin(0.3 + h) - math.sin(0.3))))
        estimates.append(estimate)
    for values, order in ((errors, 6), (estimates, 5)):
        for a, b in pairwise(values):
            assert math.log2(a / b) == pytest.approx(order, abs=0.35)  # 0.35: steps are not small yet


@given(tolerance=st.sampled_from([1e-4, 1e-6, 1e-8]), end=st.floats(-9, 9), seed=st.integers(0, 2**32))
def test_the_error_follows_the_tolerance_in_both_directions(tolerance: float, end: float, seed: int) -> None:
    y = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (got,) = integrate(growth, 0.0, end, (y,), rtol=tolerance, atol=tolerance)
    # errors of a few tens of steps add up, each magnified by at most exp(2)
    torch.testing.assert_close(got, y * math.exp(math.sin(end)), rtol=0, atol=200 * tolerance)


def test_tensors_of_any_rank_and_dtype_move_together() -> None:
    position, speed = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for shape in ((3,), (3, 20), (3, 2, 5, 2)):
        start = [x.reshape(3, -1)[:, :1].reshape(3) if shape == (3,) else x.reshape(shape) for x in (position, speed)]
        got = integrate(turn, 0.0, 2.0, tuple(start), rtol=1e-10, atol=1e-10)
        c, s = math.cos(2.0), math.sin(2.0)
        torch.testing.assert_close(got[0], c * start[0] + s * start[1], rtol=0, atol=1e-8)
        torch.testing.assert_close(got[1], c * start[1] - s * start[0], rtol=0, atol=1e-8)
    mixed = integrate(growth, 0.0, 1.0, (position.float(), speed), rtol=1e-5, atol=1e-5)
    assert [y.dtype for y in mixed] == [torch.float32, torch.float64]


def test_back_and_forth_is_where_it_began() -> None:
    start = tuple(torch.randn(2, 3, 4, dtype=torch.float64))
    there = integrate(turn, 0.0, 5.0, start, rtol=1e-11, atol=1e-11)
    for got, want in zip(integrate(turn, 5.0, 0.0, there, rtol=1e-11, atol=1e-11), start, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


def test_a_hard_sample_is_held_to_the_tolerance_among_a_thousand_easy_ones() -> None:
    """An error averaged over the batch would hide it."""
    rate = torch.zeros(1000, 1, dtype=torch.float64)
    rate[17] = 30.0
    steps: list[float] = []

    def turn_fast(s: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        steps.append(s)
        return rate * state[1], -rate * state[0]

    one, zero = torch.ones(1000, 1, dtype=torch.float64), torch.zeros(1000, 1, dtype=torch.float64)
    got = integrate(turn_fast, 0.0, 1.0, (one, zero), rtol=1e-8, atol=1e-8)
    assert got[0][17].item() == pytest.approx(math.cos(30.0), abs=1e-5)
    among = len(steps)
    steps.clear()
    rate = rate[17:18]
    (alone, _) = integrate(turn_fast, 0.0, 1.0, (one[:1], zero[:1]), rtol=1e-8, atol=1e-8)
    assert len(steps) == among
    torch.testing.assert_close(alone[0], got[0][17], rtol=0, atol=1e-12)  # rounding of a hundred steps


def test_nowhere_to_go_leaves_the_state() -> None:
    y = torch.randn(2, 3)
    assert torch.equal(integrate(growth, 1.0, 1.0, (y,), rtol=1e-5, atol=1e-5)[0], y)


def test_the_state_given_is_not_changed() -> None:
    y = torch.randn(2, 3)
    before = y.clone()
    integrate(growth, 0.0, 1.0, (y,), rtol=1e-5, atol=1e-5)
    assert torch.equal(y, before)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda s, state: (state[0] * math.nan, state[1]),
        lambda s, state: (state[0], state[1] * math.nan),
        lambda s, state: (state[0].square(), state[1]),  # 1 / (1 - s): no solution reaches s = 2
    ],
)
def test_what_has_no_solution_raises(derivative: _ode.Derivative) -> None:
    with pytest.raises(RuntimeError, match="rtol and atol must be within reach of the derivative"):
        integrate(derivative, 0.0, 2.0, tuple(torch.ones(2, 1, 1, dtype=torch.float64)), rtol=1e-6, atol=1e-6)


def test_steps_that_run_out_raise() -> None:
    with pytest.raises(RuntimeError, match=r"got 1e-10 and 1e-10: stopped at .* of 0 \.\.\. 50"):
        integrate(growth, 0.0, 50.0, (torch.ones(1, 1),), rtol=1e-10, atol=1e-10, max_steps=20)
