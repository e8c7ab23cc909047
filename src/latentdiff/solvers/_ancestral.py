"""DDPM and DDIM: steps of the reversed diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from latentdiff._checks import check_choice
from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import Evaluation, Solver, Stepped, weighted_sum


@dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    r"""Draw from the posterior with the sample estimated (Ho et al. 2020, arXiv 2006.11239, alg. 2).

    Attributes:
        variance: `"fixed_small"`, the posterior's \((1 - r)\,\sigma_s^2\), right for data in a point; or
            `"fixed_large"`,
            the forward step's \(\sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2\), right for normal data. The last step, to
            sigma = 0, adds none.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    variance: Literal["fixed_small", "fixed_large"] = "fixed_small"

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, ("fixed_small", "fixed_large"))

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Mean of the posterior, and noise."""
        denoised = denoise(x, now)
        kept, replaced = _posterior_weights(now, to)
        variance = replaced * (to.sigma**2 if self.variance == "fixed_small" else now.sigma**2)
        mean = ((kept, x), (replaced * to.alpha, denoised.sample))
        if to.sigma == 0:
            return Stepped(weighted_sum(*mean), denoised)
        return Stepped(weighted_sum(*mean, (variance**0.5, denoise.noise(x))), denoised)


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    r"""Keep sample and noise, change their scales; exchange part of the noise.

    Song et al. 2021, arXiv 2010.02502, eq. 12.

    Attributes:
        eta: 0 is deterministic; 1 has DDPM's (fixed small) variance.
    """

    order: ClassVar[int] = 1

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """To alpha * sample + sigma * noise, with a share of the noise drawn anew."""
        denoised = denoise(x, now)
        _, replaced = _posterior_weights(now, to)
        fresh = self.eta**2 * replaced * to.sigma**2
        terms = [(to.alpha, denoised.sample), (max(to.sigma**2 - fresh, 0.0) ** 0.5, denoised.noise)]
        if fresh > 0:
            terms.append((fresh**0.5, denoise.noise(x)))
        return Stepped(weighted_sum(*terms), denoised)


def _posterior_weights(now: Point, to: Point) -> tuple[float, float]:
    """Weight of x_t in the posterior's mean, and the share 1 - r of the noise's variance that a step removes."""
    transition = now.alpha / to.alpha
    kept = transition * (to.sigma / now.sigma) ** 2
    return kept, 1 - kept * transition
