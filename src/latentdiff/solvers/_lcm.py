"""Sampling with a consistency model: jump to the sample, noise it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import Evaluation, Solver, Stepped, weighted_sum


@dataclass(frozen=True, kw_only=True)
class LCM(Solver):
    r"""Multistep consistency sampling (Luo et al. 2023, arXiv 2310.04378, alg. 3; Song et al. 2023, arXiv 2303.01469).

    Right for a *consistency* model, whose estimate is where the path leads, not the mean of the data: each step then
    ends in the distribution of its time. It follows no path and has no order of convergence.

    A consistency model is the identity at the clean end, \(f(x, t) = c_{skip} x + c_{out} \hat x_0\) with
    \(c_{skip} = d^2 / ((k t)^2 + d^2)\) and \(c_{out} = k t / \sqrt{(k t)^2 + d^2}\), where d is 0.5.

    Attributes:
        timestep_scaling: k, as distilled; 10 in published models. None leaves the estimate as it is.
    """

    order: ClassVar[int] = 0
    weak_order: ClassVar[int | None] = 0

    timestep_scaling: float | None = 10.0

    def __post_init__(self) -> None:
        if self.timestep_scaling is not None and not self.timestep_scaling > 0:
            raise ValueError(f"timestep_scaling must be positive or None, got {self.timestep_scaling}")

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        skip, out = self._boundary(now.t)
        terms = [(to.alpha * out, denoised.sample), (to.alpha * skip, x)]
        if to.sigma:
            terms.append((to.sigma, denoise.noise(x)))
        return Stepped(weighted_sum(*(term for term in terms if term[0])), denoised)

    def _boundary(self, t: float) -> tuple[float, float]:
        """c_skip and c_out."""
        if self.timestep_scaling is None:
            return 0.0, 1.0
        scaled = self.timestep_scaling * max(t, 0.0)
        total = scaled**2 + 0.25
        return 0.25 / total, scaled / total**0.5
