r"""The pieces of the variational bound, in nats per component.

With the forward process q and the reverse Markov chain p, both of Gaussian steps (Ho et al. 2020, arXiv 2006.11239, eq.
5; Luo 2022, arXiv 2208.11970, eq. 58),

\[ -\log p(x_0) \le \underbrace{KL(q(x_{T-1} \mid x_0) \parallel p(x_{T-1}))}_{\text{prior}}
   + \sum_{t=1}^{T-1} \underbrace{KL(q(x_{t-1} \mid x_t, x_0) \parallel p(x_{t-1} \mid x_t))}_{\text{step } t}
   \underbrace{- \log p(x_0 \mid x_{t=0})}_{\text{decoder}}, \]

in expectation over the noise in \(x_t\); here t = 0 is the first noisy time and t = -1 that of the data. With a fixed
variance v the KL of a step is a weighted error of the estimate, plus what does not depend on the estimate, in any frame

\[ \frac{1}{2 v} \left((1 - r)\,\alpha_s\right)^2 \lVert x_0 - \hat x_0 \rVert^2, \qquad s = t - 1,\;
   r = \mathrm{SNR}_t / \mathrm{SNR}_s, \]

which for the small variance \((1 - r)\,\sigma_s^2\) is
\(\frac12 (\mathrm{SNR}_s - \mathrm{SNR}_t) \lVert x_0 - \hat x_0 \rVert^2\) (Luo 2022, eq. 108).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff._checks import batch_times, by_sample
from latentdiff._denoised import Denoised
from latentdiff._distributions import Gaussian
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Times


def reverse_step(schedule: NoiseSchedule, denoised: Denoised, x_t: Latents, t: Times) -> Gaussian:
    r"""\(p(x_{t-1} \mid x_t)\): the posterior with the estimate in place of the sample (Ho et al. 2020, sec. 3.2).

    Args:
        schedule: What `t` means.
        denoised: What the denoiser made of `x_t`. Its log variance is taken where there is one; else the variance is
            the large one of `NoiseSchedule.reverse_log_variances`: the small one would make a bad decoder.
        x_t: `[batch, ...]`.
        t: `[batch]`, `[]` or a number.

    Returns:
        `mean` like `x_t`, `variance` float64, `[batch, 1, ...]` or like `x_t`.
    """
    mean = schedule.posterior(denoised.sample, x_t, t).mean
    log_variance = denoised.log_variance
    if log_variance is None:
        log_variance = schedule.reverse_log_variances(batch_times("t", t, x_t))[1]
    if log_variance.ndim == 1:
        log_variance = by_sample(log_variance, x_t)
    return Gaussian(mean, log_variance.double().exp())


def step_kl(schedule: NoiseSchedule, sample: Latents, denoised: Denoised, x_t: Latents, t: Times) -> Tensor:
    r"""\(KL(q(x_{t-1} \mid x_t, x_0) \parallel p(x_{t-1} \mid x_t))\) in nats per component (Ho et al. 2020, eq. 5).

    Infinite at t = 0, where q is a point: the decoder takes its place.

    Args:
        schedule: What `t` means.
        sample: x_0, `[batch, ...]`.
        denoised: What the denoiser made of `x_t`.
        x_t: Like `sample`.
        t: `[batch]`, `[]` or a number.

    Returns:
        float64, like `sample`.
    """
    x_t = x_t.double()
    estimate = Denoised(denoised.sample.double(), denoised.noise, denoised.log_variance)
    return schedule.posterior(sample.double(), x_t, t).kl(reverse_step(schedule, estimate, x_t, t))


def prior_kl(schedule: NoiseSchedule, sample: Latents) -> Tensor:
    r"""\(KL(q(x_{T-1} \mid x_0) \parallel N(0, \sigma^2 I))\) in nats per component.

    The prior is what walks start from: \(\sigma\) is 1, and that of the last time if the frame is variance exploding.

    Args:
        schedule: Where the process ends.
        sample: x_0, `[batch, ...]`.

    Returns:
        float64, like `sample`.
    """
    _, alpha, sigma = schedule.point(schedule.num_timesteps - 1.0)
    mean = alpha * sample.double()
    variance = torch.ones_like(mean)
    prior = variance * sigma**2 if schedule.frame == "variance_exploding" else variance
    return Gaussian(mean, variance * sigma**2).kl(Gaussian(torch.zeros_like(mean), prior))


def decoder_nll(reverse: Gaussian, sample: Latents, levels: int | None) -> Tensor:
    r"""\(-\log p(x_0 \mid x_{t=0})\) in nats per component.

    Args:
        reverse: The step from t = 0 to the sample, `[batch, ...]`.
        sample: x_0, like its mean.
        levels: Number of grey levels, evenly from -1 to 1, whose *probability* is meant: the mass of the level's bin,
            the outer two reaching to infinity (Ho et al. 2020, eq. 13). None: the *density* of continuous data.

    Returns:
        float64, like `sample`.
    """
    x = sample.double()
    if levels is None:
        return -Gaussian(reverse.mean.double(), reverse.variance).log_prob(x)
    half = 1 / (levels - 1)
    centre = ((x + 1) / (2 * half)).round() * (2 * half) - 1 - reverse.mean.double()
    std = reverse.variance.sqrt()
    low, high = (centre - half) / std, (centre + half) / std
    return -torch.where(
        x < -1 + half,
        torch.special.log_ndtr(high),
        torch.where(x > 1 - half, torch.special.log_ndtr(-low), log_normal_mass(low, high)),
    )


def log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    r"""Log probability that a standard normal value lies between, to full precision far out in either tail too.

    \(\log(\Phi(b) - \Phi(a)) = \log\Phi(b) + \log(1 - e^{\log\Phi(a) - \log\Phi(b)})\), mirrored to the side where
    both are small.

    Args:
        low: a, any shape.
        high: b > a, same shape.

    Returns:
        Same shape; its gradient is finite and not zero, however unlikely the interval is.
    """
    is_right = low + high > 0
    a, b = torch.where(is_right, -high, low), torch.where(is_right, -low, high)
    log_a: Tensor = torch.special.log_ndtr(a)
    log_b: Tensor = torch.special.log_ndtr(b)
    return log_b + torch.log(-torch.expm1(log_a - log_b))


def bits_per_dim(nats: Tensor) -> Tensor:
    """Mean over the values of each sample, in bits: `[batch]`, of nats per component `[batch, ...]`."""
    return nats.reshape(len(nats), -1).mean(1) / math.log(2)
