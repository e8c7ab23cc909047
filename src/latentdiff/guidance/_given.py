"""A denoiser under one condition."""

from __future__ import annotations

from dataclasses import dataclass

from latentdiff._denoised import Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance


@dataclass(frozen=True, eq=False)
class Given(Guidance):
    """The denoiser under `condition`, whatever condition it is asked with.

    Makes a model unconditional inside other guidance: `Classifier(Given(denoiser), log_prob)` shows the label to the
    classifier alone.

    Attributes:
        denoiser: Who answers.
        condition: What it is always given, such as None, `encoder.null(batch)` or a weaker prompt.
    """

    condition: object = None

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise; arguments as for any denoiser, `condition` is not used."""
        return self.denoiser(x_t, t, self.condition)
