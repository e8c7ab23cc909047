"""A sample held within fixed bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from latentdiff._denoised import Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance, with_sample


@dataclass(frozen=True, eq=False)
class Clip(Guidance):
    """The estimate of the sample is clipped to [low, high], and the noise follows from it.

    For images in [-1, 1], as DDPM samples them; latents have no such bounds. Implementations that clip the sample but
    keep the old noise leave the path, since the two then no longer make up x_t.

    Attributes:
        denoiser: What is guided.
        low: Least value of the data.
        high: Greatest value of the data, above `low`.

    Raises:
        ValueError: If `low` is not below `high`.
    """

    holds_condition: ClassVar[bool] = False

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        denoised = self.denoiser(x_t, t, condition)
        return with_sample(denoised, denoised.sample.clamp(self.low, self.high), t, self.schedule)
