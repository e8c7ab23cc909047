"""Workloads beside peers: `python -m bench unet train --rounds 5` runs two, with no names all of them.

With `--json` figures are kept in a file, and those of workloads that were not run stay; `--markdown` writes the page
from all that is in it.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import torch

from bench import figures, report
from bench.goals import Case
from bench.machine import described
from bench.settings import Settings

WORKLOADS = (
    "unet",
    "unet_compiled",
    "unet_sd1",
    "train",
    "sampling",
    "solvers",
    "autoencoder",
    "decode",
    "codebook",
    "imports",
    "size",
)
"""One file each, with `run(settings)`, which returns its cases, and the goals as data."""


def main(arguments: list[str] | None = None) -> None:
    """Run the workloads that are named, or all; `--rounds 0` runs none, to write the page anew."""
    options, settings = _options(arguments)
    found: dict[str, tuple[str, list[Case]]] = {}
    for name in options.workloads or WORKLOADS if options.rounds else ():
        start = time.perf_counter()
        print(f"\n{name}: {title(name)}", flush=True)
        torch.manual_seed(0)
        cases: list[Case] = importlib.import_module(f"bench.{name}").run(settings)
        print(*report.summary(cases), sep="\n")
        print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
        found[name] = (described(settings), cases)
        if options.json:
            figures.write(options.json, {name: found[name]})
    if options.markdown:
        known = figures.read(options.json) if options.json and options.json.exists() else found
        listed = [name for name in WORKLOADS if name in known]
        machines = {name: known[name][0] for name in listed}
        options.markdown.write_text(report.page(machines, {name: (title(name), known[name][1]) for name in listed}))


def title(name: str) -> str:
    """What a workload says of itself in its first line."""
    return (importlib.import_module(f"bench.{name}").__doc__ or "").splitlines()[0]


def _options(arguments: list[str] | None) -> tuple[argparse.Namespace, Settings]:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of {', '.join(WORKLOADS)}; all if none")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="bfloat16 on CUDA, float32 elsewhere if not given"
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU; what torch takes if not given")
    parser.add_argument("--rounds", type=int, default=15, help="at most; 0 to write the page only")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the rounds of a case, about")
    parser.add_argument("--quick", action="store_true", help="tiny networks and three rounds")
    parser.add_argument("--json", type=Path, help="where figures are kept")
    parser.add_argument("--markdown", type=Path, help="the page to write")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"no workload {', '.join(sorted(unknown))}: there are {', '.join(WORKLOADS)}")
    default = "bfloat16" if torch.device(options.device).type == "cuda" else "float32"
    rounds = 3 if options.quick else options.rounds
    dtype: torch.dtype = getattr(torch, options.dtype or default)
    return options, Settings(options.device, dtype, rounds, options.seconds, options.quick)


if __name__ == "__main__":
    main()
