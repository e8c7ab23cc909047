"""Figures of quality, computed in float64: reconstruction, and distances between sets of samples."""

from __future__ import annotations

from latentdiff.evaluation._frechet import frechet_distance as frechet_distance
from latentdiff.evaluation._neighbours import PrecisionRecall as PrecisionRecall
from latentdiff.evaluation._neighbours import precision_recall as precision_recall
from latentdiff.evaluation._reconstruction import psnr as psnr

__all__ = ["PrecisionRecall", "frechet_distance", "precision_recall", "psnr"]
