"""Import time over `import torch`: processor seconds in a process of its own, with bytecode that is there already."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

from bench.goals import Case, Goal, Standing, judge
from bench.settings import Settings
from bench.timing import Ratio, in_turns, ratio

GOALS = (Goal("ours, seconds", cpu=0.3, at_most=True),)
PEERS = {
    "ours": "latentdiff",
    "diffusers": "diffusers.models.unets.unet_2d_condition",
    "MONAI": "monai.networks.nets",
}
SCRIPT = """
import time, warnings
warnings.simplefilter("ignore")
import torch
start = time.process_time()
import {module}
print(time.process_time() - start)
"""


def run(settings: Settings) -> list[Case]:
    """Seconds of each, in turns."""
    if settings.is_cuda:
        return []
    with tempfile.TemporaryDirectory() as cache:
        asked = {name: partial(seconds, module, cache) for name, module in PEERS.items()}
        if settings.quick:
            asked = {"ours": asked["ours"]}
        standings, calls = _installed(asked)
        times = in_turns(calls, 2 if settings.quick else min(settings.rounds, 3), lambda call: call())  # type: ignore[arg-type, return-value]
    own = times["ours"]
    for name, found in times.items():
        against = None if found is own else ratio(found, own)
        standings.append(Standing(name, statistics.median(found), against))
    low, median, high = statistics.quantiles(own, n=4, method="inclusive")
    figures = {"ours, seconds": Ratio(median, low, high)}
    return [
        Case(
            "cold process",
            tuple(sorted(standings, key=lambda standing: standing.name != "ours")),
            figures,
            judge(GOALS, figures, settings),
        )
    ]


def _installed(asked: dict[str, Callable[[], float]]) -> tuple[list[Standing], dict[str, Callable[[], float]]]:
    """Those that can be imported, imported once so that bytecode is there, and a word on the others."""
    missing: list[Standing] = []
    calls: dict[str, Callable[[], float]] = {}
    for name, call in asked.items():
        try:
            call()
            calls[name] = call
        except ImportError as error:
            missing.append(Standing(name, note=f"skipped: {error}"))
            print(f"  {name} skipped: {error}")
    return missing, calls


def seconds(module: str, cache: str) -> float:
    """Processor time, which other processes do not disturb, of the import of a module once torch is there."""
    environment = os.environ | {"PYTHONPYCACHEPREFIX": cache, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(module=module)], env=environment, capture_output=True, text=True
    )
    if ran.returncode:
        raise ImportError(ran.stderr.strip().splitlines()[-1])
    return float(ran.stdout.split()[-1])
