"""The one interface of the library: a denoiser, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Times


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    r"""What a denoiser makes of \(x_t = \alpha_t x_0 + \sigma_t \epsilon\).

    Attributes:
        sample: The estimate \(E[x_0 \mid x_t]\), `[batch, channels, *spatial]`.
        noise: The estimate \(E[\epsilon \mid x_t]\), same shape; `alpha * sample + sigma * noise == x_t`.
        log_variance: Of the reverse step to t - 1, where the denoiser knows it: same shape, or
            `[batch, 1, ...]`; float64.
    """

    sample: Latents
    noise: Latents
    log_variance: Tensor | None = None


class Denoise(Protocol):
    """Anything that estimates the sample and the noise in a noisy sample: a trained model or a closed form."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule that `t` refers to."""
        ...  # pragma: no cover

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise.

        Args:
            x_t: `[batch, channels, *spatial]`, noisy, float32 or float64.
            t: `[batch]`, `[]` or a number, in -1 ... T - 1.
            condition: What the network takes: a `Condition`, a tensor, None.
        """
        ...  # pragma: no cover
