"""Gaussians: the schedule's posterior, the reverse step, the autoencoder's posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from latentdiff._checks import check_choice, working_dtype
from latentdiff._noise import draw_noise
from latentdiff._typing import Generator

Reduction: TypeAlias = Literal["sample", "element", "none"]
"""Nats of a whole sample (a sum), nats of one of its elements (a mean), or all of them."""

POSTERIOR_STEP: Final = 2**32 - 1
"""The draw number of a posterior: no walk and no loss uses it, so one `CounterNoise` may serve both."""


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """A normal distribution with independent components.

    Attributes:
        mean: `[batch, ...]`.
        variance: Broadcasts against `mean`; may be 0.
    """

    mean: Tensor
    variance: Tensor

    @property
    def log_variance(self) -> Tensor:
        """Logarithm of `variance`, shaped like it; minus infinity where it is 0."""
        return self.variance.log()

    def sample(self, noise: Tensor) -> Tensor:
        """`mean + std * noise`, for standard normal `noise` shaped like `mean`."""
        dtype = working_dtype(self.mean.dtype)
        return (self.mean.to(dtype) + self.variance.sqrt().to(dtype) * noise.to(dtype)).to(self.mean.dtype)

    def kl(self, other: Gaussian) -> Tensor:
        r"""\(KL(self \parallel other)\) in nats per component, shaped like `mean`.

        \(\frac12(\sigma_1^2/\sigma_2^2 - 1 - \log(\sigma_1^2/\sigma_2^2) + (\mu_1-\mu_2)^2/\sigma_2^2)\)
        """
        ratio = self.variance / other.variance
        return 0.5 * (ratio - 1 - ratio.log() + (self.mean - other.mean).square() / other.variance)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats per component, shaped like `mean`."""
        square = (x - self.mean).square() / self.variance
        return -0.5 * (square + self.log_variance + math.log(2 * math.pi))


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalGaussian:
    r"""The posterior \(q(z \mid x)\) of a variational autoencoder: independent normal components, and a prior.

    The prior is what `kl` compares with. For the moments of an encoder it is \(N(0, I)\). `affine` moves the posterior
    *and* its prior into another unit of length; their divergence does not depend on it, so `kl()` of the scaled
    posterior of `Autoencoder.encode` is that of the encoder's own moments against \(N(0, I)\), as published.

    Everything is computed and returned in float32 at least, whatever the encoder's dtype.

    Attributes:
        mean: `[batch, ...]`, any rank.
        log_variance: Same shape; clamped so that variance over prior variance is in [exp(-30), exp(20)].
        prior: The prior, whose mean and variance broadcast against `mean`; None is N(0, I).

    Raises:
        ValueError: If mean and log-variance differ in shape.

    References:
        Kingma and Welling 2014, arXiv:1312.6114, appendix B; Rombach et al. 2022, arXiv:2112.10752, appendix G.
    """

    mean: Tensor
    log_variance: Tensor
    prior: Gaussian | None = None

    def __post_init__(self) -> None:
        if self.mean.shape != self.log_variance.shape:
            raise ValueError(
                f"log_variance must have the shape of mean {list(self.mean.shape)}, got {list(self.log_variance.shape)}"
            )
        log_variance = self.log_variance.to(working_dtype(self.log_variance.dtype))
        if self.prior is None:
            log_variance = log_variance.clamp(-30.0, 20.0)
        else:
            log_variance = log_variance.clamp(self.prior.log_variance - 30.0, self.prior.log_variance + 20.0)
        object.__setattr__(self, "mean", self.mean.to(working_dtype(self.mean.dtype)))
        object.__setattr__(self, "log_variance", log_variance)

    @property
    def variance(self) -> Tensor:
        """Variance of each component, shaped like `mean`."""
        return self.log_variance.exp()

    @property
    def std(self) -> Tensor:
        """Standard deviation of each component, shaped like `mean`."""
        return (0.5 * self.log_variance).exp()

    def sample(self, generator: Generator = None) -> Tensor:
        """Draw once: `mean + std * noise`, differentiable in both.

        Args:
            generator: Where the noise comes from.

        Returns:
            Shaped like `mean`.
        """
        noise = draw_noise(
            self.mean.shape, generator, step=POSTERIOR_STEP, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The most likely value, the mean: shaped like `mean`."""
        return self.mean

    def kl(self, other: DiagonalGaussian | Gaussian | None = None, *, reduction: Reduction = "sample") -> Tensor:
        r"""\(KL(self \parallel other)\) in nats; at least 0.

        For each component, with \(r = \sigma_1^2 / \sigma_2^2\):
        \(\frac12(r - 1 - \log r + (\mu_1 - \mu_2)^2 / \sigma_2^2)\).

        Args:
            other: What to compare with; None is the prior.
            reduction: `"sample"` sums over all but the batch axis: nats per sample, which grow with its size.
                `"element"` averages: nats per element of the latents. `"none"` keeps every component.

        Returns:
            `[batch]`, or shaped like `mean`.

        Raises:
            ValueError: If there is no such reduction.
        """
        other = self.prior if other is None else other
        if other is None:
            log_ratio, square = self.log_variance, self.mean.square()
        else:
            log_ratio = self.log_variance - other.log_variance
            square = (self.mean - other.mean).square() / other.variance
        return _reduce(0.5 * (torch.expm1(log_ratio) - log_ratio + square), reduction)

    def nll(self, x: Tensor, *, reduction: Reduction = "sample") -> Tensor:
        """Negative log density at `x`, in nats.

        Args:
            x: Shaped like `mean`.
            reduction: As for `kl`.

        Returns:
            `[batch]`, or shaped like `mean`.

        Raises:
            ValueError: If there is no such reduction.
        """
        square = (x - self.mean).square() * (-self.log_variance).exp()
        return _reduce(0.5 * (math.log(2 * math.pi) + self.log_variance + square), reduction)

    def affine(self, shift: Tensor | float, scaling: Tensor | float) -> DiagonalGaussian:
        """The distribution of `(z - shift) * scaling`, its prior moved alike.

        Args:
            shift: A number, or a tensor that broadcasts against `mean`.
            scaling: Likewise, positive.
        """
        factor = torch.as_tensor(scaling, dtype=self.mean.dtype, device=self.mean.device)
        prior = self.prior or Gaussian(torch.zeros_like(factor), torch.ones_like(factor))
        return DiagonalGaussian(
            (self.mean - shift) * factor,
            self.log_variance + 2 * factor.log(),
            Gaussian((prior.mean - shift) * factor, prior.variance * factor.square()),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PointMass:
    """All probability in one point: the "posterior" of an encoder that has none, as with a codebook.

    Attributes:
        mean: The point, `[batch, ...]`.
    """

    mean: Tensor

    @property
    def variance(self) -> Tensor:
        """Zero, shaped like `mean`."""
        return torch.zeros_like(self.mean)

    @property
    def std(self) -> Tensor:
        """Zero, shaped like `mean`."""
        return torch.zeros_like(self.mean)

    def sample(self, generator: Generator = None) -> Tensor:
        """The point, shaped like `mean`; nothing is drawn from `generator`."""
        return self.mean

    def mode(self) -> Tensor:
        """The point, shaped like `mean`."""
        return self.mean

    def kl(self, *, reduction: Reduction = "sample") -> Tensor:
        """Zero: there is nothing to regularise (the divergence of a point from a density would be infinite).

        Args:
            reduction: As for `DiagonalGaussian.kl`.

        Returns:
            `[batch]`, or shaped like `mean`.
        """
        return _reduce(torch.zeros_like(self.mean), reduction)

    def affine(self, shift: Tensor | float, scaling: Tensor | float) -> PointMass:
        """The point `(z - shift) * scaling`.

        Args:
            shift: A number, or a tensor that broadcasts against `mean`.
            scaling: Likewise.
        """
        return PointMass((self.mean - shift) * scaling)


Posterior: TypeAlias = DiagonalGaussian | PointMass
"""What an autoencoder knows of the latents of an image."""


def _reduce(nats: Tensor, reduction: Reduction) -> Tensor:
    """`nats` `[batch, ...]` by sample."""
    check_choice("reduction", reduction, get_args(Reduction))
    match reduction:
        case "sample":
            return nats.flatten(1).sum(1)
        case "element":
            return nats.flatten(1).mean(1)
        case "none":
            return nats
