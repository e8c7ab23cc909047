"""Data of which everything is known, from so much noise that where a walk begins leaves no trace."""

from __future__ import annotations

import torch

from latentdiff import NoiseSchedule
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser

WIDE = NoiseSchedule.edm(sigma_min=0.02, sigma_max=200.0)
"""From where a first step of first order leaves no trace: the estimate of the sample hardly changes there."""
EIGHT = GaussianDenoiser(mean=torch.linspace(-0.5, 0.5, 8), std=torch.logspace(-1.3, 0.2, 8), schedule=WIDE)
MODES = MixtureDenoiser(
    weights=torch.tensor([0.5, 0.3, 0.2]),
    means=torch.tensor([-1.0, -0.3, 1.0]),
    stds=torch.tensor([0.2, 0.3, 0.25]),
    schedule=WIDE,
)
