"""Adams-Bashforth: the noise extrapolated by the polynomial through its last estimates.

The three solvers differ in the variable of that polynomial: the noise level, its logarithm, or the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import Tensor

from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import (
    FOLLOWING_NOISE,
    Beginning,
    Evaluation,
    Solver,
    Spacing,
    Stepped,
    along_noise,
    is_end,
    is_noise,
    straight,
    weighted_sum,
)
from latentdiff.solvers._weights import exponential_moments, lagrange_weights

History: TypeAlias = tuple[tuple[Point, Tensor], ...]
"""Points and estimates made there, the newest first."""


def remembered(state: object) -> History:
    """The history that a state holds; empty at first."""
    return state if isinstance(state, tuple) else ()


def points_of(history: History) -> tuple[Point, ...]:
    """Where the estimates were made."""
    return tuple(point for point, _ in history)


def nodes_of(points: Sequence[Point], now: Point, to: Point, coordinate: Callable[[Point], float]) -> list[float]:
    """Where `points` lie in a coordinate that is 0 at `now` and 1 at `to`."""
    start, length = coordinate(now), coordinate(to) - coordinate(now)
    return [(coordinate(point) - start) / length for point in points]


def integral(history: History, nodes: list[float], moments: list[float], scale: float) -> list[tuple[float, Tensor]]:
    """`scale` times the integral of the polynomial through the estimates, as terms of a weighted sum."""
    weights = lagrange_weights(nodes, moments)
    return [(scale * weight, estimate) for weight, (_, estimate) in zip(weights, history, strict=True)]


def check_order(name: str, order: int) -> None:
    """Require an order from 1 to 4.

    Raises:
        ValueError: If it is another.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"{name} must be 1, 2, 3 or 4, got {order}")


@dataclass(frozen=True, kw_only=True)
class LMS(Solver):
    r"""The noise as a polynomial of \(\ell = \sigma / \alpha\): linear multistep (k-diffusion's `lms`).

    \(x_s = \frac{\alpha_s}{\alpha_t} x_t + \alpha_s \sum_j \hat\epsilon_j \int_{\ell_t}^{\ell_s} L_j(\ell)\,d\ell\),
    the integrals exact.

    Attributes:
        order: Number of estimates used, 1 ... 4; the first steps have fewer.
    """

    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    order: int = 4  # type: ignore[misc]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        check_order("order", self.order)

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        if is_noise(now) or not to.alpha:
            return Stepped(straight(denoised, to), denoised)
        history = ((now, denoised.noise), *remembered(state))[: self.order]
        nodes = nodes_of(points_of(history), now, to, lambda point: point.noise_level)
        length = to.sigma - to.alpha * now.noise_level
        terms = integral(history, nodes, [1 / (m + 1) for m in range(len(nodes))], length)
        return Stepped(weighted_sum((to.alpha / now.alpha, x), *terms), denoised, history)


@dataclass(frozen=True, kw_only=True)
class DEIS(Solver):
    r"""The noise as a polynomial of \(\lambda = \log(\alpha / \sigma)\) (Zhang and Chen 2023).

    \(x_s = \frac{\alpha_s}{\alpha_t} x_t - \alpha_s \sum_j \hat\epsilon_j \int_{\lambda_t}^{\lambda_s} e^{-\lambda}
    L_j(\lambda)\,d\lambda\), the integrals exact (arXiv 2204.13902, eq. 14; the log-rho version of tAB-DEIS). First
    order from alpha = 0 and to sigma = 0.

    Attributes:
        order: Number of estimates used, 1 ... 4 (the paper's r + 1); the first steps have fewer.
    """

    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    order: int = 3  # type: ignore[misc]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        check_order("order", self.order)

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        if is_end(now, to):
            return Stepped(straight(denoised, to), denoised)
        history = ((now, denoised.noise), *remembered(state))[: self.order]
        nodes = nodes_of(points_of(history), now, to, lambda point: point.half_log_snr)
        h = to.half_log_snr - now.half_log_snr
        moments = exponential_moments(-h, len(nodes))  # e^(-h u) = e^(-h) e^(h (1 - u))
        terms = integral(history, nodes, moments, -to.sigma * h)
        return Stepped(weighted_sum((to.alpha / now.alpha, x), *terms), denoised, history)


@dataclass(frozen=True, kw_only=True)
class PLMS(Solver):
    """The noise as a cubic of the time, then DDIM's step with its mean (PNDM: Liu et al. 2022, eq. 12).

    On even times the weights are the published (55, -59, 37, -9) / 24 (arXiv 2202.09778). The first step asks the
    network twice, as the authors of latent diffusion do. It is of fourth order in name: since steps even in time are
    not even on the path, it converges with the second.

    Attributes:
        published: Whether the weights are those of even times in every step, as in the authors' code, where the last
            step is shorter than the others.
    """

    order: ClassVar[int] = 2
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    published: bool = False

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network, two in the first step."""
        denoised = denoise(x, now)
        if is_noise(now) or not to.alpha:
            return Stepped(straight(denoised, to), denoised)
        history = ((now, denoised.noise), *remembered(state))[:4]
        nodes = [-float(i) for i in range(len(history))]
        if not self.published:
            nodes = nodes_of(points_of(history), now, to, lambda point: point.t)
        noise = weighted_sum(*integral(history, nodes, [1 / (m + 1) for m in range(len(nodes))], 1.0))
        if len(history) == 1 and not is_end(now, to):
            noise = (noise + denoise(straight(denoised, to), to).noise) / 2
        return Stepped(along_noise(x, noise, now, to), denoised, history)
