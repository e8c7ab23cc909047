"""Weights of multistep methods: integrals of the polynomial through remembered estimates.

They depend on the times alone, so they are remembered: a second walk over the same times computes none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

REMEMBERED: Final = 4096
"""Weights of how many steps are kept, those of some hundred walks; each is a few numbers."""


def lagrange_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    r"""What each estimate counts in the integral of the polynomial through all of them.

    With \(p\) the polynomial through \((u_j, f_j)\) and \(M_m = \int K(u)\,u^m\,du\) the moments of a kernel,
    \(\int K p\,du = \sum_j w_j f_j\) and \(\sum_j w_j u_j^m = M_m\).

    Args:
        nodes: u_j, all different.
        moments: M_0, M_1, ..., as many as nodes.
    """
    return list(_lagrange_weights(tuple(nodes), tuple(moments)))


@lru_cache(maxsize=REMEMBERED)
def _lagrange_weights(nodes: tuple[float, ...], moments: tuple[float, ...]) -> tuple[float, ...]:
    weights: list[float] = []
    for j, node in enumerate(nodes):
        basis = [1.0]  # coefficients of the product of (u - u_i) / (u_j - u_i), rising
        for i, other in enumerate(nodes):
            if i != j:
                shifted = [0.0, *basis]
                scaled = [*(other * c for c in basis), 0.0]
                basis = [(a - b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
        weights.append(sum(c * m for c, m in zip(basis, moments, strict=True)))
    return tuple(weights)


def exponential_moments(h: float, count: int) -> list[float]:
    r"""\(I_m = \int_0^1 e^{-h (1 - u)} u^m du\) for m = 0 ... `count` - 1, precise for all h.

    By parts \(I_m = (1 - m I_{m-1}) / h\); for small h by \(I_m = \sum_k (-h)^k m! / (m + k + 1)!\).
    """
    return list(_exponential_moments(h, count))


@lru_cache(maxsize=REMEMBERED)
def _exponential_moments(h: float, count: int) -> tuple[float, ...]:
    if abs(h) < 1:
        series = range(18)
        return tuple(
            sum((-h) ** k * math.factorial(m) / math.factorial(m + k + 1) for k in series) for m in range(count)
        )
    moments = [-math.expm1(-h) / h]
    for m in range(1, count):
        moments.append((1 - m * moments[-1]) / h)
    return tuple(moments)
