r"""An ordinary differential equation, solved to a tolerance: Dormand and Prince's pair of orders 5 and 4.

Steps adapt to the worst sample of the batch: the error of a step is, for each sample and tensor, the root mean square
of (fifth - fourth order) / (atol + rtol * size) over all values, and the greatest of them must be at most 1. So each
sample is held to the tolerance whatever its neighbours, and they change its result by no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = tuple[Tensor, ...]
"""Tensors `[batch, ...]` that move together."""

Derivative: TypeAlias = Callable[[float, State], State]
"""`derivative(s, state)`, shaped and typed like the state."""

# Dormand and Prince 1980, J. Comput. Appl. Math. 6, table 2 (RK5(4)7M): nodes, stages, and the error's weights.
# The last stage is the fifth-order result, so it begins the next step.
NODES: Final = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES: Final = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
FOURTH: Final = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
ERROR: Final = tuple(fifth - fourth for fifth, fourth in zip((*STAGES[-1], 0.0), FOURTH, strict=True))

FIRST_STEP: Final = 0.01
"""Share of the way that the first step tries."""


def integrate(
    derivative: Derivative,
    start: float,
    end: float,
    state: State,
    *,
    rtol: float,
    atol: float,
    max_steps: int = 10_000,
) -> State:
    """Where `state` has moved when s has gone from `start` to `end`.

    Args:
        derivative: d state / d s.
        start: First s.
        end: Last s, before or after `start`.
        state: Tensors `[batch, ...]`, floating; not changed.
        rtol: Error allowed in a step, relative to the size of a value.
        atol: Error allowed in a step, added to that.
        max_steps: Steps that may be tried.

    Returns:
        Shaped and typed like `state`.

    Raises:
        RuntimeError: If the tolerance is not met in `max_steps` steps, or the derivative is not finite.
    """
    if start == end:
        return state
    s, step, slope = start, FIRST_STEP * (end - start), derivative(start, state)
    for _ in range(max_steps):
        is_last = abs(step) >= abs(end - s) * (1 - 1e-9)  # no crumb of a step is left to rounding
        step = end - s if is_last else step
        new, new_slope, error = _try(derivative, s, step, state, slope, rtol, atol)
        if error <= 1:
            if is_last:
                return new
            s, state, slope = s + step, new, new_slope
        factor = 0.9 * max(error, 1e-10) ** -0.2 if math.isfinite(error) else 0.1
        step *= min(max(factor, 0.1), 5.0 if error <= 1 else 0.9)
        if abs(step) < 1e-14 * abs(end - start):
            break
    raise RuntimeError(
        f"rtol and atol must be within reach of the derivative and its dtype, got {rtol:g} and {atol:g}: stopped at "
        f"{s:g} of {start:g} ... {end:g} with steps of {abs(step):.1e}"
    )


def _try(
    derivative: Derivative, s: float, step: float, state: State, slope: State, rtol: float, atol: float
) -> tuple[State, State, float]:
    """One step: the state there, the slope there, and the error as a share of what is allowed, maybe infinite."""
    slopes, new = [slope], state
    for node, weights in zip(NODES, STAGES, strict=True):
        new = tuple(y + step * change for y, change in zip(state, _combine(weights, slopes), strict=True))
        slopes.append(derivative(s + node * step, new))
    errors = [
        _error(step * wrong, before, after, rtol, atol)
        for wrong, before, after in zip(_combine(ERROR, slopes), state, new, strict=True)
    ]
    return new, slopes[-1], max(errors) if all(map(math.isfinite, errors)) else math.inf


def _combine(weights: tuple[float, ...], slopes: list[State]) -> State:
    """The weighted sum of slopes, tensor by tensor."""
    total = tuple(torch.zeros_like(slope) for slope in slopes[0])
    for weight, state in zip(weights, slopes, strict=True):
        if weight:
            for term, slope in zip(total, state, strict=True):
                term.add_(slope, alpha=weight)
    return total


def _error(wrong: Tensor, before: Tensor, after: Tensor, rtol: float, atol: float) -> float:
    """That of the worst sample, as a share of what is allowed; not finite if any value is not."""
    share = wrong / (atol + rtol * torch.maximum(before.abs(), after.abs()))
    return share.reshape(len(share), -1).square().mean(1).max().sqrt().item()
