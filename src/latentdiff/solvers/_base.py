r"""What a solver is: one step along the path, a pure function.

A solver walks from one `Point` (time, alpha, sigma) to the next, less noisy one. It sees the noisy latents, the two
points and an `Evaluation`, which answers with estimates of sample and noise; never a network, a prediction type or a
guidance scale. What it needs of earlier steps is an argument and a result.

With \(y = x / \alpha\) and the noise level \(\ell = \sigma / \alpha = e^{-\lambda}\) the probability-flow equation of
every schedule is \(dy/d\ell = \hat\epsilon\) (Karras et al. 2022, arXiv 2206.00364, eq. 1). Three exact solutions
serve all solvers:

| held fixed | \(x_s\) | function |
| --- | --- | --- |
| \(\hat x_0\) and \(\hat\epsilon\) of one estimate | \(\alpha_s \hat x_0 + \sigma_s \hat\epsilon\) | `straight` |
| \(\hat\epsilon\) | \(\frac{\alpha_s}{\alpha_t} x_t + \alpha_s (\ell_s - \ell_t)\,\hat\epsilon\) | `along_noise` |
| \(\hat x_0\) | \(\frac{\sigma_s}{\sigma_t} x_t + \alpha_s (1 - \ell_s / \ell_t)\,\hat x_0\) | `along_sample` |

They agree for one estimate at \(x_t\); `straight` is good at alpha = 0 and at sigma = 0 too, so every solver takes it
into and out of the ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from latentdiff._brownian import BrownianNoise
from latentdiff._denoised import Denoise, Denoised
from latentdiff._noise import draw_noise
from latentdiff._schedule import NoiseSchedule, Point
from latentdiff._typing import Generator, Latents

Spacing: TypeAlias = Literal[
    "leading", "linspace", "trailing", "karras", "exponential", "polyexponential", "beta", "logsnr"
]

Beginning: TypeAlias = Literal["variance_preserving", "variance_exploding", "flow", "pure_noise"]
"""The frame of a schedule, but for a variance-preserving one that begins in pure noise, such as a cosine schedule."""

# Where each kind of solver had small errors on data of known flow, guided too: the page "Measured" has the figures.
EVEN_IN_TIME: Final[Mapping[Beginning, Spacing]] = MappingProxyType(
    {
        "variance_preserving": "trailing",
        "variance_exploding": "trailing",
        "flow": "trailing",
        "pure_noise": "trailing",
    }
)
FOLLOWING_NOISE: Final[Mapping[Beginning, Spacing]] = MappingProxyType(
    {"variance_preserving": "beta", "variance_exploding": "karras", "flow": "trailing", "pure_noise": "beta"}
)
FOLLOWING_SAMPLE: Final[Mapping[Beginning, Spacing]] = MappingProxyType(
    {"variance_preserving": "logsnr", "variance_exploding": "logsnr", "flow": "trailing", "pure_noise": "trailing"}
)

DRAWS_PER_STEP: Final = 256
"""Room for numbered draws of noise in one step."""

FARTHEST_LEVEL: Final = 1000.0
"""The noise level from which on x is noise to three digits: there the slope in the noise level says nothing about the
next one, which may be hundreds of times lower (cosine schedules fall from 20,000 to 60 or less), and solvers that
follow it step as from alpha = 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a solver may ask in one step.

    Attributes:
        denoiser: Whose estimates are followed.
        condition: Passed on to it.
        generator: Where noise comes from.
        index: Number of the step, from 0.
        steps: How many steps the walk has.
    """

    denoiser: Denoise
    condition: object
    generator: Generator
    index: int
    steps: int = 1

    def __call__(self, x: Latents, point: Point) -> Denoised:
        """Sample and noise in `x` `[batch, channels, *spatial]` at `point`: one call of the network."""
        return self.denoiser(x, point.t, self.condition)

    def noise(self, x: Latents, draw: int = 0) -> Tensor:
        """Standard normal noise like `x`: draw number `draw` (0 ... 255) of this step."""
        step = (self.index + 1) * DRAWS_PER_STEP + draw
        return draw_noise(x.shape, self.generator, step=step, device=x.device, dtype=x.dtype)

    def brownian(self, x: Latents, *points: Point) -> list[Tensor]:
        r"""Noise of the process itself: what one Brownian path adds between the first point and each later one.

        In \(y / \ell^2\) the reversed diffusion is driven by a Brownian motion in the time
        \(u = \mathrm{SNR} = 1 / \ell^2\), so draws over intervals that overlap are correlated. A `BrownianNoise` gives
        the increments of one path whatever the grid; other generators are drawn from once for each piece, and so is
        that one in a step that is made again.

        Args:
            x: `[batch, channels, *spatial]`.
            points: Two or more, less and less noisy, none of them clean.

        Returns:
            Standard normal tensors like `x`, one for each point after the first.
        """
        times = [point.noise_level**-2 for point in points]
        lengths = [(u - times[0]) ** 0.5 for u in times[1:]]
        if isinstance(self.generator, BrownianNoise) and self.index < self.steps:  # a repeated step draws anew
            start, *ends = (self.generator.path(x.shape, u, device=x.device) for u in times)
            return [((end - start) / length).to(x.dtype) for end, length in zip(ends, lengths, strict=True)]
        drawn = [self.noise(x)]
        path = drawn[0] * lengths[0] if len(lengths) > 1 else drawn[0]
        for number, ((a, b), length) in enumerate(zip(pairwise(times[1:]), lengths[1:], strict=True), 1):
            path = torch.add(path, self.noise(x, number), alpha=(b - a) ** 0.5)
            drawn.append(path / length)
        return drawn

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
    """Order of convergence to the probability flow: on smooth problems the error falls like steps ** -order. Of
    stochastic solvers that of the version that draws no noise."""

    weak_order: ClassVar[int | None] = None
    """Of solvers that can draw noise: the errors of mean and variance fall like steps ** -weak_order."""

    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = EVEN_IN_TIME
    """The spacing of times that suits this solver, by how the schedule begins."""

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return False

    @abstractmethod
    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Walk from `now` to `to`.

        Args:
            denoise: Estimates and noise.
            x: `[batch, channels, *spatial]` at `now`, float32 or float64; not changed.
            now: Where `x` is.
            to: Where to go, less noisy; sigma = 0 at the end of most walks. (Noisier, when a walk is inverted.)
            state: What the last step returned; None at first.
        """


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """Solvers that go down to less noise than wanted and draw the rest anew.

    Attributes:
        eta: Share of the noise that is drawn anew: 0 is deterministic, 1 the reversed diffusion; above 1 it is bounded
            by the noise there is.

    Raises:
        ValueError: If `eta` is negative or not a number.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"eta must be at least 0, got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether `eta` is above 0."""
        return self.eta > 0


def weighted_sum(*terms: tuple[float, Tensor]) -> Tensor:
    """The sum of weight * tensor over `terms`, in as few passes over memory as there are terms."""
    weight, tensor = terms[0]
    total = tensor * weight
    for weight, tensor in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total


def is_end(now: Point, to: Point) -> bool:
    """Whether a step touches pure noise or the clean end, where log SNR is infinite."""
    return not (now.alpha and now.sigma and to.alpha and to.sigma)


def beginning_of(schedule: NoiseSchedule) -> Beginning:
    """How a schedule begins: its frame, or in pure noise."""
    last = schedule.point(schedule.num_timesteps - 1.0)
    return "pure_noise" if schedule.frame == "variance_preserving" and is_noise(last) else schedule.frame


def is_noise(point: Point) -> bool:
    """Whether there is nothing but noise, to three digits."""
    return point.noise_level > FARTHEST_LEVEL


def straight(denoised: Denoised, to: Point) -> Latents:
    """Keep what is sample and what is noise, change their scales: alpha * sample + sigma * noise at `to`."""
    return weighted_sum((to.alpha, denoised.sample), (to.sigma, denoised.noise))


def along_noise(x: Latents, noise: Tensor, now: Point, to: Point) -> Latents:
    """From `x` at `now` with the estimate of the noise held fixed; alpha > 0."""
    return weighted_sum((to.alpha / now.alpha, x), (to.sigma - to.alpha * now.noise_level, noise))


def along_sample(x: Latents, sample: Tensor, now: Point, to: Point) -> Latents:
    """From `x` at `now` with the estimate of the sample held fixed; sigma > 0."""
    ratio = to.sigma / now.sigma
    return weighted_sum((ratio, x), (to.alpha - ratio * now.alpha, sample))


def ancestral(now: Point, to: Point, eta: float) -> tuple[Point, float]:
    r"""Split a step in two: down to less noise than `to` has, and up again by fresh noise.

    With \(r = \mathrm{SNR}_t / \mathrm{SNR}_s\), fresh noise of variance \(\eta^2 (1 - r)\,\sigma_s^2\), at most
    \(\sigma_s^2\) (Song et al. 2021, arXiv 2010.02502, eq. 16; k-diffusion's sigma_up and sigma_down).

    Returns:
        The point to go down to, and the standard deviation of the fresh noise: their variances sum to `to.sigma ** 2`.
    """
    if eta == 0:
        return to, 0.0
    ratio = (to.sigma * now.alpha / (to.alpha * now.sigma)) ** 2
    fresh = min(1.0, eta**2 * max(0.0, 1 - ratio)) * to.sigma**2
    return Point(to.t, to.alpha, max(0.0, to.sigma**2 - fresh) ** 0.5), fresh**0.5


def renoised(x: Latents, fresh: float, denoise: Evaluation, now: Point, to: Point) -> Latents:
    """`x` with fresh noise of a standard deviation added, in place."""
    return x.add_(denoise.brownian(x, now, to)[0], alpha=fresh) if fresh > 0 else x
