"""Goals beside figures, and what a case found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.settings import Settings
from bench.timing import Ratio

Verdict = Literal["met", "short", "not measured"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be.

    Attributes:
        figure: Its name, such as `"diffusers / ours, time"`.
        cpu: The bound on a CPU in float32; None for no goal.
        cuda: The bound on a CUDA device.
        at_most: Whether the figure must not be above the bound, rather than not below.
        reason: Why it is not reached, where that is known; shown where it is not reached.
    """

    figure: str
    cpu: float | None = None
    cuda: float | None = None
    at_most: bool = False
    reason: str = ""

    def bound(self, settings: Settings) -> float | None:
        """The bound on this device."""
        return self.cuda if settings.is_cuda else self.cpu


@dataclass(frozen=True, slots=True)
class Judged:
    """A goal beside its figure; the figure is None where no contestant gave it."""

    figure: str
    bound: float
    at_most: bool
    value: Ratio | None
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the median reaches the bound."""
        if self.value is None:
            return "not measured"
        reached = self.value.median <= self.bound if self.at_most else self.value.median >= self.bound
        return "met" if reached else "short"


@dataclass(frozen=True, slots=True)
class Standing:
    """One contestant of a case.

    Attributes:
        name: Of the contestant.
        seconds: Median time; None where it was not timed.
        ratio: Its time over ours, pair by pair; above 1 where we are faster.
        error: Largest difference from our output over our largest value.
        mib: The most memory that a call holds, in MiB.
        synchronisations: How often a call waits for a CUDA device.
        launches: Kernels that a call launches.
        note: Why it was not timed, or with what reserve.
    """

    name: str
    seconds: float | None = None
    ratio: Ratio | None = None
    error: float | None = None
    mib: float | None = None
    synchronisations: int | None = None
    launches: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """What one size of a workload found.

    Attributes:
        name: Of the case, such as `"batch 8"`.
        standings: The contestants, ours first.
        figures: Further ratios by name, beside those that follow from the standings.
        judged: Goals beside figures.
        gflop: Work of one call, in 1e9 additions and multiplications.
        matrix_rate: What a matrix product reached in the same rounds, in 1e9 a second.
    """

    name: str
    standings: tuple[Standing, ...]
    figures: Mapping[str, Ratio] = field(default_factory=dict)
    judged: tuple[Judged, ...] = ()
    gflop: float | None = None
    matrix_rate: float | None = None


def figures_of(standings: Sequence[Standing]) -> dict[str, Ratio]:
    """Ratios of time and memory against each contestant, and against the fastest of those that compute the same."""
    ours, *peers = standings
    found: dict[str, Ratio] = {}
    for peer in peers:
        if peer.ratio is not None:
            found[f"{peer.name} / ours, time"] = peer.ratio
        if peer.mib and ours.mib:
            share = ours.mib / peer.mib
            found[f"ours / {peer.name}, memory"] = Ratio(share, share, share)
    same = [peer.ratio for peer in peers if peer.ratio is not None and not peer.note]
    if same:
        found["best peer / ours, time"] = min(same, key=lambda r: r.median)
    return found


def judge(goals: Sequence[Goal], figures: Mapping[str, Ratio], settings: Settings) -> tuple[Judged, ...]:
    """The goals of this device beside their figures."""
    bounds = [(goal, goal.bound(settings)) for goal in goals]
    return tuple(
        Judged(goal.figure, bound, goal.at_most, figures.get(goal.figure), goal.reason)
        for goal, bound in bounds
        if bound is not None
    )
