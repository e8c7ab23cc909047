"""Labelled data of which everything is known, and every kind of guidance over it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentdiff import Denoised, NoiseSchedule, guidance
from latentdiff._denoised import Denoise
from latentdiff._typing import Times
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser

EVENT = (2, 5)
BATCH = 4

SCHEDULES = {
    "variance_preserving": NoiseSchedule.cosine(),
    "zero_terminal_snr": NoiseSchedule.scaled_linear().zero_terminal_snr(),
    "variance_exploding": NoiseSchedule.edm(),
    "flow": NoiseSchedule.flow(shift=2.0),
}
TIMES = (-1.0, 0.0, 0.5, 321.0, 998.25, 999.0)


def labelled(schedule: NoiseSchedule, seed: int = 0) -> MixtureDenoiser:
    """Three classes of unequal weight, mean and spread; the condition is a class, or none."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(3, *EVENT, dtype=torch.float64, generator=generator)
    return MixtureDenoiser(
        weights=torch.tensor([0.5, 0.3, 0.2]), means=means, stds=torch.tensor([0.3, 0.5, 0.8]), schedule=schedule
    )


def labels() -> Tensor:
    return torch.tensor([2, 0, 1, 2])


def noised(data: MixtureDenoiser, t: Times, seed: int = 1) -> Tensor:
    """What a sampler would see at `t`, float64 `[BATCH, *EVENT]`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(BATCH, *EVENT, dtype=torch.float64, generator=generator)
    return data.schedule.add_noise(data.draw((BATCH, *EVENT), generator), noise, t)


def classifier(data: MixtureDenoiser) -> guidance.LogProb:
    """The exact one: log p(class | x_t)."""

    def log_prob(x_t: Tensor, t: Times, condition: object) -> Tensor:
        assert isinstance(condition, Tensor)
        return data.log_posterior(x_t, t).gather(1, condition.unsqueeze(1)).squeeze(1)

    return log_prob


def weak(schedule: NoiseSchedule) -> GaussianDenoiser:
    return GaussianDenoiser(mean=0.2, std=1.1, schedule=schedule)


GUIDANCES: dict[str, Callable[[MixtureDenoiser], Denoise]] = {
    "ClassifierFree": lambda data: guidance.ClassifierFree(data, 3.0),
    "ClassifierFree changing": lambda data: guidance.ClassifierFree(data, lambda share: 1 + 4 * share),
    "ClassifierFree rescaled": lambda data: guidance.ClassifierFree(data, 5.0, rescale=0.7),
    "ClassifierFree in an interval": lambda data: guidance.ClassifierFree(data, 5.0, interval=(0.2, 0.8)),
    "Classifier": lambda data: guidance.Classifier(data, classifier(data), 2.0),
    "Classifier changing": lambda data: guidance.Classifier(data, classifier(data), lambda share: 3 * share),
    "Autoguidance": lambda data: guidance.Autoguidance(data, weak(data.schedule), 2.5),
    "Projected": lambda data: guidance.Projected(data, 4.0, eta=0.3, max_norm=1.5),
    "PerpendicularNegative": lambda data: guidance.PerpendicularNegative(data, 4.0, labels().roll(1), weight=0.8),
    "Clip": lambda data: guidance.Clip(data, -0.4, 0.6),
    "DynamicThreshold": lambda data: guidance.DynamicThreshold(data, 0.8, 0.5),
    "Given": lambda data: guidance.Given(data, labels().roll(1)),
    "all at once": lambda data: guidance.DynamicThreshold(
        guidance.Autoguidance(guidance.ClassifierFree(data, 2.0), weak(data.schedule), lambda share: 2 - share),
        limit=0.5,
    ),
}


def recombined(denoised: Denoised, schedule: NoiseSchedule, t: float) -> Tensor:
    """alpha * sample + sigma * noise."""
    point = schedule.point(t)
    return point.alpha * denoised.sample + point.sigma * denoised.noise
