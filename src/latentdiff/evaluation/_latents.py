"""What a first stage makes of a stream of images: how its codes are used, how its latents are spread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._checks import check_floating, check_positive, check_shape
from latentdiff._distributed import sum_over_processes
from latentdiff._distributions import PointMass, Posterior
from latentdiff._moments import ChannelMoments
from latentdiff._typing import Latents


@dataclass(frozen=True, slots=True, eq=False)
class CodebookUse:
    """How often each code of a codebook was used.

    Attributes:
        counts: int64 `[codebook_size]`.
    """

    counts: Tensor

    @property
    def usage(self) -> float:
        """Share of the codes that were used at all, in (0, 1]."""
        return (self.counts > 0).double().mean().item()

    @property
    def entropy(self) -> float:
        """Of the use of codes, in bits: what an ideal code for indices, each by itself, would need for one of them."""
        shares = self.counts.double() / self.counts.sum()
        return -torch.xlogy(shares, shares).sum().item() / torch.tensor(2.0).double().log().item()

    @property
    def perplexity(self) -> float:
        """2 to the power of `entropy`, from 1 to codebook_size: the number of codes, evenly used, of equal entropy."""
        return float(2.0**self.entropy)


def codebook_use(batches: Iterable[Tensor], codebook_size: int) -> CodebookUse:
    """Count the codes of a stream, over all processes of `torch.distributed`.

    The perplexity of a batch, which `VectorQuantizer` reports, is at most its number of vectors, and on average below
    that of the stream; here it does not depend on how the stream is cut.

    Args:
        batches: Batches of indices, integers `[batch, *spatial]` in 0 ... codebook_size - 1, such as
            `AutoencoderOutput.indices`.
        codebook_size: Number of codes.

    Returns:
        The counts, on the device of the first batch.

    Raises:
        ValueError: If there are no batches, or an index is out of range.
        TypeError: If a batch does not hold integers.
    """
    check_positive("codebook_size", codebook_size)
    counts: Tensor | None = None
    for indices in batches:
        check_shape("indices", indices, "batch ...")
        if indices.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"indices must be int64 or int32, got {indices.dtype}")
        least, most = (int(bound) for bound in torch.aminmax(indices))
        if least < 0 or most >= codebook_size:
            raise ValueError(f"indices must be in [0, {codebook_size - 1}], got values in [{least}, {most}]")
        part = torch.bincount(indices.flatten(), minlength=codebook_size)
        counts = part if counts is None else counts + part.to(counts.device)
    if counts is None:
        raise ValueError("batches must hold at least one batch, got none")
    return CodebookUse(sum_over_processes(counts))


@dataclass(frozen=True, slots=True, eq=False)
class LatentStatistics:
    """How latents are spread, by channel, float64.

    Attributes:
        mean: Of draws from the posteriors, `[channels]`.
        std: Standard deviation of draws from the posteriors, `[channels]`; 1 after `Autoencoder.calibrate`.
        noise: The part of it that is the posteriors' own: the root of their mean variance, `[channels]`. A channel with
            noise near std says nothing about its image; 0 with a codebook.
    """

    mean: Tensor
    std: Tensor
    noise: Tensor


def latent_statistics(batches: Iterable[Posterior | Latents]) -> LatentStatistics:
    """The mean and spread of latents over a stream, and over all processes of `torch.distributed`.

    Nothing is drawn: the variance of draws is the variance of the posteriors' means plus the mean of their variances.
    The result does not depend on how the stream is cut.

    Args:
        batches: Posteriors of `Autoencoder.encode`, or latents `[batch, channels, *spatial]`.

    Returns:
        Mean, standard deviation and noise of each channel.

    Raises:
        ValueError: If there are no batches.
        TypeError: If latents are not floating.
    """
    drawn: ChannelMoments | None = None
    means: ChannelMoments | None = None
    for batch in batches:
        posterior = PointMass(batch) if isinstance(batch, Tensor) else batch
        check_floating("latents", posterior.mean)
        check_shape("latents", posterior.mean, "batch channels ...")
        part = ChannelMoments.of(posterior.mean, posterior.variance)
        part_of_means = ChannelMoments.of(posterior.mean, torch.zeros_like(posterior.mean))
        drawn = part if drawn is None else drawn.merge(part)
        means = part_of_means if means is None else means.merge(part_of_means)
    if drawn is None or means is None:
        raise ValueError("batches must hold at least one batch, got none")
    drawn, means = drawn.over_processes(), means.over_processes()
    noise = (drawn.variance - means.variance).clamp(min=0).sqrt()
    return LatentStatistics(drawn.mean, drawn.variance.sqrt(), noise)
