"""Layers of the networks, for 1, 2 and 3 spatial axes: residual block, resampling, time embedding."""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_positive
from latentdiff._convolution import Conv2d, doubled, pays_to_double
from latentdiff._fusion import drop_out, is_plain, plus, silu_of
from latentdiff._module import Module
from latentdiff._normalization import GroupNorm
from latentdiff._typing import SpatialDims

Resample: TypeAlias = Literal["up", "down"]
"""A residual block's change of resolution: twice the size, or half of it."""

Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
"""A convolution of any rank."""

M = TypeVar("M", bound=nn.Module)

CONVOLUTIONS: Final[dict[int, type[Conv]]] = {1: nn.Conv1d, 2: Conv2d, 3: nn.Conv3d}
AVERAGE_POOLS: Final = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(
    spatial_dims: SpatialDims,
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
) -> Conv:
    """A convolution over `spatial_dims` axes.

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Size on each axis.
        stride: Step on each axis.
        padding: Zeros on both sides of each axis; None keeps the size of the input for odd kernels and stride 1.

    Raises:
        ValueError: If `spatial_dims` is not 1, 2 or 3.
    """
    check_choice("spatial_dims", spatial_dims, (1, 2, 3))
    padding = kernel // 2 if padding is None else padding
    return CONVOLUTIONS[spatial_dims](in_channels, out_channels, kernel, stride=stride, padding=padding)


def group_norm(channels: int, *, eps: float, groups: int = 32) -> nn.GroupNorm:
    """Group normalisation that takes any number of channels.

    There are `groups` groups wherever that divides `channels`, as in every published model. Elsewhere it is the
    largest divisor of `channels` up to `groups` that leaves two channels or more in a group: a group of one channel
    would lose that channel's level, and on a map of size 1 everything. A prime number of channels is one group.

    Args:
        channels: Channels to normalise, 1 or more.
        eps: Added to the variance.
        groups: Most groups.

    Raises:
        ValueError: If `channels` or `groups` is not positive.
    """
    check_positive("channels", channels)
    check_positive("groups", groups)
    if channels % groups:
        fitting = (n for n in range(min(groups, channels // 2), 1, -1) if channels % n == 0)
        groups = next(fitting, 1)
    return GroupNorm(groups, channels, eps=eps)


def zero_(module: M) -> M:
    """Set every parameter of `module` to zero, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    r"""Sinusoidal embedding of the time, float32 whatever the dtype of `t` and whatever autocast says.

    \(\mathrm{cat}(\cos(t\,\omega), \sin(t\,\omega))\) with \(\omega_i = P^{-i / h}\), \(i = 0 \dots h - 1\),
    \(h = \lfloor \mathtt{dim} / 2 \rfloor\) and \(P\) = `max_period`; an odd `dim` ends in a zero.

    Args:
        t: `[batch]`, integer or fractional.
        dim: Size of the embedding.
        max_period: The longest period, over 2 pi.

    Returns:
        `[batch, dim]`, float32, in [-1, 1].

    References:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Ho et al. 2020, arXiv:2006.11239, appendix B.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(max_period) * steps / half)
    angles = t.to(torch.float32)[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def upsample_nearest(x: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
    """Repeat each point of `x` `[batch, channels, *spatial]`: twice on each axis, or up to `size`."""
    return F.interpolate(x, size=size or tuple(2 * n for n in x.shape[2:]), mode="nearest")


def downsample_average(x: Tensor) -> Tensor:
    """Average pairs on each spatial axis of `x` `[batch, channels, *spatial]`; the last of an odd axis stays alone."""
    x = x.expand(*x.shape[:2], *(max(n, 2) for n in x.shape[2:]))  # torch refuses to pool an axis of size 1
    return AVERAGE_POOLS[x.ndim - 2](x, 2, ceil_mode=True)


class EmbeddingMLP(Module):
    """Two linear layers with a SiLU between, for time and vector embeddings."""

    def __init__(self, *, in_dim: int, out_dim: int) -> None:
        """Build the layers.

        Args:
            in_dim: Size of the input.
            out_dim: Size of the hidden layer and of the output.
        """
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.linear1: nn.Linear = nn.Linear(in_dim, out_dim)
        self.linear2: nn.Linear = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` `[batch, in_dim]` to `[batch, out_dim]`."""
        y: Tensor = self.linear2(F.silu(self.linear1(x)))
        return y


class Downsample(Module):
    """Halve each spatial axis by a convolution of size 3 with stride 2, or by averaging pairs."""

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int | None = None,
        spatial_dims: SpatialDims = 2,
        asymmetric: bool = False,
        use_conv: bool = True,
    ) -> None:
        """Build the convolution.

        Args:
            channels: Channels of the input.
            out_channels: Channels of the output; None keeps them.
            spatial_dims: 1, 2 or 3.
            asymmetric: Pad each axis by one zero at its end only, as the published autoencoders do: size n becomes
                n // 2. Else by one zero on both sides, as the UNets do: size n becomes (n + 1) // 2.
            use_conv: Whether there is a convolution; without one, size n becomes (n + 1) // 2.

        Raises:
            ValueError: If channels change without a convolution.
        """
        super().__init__()
        _check_channels(channels, out_channels, use_conv)
        self.channels = channels
        self.out_channels = out_channels
        self.spatial_dims = spatial_dims
        self.asymmetric = asymmetric
        self.use_conv = use_conv
        padding = 0 if asymmetric else 1
        self.conv: Conv | None = None
        if use_conv:
            self.conv = conv(spatial_dims, channels, out_channels or channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` `[batch, channels, *spatial]` to `[batch, out_channels, *halved]`."""
        if self.conv is None:
            return downsample_average(x)
        if self.asymmetric:
            x = F.pad(x, (0, 1) * self.spatial_dims)
        y: Tensor = self.conv(x)
        return y


class Upsample(Module):
    """Double each spatial axis by repetition, then a convolution of size 3."""

    def __init__(
        self,
        *,
        channels: int,
        out_channels: int | None = None,
        spatial_dims: SpatialDims = 2,
        use_conv: bool = True,
    ) -> None:
        """Build the convolution.

        Args:
            channels: Channels of the input.
            out_channels: Channels of the output; None keeps them.
            spatial_dims: 1, 2 or 3.
            use_conv: Whether there is a convolution, or repetition alone.

        Raises:
            ValueError: If channels change without a convolution.
        """
        super().__init__()
        _check_channels(channels, out_channels, use_conv)
        self.channels = channels
        self.out_channels = out_channels
        self.spatial_dims = spatial_dims
        self.use_conv = use_conv
        self.conv: Conv | None = conv(spatial_dims, channels, out_channels or channels, 3) if use_conv else None

    def forward(self, x: Tensor, size: tuple[int, ...] | None = None) -> Tensor:
        """Map `x` `[batch, channels, *spatial]` to `[batch, out_channels, *size]`.

        Args:
            x: The map to enlarge.
            size: Its size afterwards, for axes that were odd before they were halved; None doubles.
        """
        if self.conv is None:
            return upsample_nearest(x, size)
        if is_plain(self.conv) and pays_to_double(x, self.conv) and size in {None, tuple(2 * n for n in x.shape[2:])}:
            return doubled(x, self.conv.weight, self.conv.bias)
        y: Tensor = self.conv(upsample_nearest(x, size))
        return y


def _check_channels(channels: int, out_channels: int | None, use_conv: bool) -> None:
    """Require that only a convolution changes the number of channels."""
    if not use_conv and out_channels not in {None, channels}:
        raise ValueError(f"out_channels must be {channels}, the channels, without use_conv, got {out_channels}")


class ResidualBlock(Module):
    """Normalise, SiLU, convolve, twice, beside a shortcut; an embedding comes in between.

    References:
        Ho et al. 2020, arXiv:2006.11239, appendix B; Dhariwal and Nichol 2021, arXiv:2105.05233, section 3.1
        (resampling inside the block, and scale and shift as "adaptive group normalisation").
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        embedding_dim: int | None = None,
        spatial_dims: SpatialDims = 2,
        eps: float = 1e-5,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: Resample | None = None,
        zero_output: bool = False,
    ) -> None:
        """Build the block.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output; None keeps them.
            embedding_dim: Size of the embedding; None for a block without one.
            spatial_dims: 1, 2 or 3.
            eps: Of the group norms: 1e-5 in the published UNets, 1e-6 in the autoencoders.
            dropout: Rate before the second convolution.
            scale_shift: Let the embedding scale and shift the second norm's output, rather than add to its input.
            resample: Double or halve the size after the first SiLU, and on the shortcut.
            zero_output: Start the second convolution at zero, so that the block starts as its shortcut.

        Raises:
            ValueError: If `scale_shift` is asked for without `embedding_dim`, or `resample` is unknown.
        """
        super().__init__()
        if scale_shift and embedding_dim is None:
            raise ValueError("scale_shift must be False without an embedding, got True with embedding_dim=None")
        check_choice("resample", resample, (None, "up", "down"))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.embedding_dim = embedding_dim
        self.spatial_dims = spatial_dims
        self.eps = eps
        self.dropout = dropout
        self.scale_shift = scale_shift
        self.resample: Resample | None = resample
        self.zero_output = zero_output
        width = out_channels or in_channels
        self.norm1 = group_norm(in_channels, eps=eps)
        self.conv1 = conv(spatial_dims, in_channels, width, 3)
        self.embedding: nn.Linear | None = None
        if embedding_dim is not None:
            self.embedding = nn.Linear(embedding_dim, 2 * width if scale_shift else width)
        self.norm2 = group_norm(width, eps=eps)
        self.conv2 = conv(spatial_dims, width, width, 3)
        if zero_output:
            zero_(self.conv2)
        self.shortcut: Conv | None = None
        if width != in_channels:
            self.shortcut = conv(spatial_dims, in_channels, width, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None, size: tuple[int, ...] | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: `[batch, in_channels, *spatial]`.
            embedding: `[batch, embedding_dim]`, before its SiLU.
            size: The spatial size to come out, where `resample` is `"up"`; None doubles.

        Returns:
            `[batch, out_channels, *resampled]`.

        Raises:
            ValueError: If an embedding is missing, or is not wanted.
        """
        if (embedding is None) != (self.embedding is None):
            raise ValueError(
                f"embedding must be {'None' if self.embedding is None else f'[batch, {self.embedding_dim}]'}"
                f" for a block of embedding_dim={self.embedding_dim}, got {'None' if embedding is None else 'a tensor'}"
            )
        h = silu_of(self.norm1, x)
        if self.resample == "up":
            h, x = upsample_nearest(h, size), upsample_nearest(x, size)
        elif self.resample == "down":
            h, x = downsample_average(h), downsample_average(x)
        h = self._activate(self.conv1(h), embedding)
        h = self.conv2(drop_out(h, self.dropout, self.training))
        return plus(self.conv2, h, x if self.shortcut is None else self.shortcut(x))

    def _activate(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        """SiLU of the second norm of `h` `[batch, out_channels, *spatial]`, the embedding before it or around it."""
        if self.embedding is None or embedding is None:
            return silu_of(self.norm2, h, is_free=is_plain(self.conv1))
        projected: Tensor = self.embedding(F.silu(embedding))
        projected = projected.reshape(*projected.shape, *(1,) * self.spatial_dims)
        if self.scale_shift:
            scale, shift = projected.chunk(2, dim=1)
            y = self.norm2(h) * (1 + scale) + shift
            return F.silu(y, inplace=not torch.is_grad_enabled())
        return silu_of(self.norm2, plus(self.conv1, h, projected), is_free=True)
