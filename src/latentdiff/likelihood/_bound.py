"""The variational bound on the negative log-likelihood, and the lossy code that it is the length of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from latentdiff._checks import check_choice, check_floating, check_shape, working_dtype
from latentdiff._denoised import Denoise, Denoised
from latentdiff._noise import draw_noise
from latentdiff._typing import Generator, Latents
from latentdiff._variational import bits_per_dim, decoder_nll, prior_kl, reverse_step, step_kl

Decoder: TypeAlias = Literal["discretized", "continuous"]
DECODERS: Final[tuple[Decoder, ...]] = get_args(Decoder)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A bound on the negative log-likelihood in bits per dimension, and its terms.

    Attributes:
        total: `[batch]`; exactly `prior + per_timestep.sum(1) + decoder`.
        prior: `[batch]`, what is left of the sample in the noisiest latents; no training changes it.
        per_timestep: `[batch, T]`; entry t is the divergence of the step from t to t - 1. Entry 0 is 0: that step is
            the decoder.
        decoder: `[batch]`, the negative log-likelihood of the sample given the least noisy latents. Of a continuous
            decoder it is that of a density and may be negative.
    """

    total: Tensor
    prior: Tensor
    per_timestep: Tensor
    decoder: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RateDistortion:
    """How good the estimate of the sample is after how many bits, for a receiver that gets ever less noisy latents.

    Attributes:
        rate: `[T]`; entry t is the bits per dimension that tell the latents of time t: the prior's and those of all
            steps above t. Falls with t.
        distortion: `[T]`; entry t is the root of the mean squared error of the sample estimated at time t, in units of
            the sample; times 127.5 it is that of images of 8 bits.
    """

    rate: Tensor
    distortion: Tensor


@torch.no_grad()
def variational_bound(
    denoiser: Denoise,
    sample: Latents,
    condition: object = None,
    *,
    decoder: Decoder = "discretized",
    levels: int = 256,
    generator: Generator = None,
) -> Bound:
    """Bound -log2 p(sample) from above, in bits per dimension (Ho et al. 2020, arXiv 2006.11239, eq. 5).

    All T steps of the schedule are gone through, with a call of the denoiser and fresh noise for each. The variance of
    the reverse steps is the one that the denoiser knows, or the large one of `NoiseSchedule.reverse_log_variances`. The
    bound holds in expectation over the noise; the mean over samples and draws is what to report.

    Args:
        denoiser: The model.
        sample: `[batch, channels, *spatial]`, data or latents, of any rank.
        condition: Passed on to the denoiser.
        decoder: `"discretized"` for images of grey levels: the probability of the levels, at least 0 bits.
            `"continuous"` for latents and other real numbers: a density.
        levels: How many grey levels there are, evenly from -1 to 1; 256 for images of 8 bits.
        generator: Where noise comes from. With `CounterNoise` the bound of a sample does not depend on its batch.

    Returns:
        float64, without gradient.

    Raises:
        ValueError: If `levels` is below 2, there is no such decoder, or it is discretized and `sample` does not lie on
            the levels (looked at on the CPU only).
        TypeError: If `sample` is not floating.
    """
    sample = _checked(sample)
    check_choice("decoder", decoder, DECODERS)
    if decoder == "discretized":
        _check_levels(sample, levels)
    divergences, last = list[Tensor](), sample.new_zeros(len(sample), dtype=torch.float64)
    for t, x_t, denoised in _walk(denoiser, sample, condition, generator):
        if t > 0:
            divergences.append(bits_per_dim(step_kl(denoiser.schedule, sample, denoised, x_t, t)))
        else:
            step = reverse_step(denoiser.schedule, denoised, x_t, t)
            last = bits_per_dim(decoder_nll(step, sample, levels if decoder == "discretized" else None))
    per_timestep = torch.stack([torch.zeros_like(last), *reversed(divergences)], 1)
    prior = bits_per_dim(prior_kl(denoiser.schedule, sample))
    return Bound(prior + per_timestep.sum(1) + last, prior, per_timestep, last)


@torch.no_grad()
def rate_distortion(
    denoiser: Denoise, sample: Latents, condition: object = None, *, generator: Generator = None
) -> RateDistortion:
    """Progressive lossy coding (Ho et al. 2020, arXiv 2006.11239, sec. 4.3 and fig. 5).

    Args:
        denoiser: The model.
        sample: `[batch, channels, *spatial]`, data or latents, of any rank.
        condition: Passed on to the denoiser.
        generator: Where noise comes from.

    Returns:
        The curve of the batch, float64 `[T]`: rates and squared errors are means over it. With the noise of a
        `variational_bound`, `rate[0] + bound.decoder.mean()` is the mean of its total.

    Raises:
        TypeError: If `sample` is not floating.
    """
    sample = _checked(sample)
    rate = bits_per_dim(prior_kl(denoiser.schedule, sample)).mean()
    rates, errors = list[Tensor](), list[Tensor]()
    for t, x_t, denoised in _walk(denoiser, sample, condition, generator):
        rates.append(rate)
        errors.append((denoised.sample.double() - sample.double()).square().mean())
        if t > 0:
            rate = rate + bits_per_dim(step_kl(denoiser.schedule, sample, denoised, x_t, t)).mean()
    return RateDistortion(torch.stack(rates).flip(0), torch.stack(errors).flip(0).sqrt())


class _Visit(NamedTuple):
    t: float
    x_t: Latents
    denoised: Denoised


def _walk(denoiser: Denoise, sample: Latents, condition: object, generator: Generator) -> Iterator[_Visit]:
    """From the noisiest time to 0, each with noise of its own: the terms of the bound are independent estimates."""
    for t in reversed(range(denoiser.schedule.num_timesteps)):
        noise = draw_noise(sample.shape, generator, step=t, device=sample.device, dtype=sample.dtype)
        x_t = denoiser.schedule.add_noise(sample, noise, float(t))
        yield _Visit(float(t), x_t, denoiser(x_t, float(t), condition))


def _checked(sample: Latents) -> Latents:
    check_floating("sample", sample)
    check_shape("sample", sample, "batch ...")
    return sample.to(working_dtype(sample.dtype))


def _check_levels(sample: Latents, levels: int) -> None:
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if sample.device.type != "cpu":
        return
    steps = (sample + 1) * ((levels - 1) / 2)
    distance = (steps - steps.round().clamp(0, levels - 1)).abs()
    if not (distance <= 0.01).all():
        raise ValueError(
            f"sample must lie on {levels} grey levels, evenly from -1 to 1, got values up to {distance.max():g} levels "
            "beside them; use decoder='continuous' for real numbers such as latents"
        )
