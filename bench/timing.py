"""Calls timed in turns: what a shared machine does to one it does to the others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

Call: TypeAlias = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Quotients of times, pair by pair.

    Attributes:
        median: Of the quotients, which is not the quotient of the medians.
        low: First quartile.
        high: Third quartile.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} ... {self.high:.2f})"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """How many times as long the first took as the second, of two or more pairs from the same rounds."""
    quotients = [a / b for a, b in zip(numerators, denominators, strict=True)]
    low, median, high = statistics.quantiles(quotients, n=4, method="inclusive")
    return Ratio(median, low, high)


def host_seconds(call: Call) -> float:
    """Time of one call on the CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def processor_seconds(call: Call) -> float:
    """Time that the processors gave to one call, for work too short for a shared machine's clock."""
    start = time.process_time()
    call()
    return time.process_time() - start


def cuda_seconds(call: Call) -> float:
    """Time of one call between two events of the current CUDA stream, the host's work included where it is longer."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def in_turns(
    calls: Mapping[str, Call], rounds: int, clock: Callable[[Call], float] = host_seconds
) -> dict[str, list[float]]:
    """Time every call once a round, each round beginning with another one, without warm-up."""
    names, times = list(calls), {name: [0.0] * rounds for name in calls}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name][number] = clock(calls[name])
    return times
