"""Workloads beside peers: interleaved runs, ratios pair by pair. `python -m bench decode --rounds 5` runs one."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

WORKLOADS = ("solvers", "codebook", "decode")
"""One file each, with a `run(device, rounds)` that prints a table and returns its rows."""


def main() -> None:
    """Run the workloads that are named, or all, and write their figures as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {', '.join(WORKLOADS)}; all if none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    if unknown := set(arguments.workloads) - set(WORKLOADS):
        parser.error(f"no workload {', '.join(sorted(unknown))}: there are {', '.join(WORKLOADS)}")
    figures: dict[str, list[dict[str, object]]] = {}
    for name in arguments.workloads or WORKLOADS:
        module = importlib.import_module(f"bench.{name}")  # each needs its own peer only
        print(f"\n{name}: {module.__doc__.splitlines()[0]}")
        figures[name] = module.run(arguments.device, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
