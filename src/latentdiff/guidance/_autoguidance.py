"""Guidance by a worse version of the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentdiff._denoised import Denoise, Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance, Scale, check_scale, extrapolate, scale_at


@dataclass(frozen=True, eq=False)
class Autoguidance(Guidance):
    """Autoguidance: weak + scale * (strong - weak) (Karras et al. 2024, arXiv 2406.02507, sec. 2).

    The weak model makes the errors of the strong one, and more of them; leading away from it corrects them without
    narrowing what is drawn. It is a smaller or less trained model of the same task, and gets the same condition; one
    that is to see another condition, or none, is `Given(weak, condition)`.

    Attributes:
        denoiser: The strong model.
        weak: The weak one, of the same schedule.
        scale: 1 is the strong model itself, 0 the weak one (one call each); or a function of the share (t + 1) / T of
            the time.

    Raises:
        ValueError: If the schedules differ or `scale` is not finite.
        TypeError: If `scale` is neither a number nor a function.
    """

    weak: Denoise
    scale: Scale

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        if self.weak.schedule != self.denoiser.schedule:
            raise ValueError(
                f"weak must have denoiser's schedule {self.denoiser.schedule}, got {self.weak.schedule}; times would "
                "mean different noise"
            )

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        scale = scale_at(self.scale, t, self.schedule)
        if not isinstance(scale, Tensor):
            if scale == 1:
                return self.denoiser(x_t, t, condition)
            if scale == 0:
                return self.weak(x_t, t, condition)
        return extrapolate(self.weak(x_t, t, condition), self.denoiser(x_t, t, condition), scale)
