r"""UniPC: a multistep predictor, corrected with the estimate of the next step at no further call.

Zhao et al. 2023, arXiv 2302.04867, alg. 5 to 8, in the sample. Its coefficients solve the very equations that make the
polynomial through the estimates integrate exactly, so that predictor and corrector are exponential Adams-Bashforth and
Adams-Moulton methods, and B(h) drops out; but for the first nontrivial coefficient, for which the authors take 1/2
where it stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

from latentdiff._checks import check_choice
from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._adams import History, check_order, nodes_of, points_of
from latentdiff.solvers._base import (
    FOLLOWING_SAMPLE,
    Beginning,
    Evaluation,
    Solver,
    Spacing,
    Stepped,
    is_end,
    straight,
    weighted_sum,
)
from latentdiff.solvers._multistep import moments_of_sample
from latentdiff.solvers._weights import REMEMBERED, lagrange_weights


class _State(NamedTuple):
    """Where the last step began, and what was known there, the newest estimate first."""

    x: Latents
    history: History


@dataclass(frozen=True, kw_only=True)
class UniPC(Solver):
    """UniPC of any order up to 5.

    First order from alpha = 0 and to sigma = 0. A walk ends with a predicted step, as published.

    Attributes:
        predictor_order: p, 1 ... 4: how many estimates the predictor uses; the corrected walk has order p + 1.
        order: p + 1.
        variant: `"bh2"` for B(h) = exp(-h) - 1, `"bh1"` for B(h) = -h.
    """

    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_SAMPLE

    predictor_order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    order: int = field(default=3, init=False, repr=False)  # type: ignore[misc]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        check_order("predictor_order", self.predictor_order)
        check_choice("variant", self.variant, ("bh1", "bh2"))
        object.__setattr__(self, "order", self.predictor_order + 1)

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        history: History = ((now, denoised.sample),)
        if isinstance(state, _State):
            history = (*history, *state.history)
            x = self._moved(state.x, state.history[0][0], now, history)
        if is_end(now, to):
            return Stepped(straight(denoised, to), denoised)
        history = history[: self.predictor_order]
        return Stepped(self._moved(x, now, to, history), denoised, _State(x, history))

    def _moved(self, x: Latents, now: Point, to: Point, history: History) -> Latents:
        """Predict, or correct where `history` begins with an estimate at `to`."""
        kept, weights = _coefficients(points_of(history), now, to, self.variant)
        return weighted_sum((kept, x), *((w, sample) for w, (_, sample) in zip(weights, history, strict=True)))


@lru_cache(maxsize=REMEMBERED)
def _coefficients(
    points: tuple[Point, ...], now: Point, to: Point, variant: Literal["bh1", "bh2"]
) -> tuple[float, tuple[float, ...]]:
    """What x at `now` and the estimates at `points` count in the step to `to`."""
    nodes = nodes_of(points, now, to, lambda point: point.half_log_snr)
    h = to.half_log_snr - now.half_log_snr
    moments = moments_of_sample(h, len(nodes))
    if len(nodes) == 2:
        moments[1] = (moments[0] if variant == "bh2" else h) / 2
    return to.sigma / now.sigma, tuple(to.alpha * weight for weight in lagrange_weights(nodes, moments))
