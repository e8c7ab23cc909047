"""Figures of quality, computed in float64: reconstruction, latents, and distances between sets of samples."""

from __future__ import annotations

from latentdiff.evaluation._frechet import frechet_distance as frechet_distance
from latentdiff.evaluation._latents import CodebookUse as CodebookUse
from latentdiff.evaluation._latents import LatentStatistics as LatentStatistics
from latentdiff.evaluation._latents import codebook_use as codebook_use
from latentdiff.evaluation._latents import latent_statistics as latent_statistics
from latentdiff.evaluation._neighbours import PrecisionRecall as PrecisionRecall
from latentdiff.evaluation._neighbours import precision_recall as precision_recall
from latentdiff.evaluation._reconstruction import psnr as psnr
from latentdiff.evaluation._reconstruction import ssim as ssim

__all__ = [
    "CodebookUse",
    "LatentStatistics",
    "PrecisionRecall",
    "codebook_use",
    "frechet_distance",
    "latent_statistics",
    "precision_recall",
    "psnr",
    "ssim",
]
