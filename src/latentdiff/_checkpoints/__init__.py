"""Model files: writing and reading."""

from __future__ import annotations

from latentdiff._checkpoints._load import export as export
from latentdiff._checkpoints._load import load as load
from latentdiff._checkpoints._native import save as save

__all__ = ["export", "load", "save"]
