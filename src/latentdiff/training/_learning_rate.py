"""The learning rate over the steps."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal, TypeAlias, get_args

from latentdiff._checks import check_choice, check_count, check_positive, check_rate

Decay: TypeAlias = Literal["none", "cosine", "linear", "inverse_sqrt"]
DECAYS: Final[tuple[Decay, ...]] = get_args(Decay)


@dataclass(frozen=True)
class LearningRate:
    r"""Learning rate as a function of the step: up along a line, then down.

    In the first `warm_up` steps, number n having n steps before it, the rate is `peak` times (n + 1) / `warm_up`. Then,
    with \(p\) the share of the steps after the warm-up that are done:

    | `decay` | factor |
    | --- | --- |
    | `"none"` | 1 |
    | `"cosine"` | \(f + (1 - f) (1 + \cos \pi p) / 2\), f = `final` (Loshchilov and Hutter 2017, arXiv:1608.03983) |
    | `"linear"` | \(f + (1 - f) (1 - p)\) |
    | `"inverse_sqrt"` | \(\sqrt{w / \max(n + 1, w)}\), w = `warm_up` (Karras et al. 2024, arXiv:2312.02696) |

    Attributes:
        peak: The highest rate.
        warm_up: Number of steps on the way up.
        decay: How it goes down.
        steps: Length of the training, for `"cosine"` and `"linear"`; after it the rate stays as it is.
        final: Share of `peak` that is left then.

    Raises:
        ValueError: If a number is out of range, or `steps` is missing or has no use.
        TypeError: If a number is none.
    """

    peak: float
    _: KW_ONLY
    warm_up: int = 0
    decay: Decay = "none"
    steps: int | None = None
    final: float = 0.0

    def __post_init__(self) -> None:
        check_positive("peak", self.peak)
        check_count("warm_up", self.warm_up, least=0)
        check_choice("decay", self.decay, DECAYS)
        check_rate("final", self.final)
        if self.decay in {"none", "inverse_sqrt"}:
            if self.steps is not None or self.final:
                raise ValueError(f"steps and final must be left out for decay={self.decay!r}, which never ends")
            if self.decay == "inverse_sqrt" and not self.warm_up:
                raise ValueError("warm_up must be at least 1 for decay='inverse_sqrt', which begins there, got 0")
        elif self.steps is None or self.steps <= self.warm_up:
            raise ValueError(
                f"steps must be given for decay={self.decay!r}, more than warm_up={self.warm_up}, got {self.steps}"
            )

    def at(self, step: int) -> float:
        """The rate of the step that has `step` others before it."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        return self.peak * self._factor(step)

    def _factor(self, step: int) -> float:
        if self.decay == "inverse_sqrt":
            return math.sqrt(self.warm_up / max(step + 1, self.warm_up))
        if self.steps is None:
            return 1.0
        share = min(1.0, (step - self.warm_up) / (self.steps - self.warm_up))
        left = (1 + math.cos(math.pi * share)) / 2 if self.decay == "cosine" else 1 - share
        return self.final + (1 - self.final) * left
