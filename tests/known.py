"""Denoisers that know the sample, for the tests of losses."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff import Denoised, Denoiser, NoiseSchedule
from latentdiff._denoised import Denoise
from latentdiff._typing import Prediction
from latentdiff.testing import GaussianDenoiser

SCHEDULES = {
    "scaled_linear": NoiseSchedule.scaled_linear(100),
    "cosine": NoiseSchedule.cosine(50),
    "flow": NoiseSchedule.flow(20, shift=2.0),
    "edm": NoiseSchedule.edm(num_timesteps=30),
}


def known(prediction: Prediction, sample: Tensor, schedule: NoiseSchedule, offset: float = 0.0) -> Denoise:
    """A denoiser that takes `sample + offset` for the only sample there is."""
    oracle = GaussianDenoiser(schedule=schedule, mean=sample.double() + offset, std=0.0)
    if prediction == "epsilon" and schedule.frame == "flow":  # no `Denoiser`: it refuses epsilon where alpha ends at 0
        return oracle
    return Denoiser(oracle.network(prediction, sigma_data=0.7), schedule, prediction, sigma_data=0.7)


class Watched:
    """Remembers what a denoiser is asked."""

    def __init__(self, denoiser: Denoise) -> None:
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.x_t = torch.empty(0)

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        self.x_t = x_t
        return self.denoiser(x_t, t, condition)
