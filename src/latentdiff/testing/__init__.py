"""Instruments for proving a solver, a loss or a schedule right: yours too.

Distributions whose best denoiser is known in closed form stand in for a trained network, so that what remains of an
error is the method's own.
"""

from __future__ import annotations

from latentdiff.testing._gaussian import GaussianDenoiser as GaussianDenoiser
from latentdiff.testing._mixture import DiscretizedGaussianDenoiser as DiscretizedGaussianDenoiser
from latentdiff.testing._mixture import MixtureDenoiser as MixtureDenoiser
from latentdiff.testing._oracle import Oracle as Oracle

__all__ = ["DiscretizedGaussianDenoiser", "GaussianDenoiser", "MixtureDenoiser", "Oracle"]
