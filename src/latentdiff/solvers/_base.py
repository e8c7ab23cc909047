r"""What a solver is: one step along the path, a pure function.

A solver walks from one `Point` (time, alpha, sigma) to the next, less noisy one. It sees the noisy latents, the two
points and an `Evaluation`, which answers with estimates of sample and noise; never a network, a prediction type or a
guidance scale. What it needs of earlier steps is an argument and a result.

Two facts serve most solvers. With \(\hat x_0\) and \(\hat\epsilon\) held fixed, the path leads to
\(x_s = \alpha_s \hat x_0 + \sigma_s \hat\epsilon\) (`straight`): exact in every frame, at alpha = 0 and sigma = 0
too. And with \(y = x / \alpha\), \(\ell = \sigma / \alpha\) the probability-flow equation is
\(dy/d\ell = \hat\epsilon\) (Karras et al. 2022, arXiv 2206.00364, eq. 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from torch import Tensor

from latentdiff._denoised import Denoise, Denoised
from latentdiff._noise import draw_noise
from latentdiff._schedule import Point
from latentdiff._typing import Generator, Latents

Spacing: TypeAlias = Literal[
    "leading", "linspace", "trailing", "karras", "exponential", "polyexponential", "beta", "logsnr"
]

DRAWS_PER_STEP = 256
"""Room for numbered draws of noise in one step."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a solver may ask in one step.

    Attributes:
        denoiser: Whose estimates are followed.
        condition: Passed on to it.
        generator: Where noise comes from.
        index: Number of the step, from 0.
    """

    denoiser: Denoise
    condition: object
    generator: Generator
    index: int

    def __call__(self, x: Latents, point: Point) -> Denoised:
        """Sample and noise in `x` `[batch, channels, *spatial]` at `point`: one call of the network."""
        return self.denoiser(x, point.t, self.condition)

    def noise(self, x: Latents, draw: int = 0) -> Tensor:
        """Standard normal noise like `x`: draw number `draw` (0 ... 255) of this step."""
        step = (self.index + 1) * DRAWS_PER_STEP + draw
        return draw_noise(x.shape, self.generator, step=step, device=x.device, dtype=x.dtype)

    def between(self, now: Point, to: Point, fraction: float) -> Point:
        """The point at a `fraction` of the way from `now` to `to`, measured in log SNR (both finite)."""
        half = now.half_log_snr + fraction * (to.half_log_snr - now.half_log_snr)
        schedule = self.denoiser.schedule
        return schedule.point(schedule.timestep(2 * half))


class Stepped(NamedTuple):
    """Result of one step: the latents at the new point, the estimate followed, what the next step needs."""

    x: Latents
    denoised: Denoised
    state: object = None


class Solver(ABC):
    """One way to make a step. Subclasses are frozen dataclasses of their options."""

    order: ClassVar[int]
    """Order of convergence on smooth problems: the error falls like steps ** -order (weak order if stochastic)."""

    stochastic: ClassVar[bool] = False
    """Whether steps draw noise."""

    default_spacing: ClassVar[Spacing] = "trailing"
    """The spacing of times that suits this solver."""

    @abstractmethod
    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Walk from `now` to `to`.

        Args:
            denoise: Estimates and noise.
            x: `[batch, channels, *spatial]` at `now`, float32 or float64; not changed.
            now: Where `x` is.
            to: Where to go, less noisy; sigma = 0 at the end of most walks.
            state: What the last step returned; None at first.
        """


def weighted_sum(*terms: tuple[float, Tensor]) -> Tensor:
    """The sum of weight * tensor over `terms`, in as few passes over memory as there are terms."""
    weight, tensor = terms[0]
    total = tensor * weight
    for weight, tensor in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total


def straight(denoised: Denoised, to: Point) -> Latents:
    """Keep what is sample and what is noise, change their scales: alpha * sample + sigma * noise at `to`."""
    return weighted_sum((to.alpha, denoised.sample), (to.sigma, denoised.noise))
