"""Two calls timed in turns: what a shared machine does to one it does to the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Ratio:
    """The peer's time over ours, pair by pair.

    Attributes:
        median: Above 1 where we are faster.
        low: First quartile.
        high: Third quartile.
        ours: Our median time, in seconds.
    """

    median: float
    low: float
    high: float
    ours: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} ... {self.high:.2f})"


def seconds(call: Callable[[], object]) -> float:
    """Time of one call, the device's work included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def compare(own: Callable[[], object], peer: Callable[[], object], rounds: int) -> Ratio:
    """Time both `rounds` times, at least 2, in turns, after one call of each that does not count."""
    for call in (own, peer):
        call()
    pairs = [(seconds(own), seconds(peer)) for _ in range(rounds)]
    low, median, high = statistics.quantiles((theirs / ours for ours, theirs in pairs), n=4)
    return Ratio(median, low, high, statistics.median(ours for ours, _ in pairs))
