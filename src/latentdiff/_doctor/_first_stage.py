"""What there is to see of data, and of what an autoencoder makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latentdiff._autoencoder import Autoencoder, AutoencoderOutput
from latentdiff._distributions import Posterior
from latentdiff._doctor._report import Finding
from latentdiff._moments import ChannelMoments
from latentdiff._typing import Images

LEAST_SPAN = 0.25
"""Of the declared range, that a batch of data should use."""

LARGEST_MEAN, LEAST_STD, LARGEST_STD = 0.5, 0.5, 2.0
"""Of unit latents, as one batch shows them."""

MOST_NOISE = 0.9
"""Share of a channel's variance that is the posterior's own, from which on it says nothing about the image."""

LEAST_PSNR = 15.0
"""Of a reconstruction, in decibels."""

LEAST_PERPLEXITY = 0.1
"""Of a codebook's use, over the most that there could be."""


def of_data(autoencoder: Autoencoder, batch: Images) -> Finding:
    """Whether data `[batch, channels, *spatial]` are what the autoencoder declares."""
    if not batch.is_floating_point():
        advice = "encode takes floats: for bytes, batch.float() / 127.5 - 1"
        return Finding("data", f"{batch.dtype}, shape {list(batch.shape)}", False, advice)
    if not batch.isfinite().all():
        return Finding("data", "not finite", False, "look for divisions by zero and missing values in the loader")
    least, most = (bound.item() for bound in torch.aminmax(batch))
    span = f"values in [{least:.4g}, {most:.4g}]"
    if autoencoder.value_range is None:
        return Finding(
            "data", f"{span}, no range declared", least < most, "all values are the same: look at the loader"
        )
    low, high = autoencoder.value_range
    value = f"{span} of [{low:g}, {high:g}]"
    if least < low or most > high:
        return Finding("data", value, False, "scale the data to the autoencoder's value_range, or set another")
    if (low, high) == (-1.0, 1.0) and least >= 0:
        return Finding("data", value, False, "these look like data in [0, 1]: give 2 * x - 1")
    is_wide = most - least >= LEAST_SPAN * (high - low)
    return Finding("data", value, is_wide, "a small part of the range is used: look for data that were scaled twice")


def of_latents(posterior: Posterior) -> Iterator[Finding]:
    """Whether latents have unit size, and say something about the image."""
    moments = ChannelMoments.of(posterior.mean, posterior.variance)
    std, noise = moments.variance.sqrt(), posterior.variance.double().transpose(0, 1).flatten(1).mean(1)
    is_unit = bool((moments.mean.abs() <= LARGEST_MEAN).all() and ((std >= LEAST_STD) & (std <= LARGEST_STD)).all())
    value = f"mean {_numbers(moments.mean)}, std {_numbers(std)} by channel"
    yield Finding("latents", value, is_unit, "call autoencoder.calibrate(batches) on the training data")
    share = noise / moments.variance.clamp(min=torch.finfo(torch.float64).tiny)
    advice = "those channels say nothing about the image: train the first stage with less KL weight, or fewer channels"
    value = f"share of the variance that is noise {_numbers(share)} by channel"
    yield Finding("posterior", value, bool((share < MOST_NOISE).all()), advice)


def of_reconstruction(autoencoder: Autoencoder, batch: Images, output: AutoencoderOutput) -> Iterator[Finding]:
    """Whether the decoder gives `batch` `[batch, channels, *spatial]` back, and how the codes are used."""
    made = autoencoder.clamp(output.reconstruction)
    if made.shape == batch.shape:
        low, high = autoencoder.value_range or (bound.item() for bound in torch.aminmax(batch))
        error = (made.double() - batch.double()).square().mean()
        psnr = (10 * torch.log10((high - low) ** 2 / error)).item()
        advice = "samples cannot be better than this: train the first stage, or load its weights"
        yield Finding("reconstruction", f"PSNR {psnr:.1f} dB", psnr >= LEAST_PSNR, advice)
    if autoencoder.quantizer is not None and output.indices is not None:
        yield _of_codes(output.indices, autoencoder.quantizer.codebook_size)


def _of_codes(indices: Tensor, size: int) -> Finding:
    """How a codebook of `size` codes is used by `indices`, of any shape."""
    counts = torch.bincount(indices.flatten(), minlength=size).double()
    shares = counts / counts.sum()
    perplexity = (-torch.xlogy(shares, shares).sum()).exp().item()
    most = min(size, indices.numel())
    value = f"{int((counts > 0).sum())} of {size} codes used by {indices.numel()} vectors, perplexity {perplexity:.1f}"
    advice = "most codes are dead: initialize_codebook(x), codebook_decay=0.99 with restart_below=0.1, or fewer codes"
    return Finding("codebook", value, perplexity >= LEAST_PERPLEXITY * most, advice)


def _numbers(values: Tensor) -> str:
    """Numbers `[channels]`, or their range where there are many."""
    numbers: list[float] = values.tolist()
    if len(numbers) > 8:
        return f"{min(numbers):.2f} ... {max(numbers):.2f}"
    return "[" + ", ".join(f"{number:.2f}" for number in numbers) + "]"
