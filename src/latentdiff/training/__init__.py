"""What training needs beyond a loss and an optimiser."""

from __future__ import annotations

from latentdiff.training._ema import EMA as EMA

__all__ = ["EMA"]
