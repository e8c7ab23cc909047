"""The probability flow of any denoiser, integrated until nothing of the method is left."""

from __future__ import annotations

import math

from latentdiff._denoised import Denoise
from latentdiff._ode import State, integrate
from latentdiff._typing import Latents

TOLERANCE = 1e-10
"""Error of each step of the integration, relative to values of unit size."""


def integrate_flow(denoiser: Denoise, x: Latents, t: float, next_t: float, condition: object = None) -> Latents:
    r"""Where the probability flow leads, held to 1e-10 a step: some hundreds of calls of the denoiser.

    In the variance-preserving frame with \(\alpha = \cos\phi\) and \(\sigma = \sin\phi\) the flow is
    \(dx / d\phi = \cos\phi\,\hat\epsilon - \sin\phi\,\hat x_0\), the v of Salimans and Ho 2022 (arXiv 2202.00512,
    appendix D), which is regular at both ends.

    Args:
        denoiser: Whose estimates are followed; smooth, and in float64.
        x: `[batch, *event]` at `t`; float64 for a reference.
        t: Where `x` is.
        next_t: Where to go, before or after.
        condition: Passed on to the denoiser.

    Returns:
        Shaped and typed like `x`.

    Raises:
        RuntimeError: If the tolerance is not met, as by a denoiser in float32.
    """
    schedule = denoiser.schedule
    now, to = schedule.point(t), schedule.point(next_t)

    def derivative(angle: float, state: State) -> State:
        (z,), (alpha, sigma) = state, (math.cos(angle), math.sin(angle))
        log_snr = math.inf if sigma <= 0 else 2 * math.log(alpha / sigma) if alpha > 1e-12 else -math.inf
        time, alpha_t, sigma_t = schedule.point(schedule.timestep(log_snr))
        denoised = denoiser(z * math.hypot(alpha_t, sigma_t), time, condition)
        return (alpha * denoised.noise - sigma * denoised.sample,)

    start, end = math.atan2(now.sigma, now.alpha), math.atan2(to.sigma, to.alpha)
    begun = (x / math.hypot(now.alpha, now.sigma),)
    (z,) = integrate(derivative, start, end, begun, rtol=TOLERANCE, atol=TOLERANCE)
    return z * math.hypot(to.alpha, to.sigma)
