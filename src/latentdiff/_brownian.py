"""A Brownian path as a pure function of its seed: noise that does not depend on the grid of times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from latentdiff._noise import CounterNoise

OCTAVES: Final = 48
"""The path is resolved from 2 ** -48 to 2 ** 48: alpha-bar of 3.6e-15 to noise of 6e-8."""

DEPTH: Final = 20
"""Halvings, in the logarithm: what lies within a factor of 1 + 6.4e-5 is joined by a straight line."""


@dataclass(frozen=True)
class BrownianNoise(CounterNoise):
    r"""`CounterNoise` whose draws inside a walk are the increments of one Brownian path per sample.

    Stochastic solvers then follow the same path whatever their number of steps: with more steps a sample converges,
    instead of becoming another one. The path \(W(u)\) runs in the time u = SNR of the process (see
    `solvers.Evaluation.brownian`); it is refined from its ends by Brownian bridges, each a numbered draw, so that any
    value costs 21 draws and nothing is stored.

    Args:
        seed: In 0 ... 2 ** 64 - 1.
        first_sample: Number of the first sample of the batch, as for `CounterNoise`.
    """

    def path(self, shape: Sequence[int], u: float, *, device: torch.device) -> Tensor:
        """W(u), which has variance u: float64 of `shape` `[batch, ...]`, for u >= 0."""
        exponent = min(math.log2(u), float(OCTAVES)) if u > 0 else -math.inf
        before = torch.zeros(*shape, dtype=torch.float64, device=device)
        if exponent <= -OCTAVES:
            return before
        ends, nodes = _descent(exponent)
        draws = self.normals(shape, nodes, device=device, stream=1)
        after = 2 ** (OCTAVES / 2) * draws[0]
        for (low, middle, high), draw in zip(ends, draws[1:], strict=True):
            a, m, b = 2.0**low, 2.0**middle, 2.0**high
            at_middle = torch.lerp(before, after, (m - a) / (b - a))
            at_middle.add_(draw, alpha=((m - a) * (b - m) / (b - a)) ** 0.5)
            before, after = (before, at_middle) if exponent < middle else (at_middle, after)
        low, middle, high = ends[-1]
        a, b = (2.0**low, 2.0**middle) if exponent < middle else (2.0**middle, 2.0**high)
        return torch.lerp(before, after, min(1.0, (u - a) / (b - a)))


def _descent(exponent: float) -> tuple[list[tuple[float, float, float]], list[int]]:
    """The intervals (low, middle, high) around an exponent, each half of the one before, and the numbers of draws."""
    low, high, node = -float(OCTAVES), float(OCTAVES), 1
    ends, nodes = [], [node]
    for _ in range(DEPTH):
        middle = (low + high) / 2
        ends.append((low, middle, high))
        is_above = exponent >= middle
        nodes.append(2 * node)
        low, high, node = (middle, high, 2 * node + 1) if is_above else (low, middle, 2 * node)
    return ends, nodes
