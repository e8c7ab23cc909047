"""What training needs beyond a loss and an optimiser."""

from __future__ import annotations

from latentdiff.training._average import Average as Average
from latentdiff.training._batches import Batches as Batches
from latentdiff.training._cache import LatentCache as LatentCache
from latentdiff.training._cache import cache_latents as cache_latents
from latentdiff.training._ema import EMA as EMA
from latentdiff.training._engine import NonFiniteError as NonFiniteError
from latentdiff.training._fingerprint import Fingerprint as Fingerprint
from latentdiff.training._learning_rate import LearningRate as LearningRate
from latentdiff.training._objective import Objective as Objective
from latentdiff.training._parallel import Replicated as Replicated
from latentdiff.training._parallel import Sharded as Sharded
from latentdiff.training._parallel import join_processes as join_processes
from latentdiff.training._power_ema import PowerEMA as PowerEMA
from latentdiff.training._ready import diffusion_objective as diffusion_objective
from latentdiff.training._ready import first_stage_objectives as first_stage_objectives
from latentdiff.training._sharding import whole_state as whole_state
from latentdiff.training._snapshots import EMASnapshots as EMASnapshots
from latentdiff.training._step import SampleNoise as SampleNoise
from latentdiff.training._step import Step as Step
from latentdiff.training._trainer import Trainer as Trainer

__all__ = [
    "Average",
    "Batches",
    "EMA",
    "EMASnapshots",
    "Fingerprint",
    "LatentCache",
    "LearningRate",
    "NonFiniteError",
    "Objective",
    "PowerEMA",
    "Replicated",
    "SampleNoise",
    "Sharded",
    "Step",
    "Trainer",
    "cache_latents",
    "diffusion_objective",
    "first_stage_objectives",
    "join_processes",
    "whole_state",
]
