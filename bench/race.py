"""A case of a workload: contestants built, their outputs compared, then timed in turns."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.cuda import launches, synchronisations
from bench.goals import Case, Goal, Standing, figures_of, judge
from bench.machine import matrix_product
from bench.memory import peak_bytes
from bench.settings import Settings
from bench.timing import Call, Ratio, cuda_seconds, host_seconds, in_turns, ratio

MATRIX = "matrix product"


@dataclass(frozen=True, slots=True)
class Contestant:
    """Somebody who does the work of a case.

    Attributes:
        name: As it stands in the tables; the library's own is `"ours"`.
        build: Makes the call to be timed, which returns what is compared. An ImportError: a package is missing.
        reserve: Why its output need not be ours, such as "same size, other function"; empty where it must.
    """

    name: str
    build: Callable[[], Call]
    reserve: str = ""


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest wanted value; infinite between different shapes."""
    if found.shape != wanted.shape:
        return math.inf
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()


def race(
    name: str,
    contestants: Sequence[Contestant],
    settings: Settings,
    *,
    goals: Sequence[Goal] = (),
    tolerance: float | None = None,
    difference: Callable[[Tensor, Tensor], float] = largest_difference,
    memory: bool = False,
    counted: str | None = None,
    clock: Callable[[Call], float] = host_seconds,
) -> Case:
    """Time the contestants in turns; the first is ours, and the others' outputs are compared with its own.

    Args:
        name: Of the case.
        contestants: Ours first.
        settings: Device, dtype, rounds.
        goals: What the figures should be.
        tolerance: The largest difference of outputs; None is that of a deep network.
        difference: Between an output and ours.
        memory: Whether to measure the most memory that each holds.
        counted: The contestant whose work is counted, for the share of the matrix rate, ours where it is missing; None
            for no count. Operations that torch cannot count, such as those of a compiled graph, are left out.
        clock: How a call is timed on a CPU.
    """
    clock = cuda_seconds if settings.is_cuda else clock
    tolerance = settings.tolerance if tolerance is None else tolerance
    standings, calls = _admitted(contestants, settings, tolerance, difference)
    gflop = None if counted is None else _gflop(calls.get(counted, calls[contestants[0].name]))
    timed = dict(calls)
    product, operations = matrix_product(settings)
    if gflop is not None:
        timed[MATRIX] = product
        product()
    rounds = _rounds(timed, clock, settings)
    times = in_turns(timed, rounds, clock)
    peaks = {contestant: peak_bytes(call) / 2**20 for contestant, call in calls.items()} if memory else {}
    standings = [_timed(standing, times, peaks) for standing in standings]
    if settings.is_cuda:
        standings = [_asked_of_cuda(standing, calls) for standing in standings]
    figures = _shares(times, gflop, operations)
    judged = judge(goals, figures_of(standings) | figures, settings)
    matrix_rate = operations / statistics.median(times[MATRIX]) / 1e9 if MATRIX in times else None
    del timed, calls
    gc.collect()
    return Case(name, tuple(standings), figures, judged, gflop, matrix_rate)


def _rounds(calls: Mapping[str, Call], clock: Callable[[Call], float], settings: Settings) -> int:
    """How many rounds there is time for, 2 at least, found by a second call of each, which is warm-up too."""
    round_of_all = 0.0
    for call in calls.values():
        round_of_all += clock(call)
        if round_of_all > settings.seconds / 2:  # slow enough that the start of a call is lost in it
            return 2
    return max(2, min(settings.rounds, int(settings.seconds / max(round_of_all, 1e-9))))


def _admitted(
    contestants: Sequence[Contestant],
    settings: Settings,
    tolerance: float,
    difference: Callable[[Tensor, Tensor], float],
) -> tuple[list[Standing], dict[str, Call]]:
    """Those that are installed and compute what ours computes, each called once; and a word on the others."""
    standings: list[Standing] = []
    calls: dict[str, Call] = {}
    wanted: Tensor | None = None
    for contestant in contestants:
        try:
            call = contestant.build()
        except ImportError as missing:
            standings.append(Standing(contestant.name, note=f"skipped: {missing}"))
            print(f"  {contestant.name} skipped: {missing}")
            continue
        output = call()
        if not isinstance(output, Tensor):
            raise TypeError(f"a contestant's call must return a tensor, got {type(output).__name__}")
        wanted = output.detach().clone() if wanted is None else wanted
        error = None if contestant.reserve else difference(output.detach(), wanted)
        if error is not None and not error <= tolerance:
            note = f"refused: its output differs by {error:.1e}, more than {tolerance:.0e}"
            standings.append(Standing(contestant.name, error=error, note=note))
            print(f"  {contestant.name} {note}")
            continue
        standings.append(Standing(contestant.name, error=error, note=contestant.reserve))
        calls[contestant.name] = call
    return standings, calls


def _timed(standing: Standing, times: Mapping[str, list[float]], peaks: Mapping[str, float]) -> Standing:
    if standing.name not in times:
        return standing
    ours = next(iter(times.values()))
    own = times[standing.name]
    against = None if own is ours else ratio(own, ours)
    return replace(standing, seconds=statistics.median(own), ratio=against, mib=peaks.get(standing.name))


def _asked_of_cuda(standing: Standing, calls: Mapping[str, Call]) -> Standing:
    if (call := calls.get(standing.name)) is None:
        return standing
    return replace(standing, synchronisations=synchronisations(call), launches=launches(call))


def _gflop(call: Call) -> float:
    """Work of one call, as torch counts it: matrix products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def _shares(times: Mapping[str, list[float]], gflop: float | None, operations: float) -> dict[str, Ratio]:
    """Each contestant's share of the rate of a matrix product, round by round."""
    if gflop is None:
        return {}
    work = gflop * 1e9 / operations
    return {
        f"{name}, share of the matrix rate": ratio([t * work for t in times[MATRIX]], own)
        for name, own in times.items()
        if name != MATRIX
    }
