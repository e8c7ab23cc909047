"""Solvers: how one step is made.

| name | class | order | network calls a step | noise |
| --- | --- | --- | --- | --- |
| `ddpm` | `DDPM` | 1 | 1 | yes |
| `ddim` | `DDIM` | 1 | 1 | `eta` > 0 |
| `plms` | `PLMS` | 2 | 1 | |
| `euler` | `Euler` | 1 | 1 | |
| `euler_ancestral` | `EulerAncestral` | 1 | 1 | yes |
| `heun` | `Heun` | 2 | 2 | |
| `edm` | `EDM` | 2 | 2 | `churn` > 0 |
| `dpm_2` | `DPM2` | 2 | 2 | |
| `dpm_2_ancestral` | `DPM2Ancestral` | 2 | 2 | yes |
| `dpm_adaptive` | `DPMAdaptive` | 3 | its own | |
| `lms` | `LMS` | 4 | 1 | |
| `deis` | `DEIS` | 3 | 1 | |
| `dpmpp_2s` | `DPMpp2S` | 2 | 2 | |
| `dpmpp_2s_ancestral` | `DPMpp2SAncestral` | 2 | 2 | yes |
| `dpmpp_sde` | `DPMppSDE` | 2 | 2 | yes |
| `dpmpp_2m` | `DPMpp2M` | 2 | 1 | |
| `dpmpp_2m_sde` | `DPMpp2MSDE` | 2 | 1 | yes |
| `dpmpp_3m` | `DPMpp3M` | 3 | 1 | |
| `dpmpp_3m_sde` | `DPMpp3MSDE` | 2 | 1 | yes |
| `unipc` | `UniPC` | 3 | 1 | |
| `lcm` | `LCM` | | 1 | yes |
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from latentdiff.solvers._adams import DEIS as DEIS
from latentdiff.solvers._adams import LMS as LMS
from latentdiff.solvers._adams import PLMS as PLMS
from latentdiff.solvers._adaptive import DPMAdaptive as DPMAdaptive
from latentdiff.solvers._base import Beginning as Beginning
from latentdiff.solvers._base import Evaluation as Evaluation
from latentdiff.solvers._base import Solver as Solver
from latentdiff.solvers._base import Spacing as Spacing
from latentdiff.solvers._base import Stepped as Stepped
from latentdiff.solvers._ddpm import DDIM as DDIM
from latentdiff.solvers._ddpm import DDPM as DDPM
from latentdiff.solvers._dpm import DPM2 as DPM2
from latentdiff.solvers._dpm import DPM2Ancestral as DPM2Ancestral
from latentdiff.solvers._dpm import DPMpp2S as DPMpp2S
from latentdiff.solvers._dpm import DPMpp2SAncestral as DPMpp2SAncestral
from latentdiff.solvers._dpm import DPMppSDE as DPMppSDE
from latentdiff.solvers._euler import EDM as EDM
from latentdiff.solvers._euler import Euler as Euler
from latentdiff.solvers._euler import EulerAncestral as EulerAncestral
from latentdiff.solvers._euler import Heun as Heun
from latentdiff.solvers._lcm import LCM as LCM
from latentdiff.solvers._multistep import DPMpp2M as DPMpp2M
from latentdiff.solvers._multistep import DPMpp2MSDE as DPMpp2MSDE
from latentdiff.solvers._multistep import DPMpp3M as DPMpp3M
from latentdiff.solvers._multistep import DPMpp3MSDE as DPMpp3MSDE
from latentdiff.solvers._unipc import UniPC as UniPC

SolverName: TypeAlias = Literal[
    "ddim",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_adaptive",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "lms",
    "plms",
    "unipc",
]

SOLVERS: Final[dict[SolverName, type[Solver]]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "deis": DEIS,
    "dpm_2": DPM2,
    "dpm_2_ancestral": DPM2Ancestral,
    "dpm_adaptive": DPMAdaptive,
    "dpmpp_2m": DPMpp2M,
    "dpmpp_2m_sde": DPMpp2MSDE,
    "dpmpp_2s": DPMpp2S,
    "dpmpp_2s_ancestral": DPMpp2SAncestral,
    "dpmpp_3m": DPMpp3M,
    "dpmpp_3m_sde": DPMpp3MSDE,
    "dpmpp_sde": DPMppSDE,
    "edm": EDM,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "lcm": LCM,
    "lms": LMS,
    "plms": PLMS,
    "unipc": UniPC,
}

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "EDM",
    "LCM",
    "LMS",
    "PLMS",
    "SOLVERS",
    "Beginning",
    "DPM2Ancestral",
    "DPMAdaptive",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp2S",
    "DPMpp2SAncestral",
    "DPMpp3M",
    "DPMpp3MSDE",
    "DPMppSDE",
    "Euler",
    "EulerAncestral",
    "Evaluation",
    "Heun",
    "Solver",
    "SolverName",
    "Spacing",
    "Stepped",
    "UniPC",
]
