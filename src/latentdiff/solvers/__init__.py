"""Solvers: how one step is made.

| name | class | order | network calls a step |
| --- | --- | --- | --- |
| `ddpm` | `DDPM` | 1 (weak) | 1 |
| `ddim` | `DDIM` | 1 | 1 |
| `euler` | `Euler` | 1 | 1 |
| `heun` | `Heun` | 2 | 2 |
| `dpmpp_2m` | `DPMpp2M` | 2 | 1 |
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from latentdiff.solvers._ancestral import DDIM as DDIM
from latentdiff.solvers._ancestral import DDPM as DDPM
from latentdiff.solvers._base import Evaluation as Evaluation
from latentdiff.solvers._base import Solver as Solver
from latentdiff.solvers._base import Spacing as Spacing
from latentdiff.solvers._base import Stepped as Stepped
from latentdiff.solvers._euler import Euler as Euler
from latentdiff.solvers._euler import Heun as Heun
from latentdiff.solvers._multistep import DPMpp2M as DPMpp2M

SolverName: TypeAlias = Literal["ddim", "ddpm", "dpmpp_2m", "euler", "heun"]

SOLVERS: Final[dict[SolverName, type[Solver]]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "dpmpp_2m": DPMpp2M,
    "euler": Euler,
    "heun": Heun,
}

__all__ = [
    "DDIM",
    "DDPM",
    "SOLVERS",
    "DPMpp2M",
    "Euler",
    "Evaluation",
    "Heun",
    "Solver",
    "SolverName",
    "Spacing",
    "Stepped",
]
