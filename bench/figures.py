"""Figures in a file: what several runs found, workload by workload."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.goals import Case, Judged, Standing
from bench.timing import Ratio


def write(path: Path, found: Mapping[str, tuple[str, Sequence[Case]]]) -> None:
    """Put the machine and the cases of each workload into a file, in place of what it said of them."""
    data = json.loads(path.read_text()) if path.exists() else {}
    for name, (machine, cases) in found.items():
        data[name] = {"machine": machine, "cases": [asdict(case) for case in cases]}
    path.write_text(json.dumps(data, indent=2) + "\n")


def read(path: Path) -> dict[str, tuple[str, list[Case]]]:
    """The machine and the cases of each workload."""
    data = json.loads(path.read_text())
    return {name: (entry["machine"], [_case(case) for case in entry["cases"]]) for name, entry in data.items()}


def _case(data: dict[str, Any]) -> Case:
    standings = tuple(Standing(**(one | {"ratio": _ratio(one["ratio"])})) for one in data["standings"])
    judged = tuple(Judged(**(one | {"value": _ratio(one["value"])})) for one in data["judged"])
    figures = {name: Ratio(**figure) for name, figure in data["figures"].items()}
    return Case(**(data | {"standings": standings, "judged": judged, "figures": figures}))


def _ratio(data: dict[str, float] | None) -> Ratio | None:
    return None if data is None else Ratio(**data)
