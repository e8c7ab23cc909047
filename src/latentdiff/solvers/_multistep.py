"""Solvers that remember earlier estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import Evaluation, Solver, Stepped, weighted_sum


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Solver):
    r"""DPM-Solver++(2M): exact in the linear part, the sample extrapolated from two.

    Lu et al. 2022, arXiv 2211.01095, alg. 2.

    In \(\lambda = \log(\alpha / \sigma)\) with steps \(h\):
    \(x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1) D\) and
    \(D = \hat x_0 + \frac{h}{2 h_{last}} (\hat x_0 - \hat x_0^{last})\). First order at the start, from alpha = 0
    and to sigma = 0.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """One call of the network."""
        denoised = denoise(x, now)
        h = to.half_log_snr - now.half_log_snr
        weight = -math.expm1(-h) * to.alpha
        terms = [(to.sigma / now.sigma, x), (weight, denoised.sample)]
        if isinstance(state, tuple) and math.isfinite(h):
            last, last_sample = state
            extrapolation = weight * h / (2 * (now.half_log_snr - last.half_log_snr))
            terms[1] = (weight + extrapolation, denoised.sample)
            terms.append((-extrapolation, last_sample))
        return Stepped(weighted_sum(*terms), denoised, (now, denoised.sample))
