"""Write the tables of the page "Measured": `python tests/measured.py docs/measured.md`.

Each table stands between two comments with its name; what stands around them is written by hand and stays. Everything
is computed in float64 and without chance, so another machine finds the same numbers to the digits shown, but for those
that are rounding alone.
"""

from __future__ import annotations

import re
import sys
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

import diffusers
import torch

from latentdiff.solvers import Spacing
from measured_differences import DIFFERENCES
from measured_orders import DEFAULTS, GUIDANCE_TABLES, ORDERS, SCALES, SPACING_TABLES, SPACINGS, WEAK_ORDERS, Row
from peers import PAIRS, PEERS, SCHEDULES, against_diffusers, against_reference

GRIDS: Final[tuple[tuple[int, Spacing], ...]] = ((5, "trailing"), (11, "karras"), (20, "logsnr"), (24, "beta"))


def deviation(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return ((got - want).abs().max() / want.abs().max()).item()


def reference_row(name: str) -> list[str]:
    """The largest deviation over schedules and grids."""
    ends = (against_reference(name, SCHEDULES[s], *grid) for s, grid in product(SCHEDULES, GRIDS))
    return [f"`{PAIRS[name][0]}`", f"{max(deviation(*pair[:2]) for pair in ends if pair):.0e}"]


def peer_row(name: str) -> list[str]:
    """The scheduler, and the deviation from it."""
    return [f"`{PEERS[name][1]}`", f"{deviation(*against_diffusers(name)):.0e}"]


FRAMES: Final = ("variance preserving", "the same from pure noise", "exploding", "flow")
TABLES: Final[dict[str, tuple[tuple[str, ...], dict[str, Row]]]] = {
    "orders": (
        (
            "solver",
            "order",
            "calls a step",
            "slope, normal",
            "slope, modes",
            "20 steps, normal",
            "20 steps, modes",
            *FRAMES,
        ),
        ORDERS,
    ),
    "weak orders": (("solver", "weak order", "calls a step", "slope", "variance at 20 steps", *FRAMES), WEAK_ORDERS),
    "diffusers": (
        ("solver", f"of diffusers {diffusers.__version__}", "deviation"),
        {name: partial(peer_row, name) for name in PEERS},
    ),
    "formulas": (("name", "solver", "deviation"), {name: partial(reference_row, name) for name in PAIRS}),
    "differences": (("", "measured", f"diffusers {diffusers.__version__}, or the formula", "latentdiff"), DIFFERENCES),
    **{f"spacing, {name}": (("solver", *SPACINGS), rows) for name, rows in SPACING_TABLES.items()},
    "defaults": (("solver", *SPACING_TABLES), DEFAULTS),
    **{
        f"guidance, {name}": (("solver", *(f"scale {scale:g}" for scale in SCALES)), rows)
        for name, rows in GUIDANCE_TABLES.items()
    },
}
"""Heads and rows of all tables."""


def markers(name: str) -> tuple[str, str]:
    return f"<!-- measured: {name} -->", f"<!-- end of {name} -->"


def line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(name: str) -> str:
    """Compute a table."""
    head, rows = TABLES[name]
    lines = [line(head), line(["---"] * len(head))]
    return "\n".join(lines + [line([row, *cells()]) for row, cells in rows.items()])


def rewritten(page: str, tables: dict[str, str]) -> str:
    """The page with these tables in place of those it has.

    Raises:
        ValueError: If the page has no place for one.
    """
    for name, text in tables.items():
        first, last = markers(name)
        if page.count(first) != 1 or page.count(last) != 1:
            raise ValueError(f"page must have one place for {name!r}, between {first} and {last}")
        before, rest = page.split(first)
        page = f"{before}{first}\n\n{text}\n\n{last}{rest.split(last)[1]}"
    return page


def rows_on(page: str, name: str) -> dict[str, list[str]]:
    """The rows of a table on the page, without its head, by their first cell."""
    first, last = markers(name)
    lines = re.findall(r"^\| (.*) \|$", page.split(first)[1].split(last)[0], re.MULTILINE)
    split = [one.split(" | ") for one in lines[2:]]
    return {name: cells for name, *cells in split}


def main(path: Path, *names: str) -> None:
    """Rewrite the tables on a page, or those named."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="diffusers")
    tables = {}
    for name in names or TABLES:
        tables[name] = table(name)
        print(name, flush=True)
    path.write_text(rewritten(path.read_text(), tables))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
