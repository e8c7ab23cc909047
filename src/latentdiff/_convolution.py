"""Convolutions that choose how they are computed: torch's function and weights, sooner on a CPU.

Maps are channels-last there: their points are then tokens without a copy, and normalisations read along channels. Three
things make that pay for weights that stay as torch keeps them (figures: 2 cores with AVX-512, float32, torch 2.13):

- A kernel of size 1 is a matrix product on the points.
- On few points with many channels the time goes into laying out the weights anew for torch's kernel, not into
  arithmetic: 1280 channels on 8 x 8 points take 39 ms as a convolution and 15 ms as one product, for which the weights
  are a matrix as they stand.
- In between, the map is cheaper to bring to the weights' layout than the weights to the map's.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE_WEIGHT: Final = 2**21
"""Numbers in a weight from which on its layout is what a convolution on few points costs: it leaves the cache."""

transforms = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
"""The innermost transform of `torch.func` around the caller, or None."""

CONVOLVE: Final = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def as_fast_map(x: Tensor) -> Tensor:
    """`x` `[batch, channels, *spatial]` in the layout that networks are fastest in: channels last on a CPU in 2D."""
    if x.ndim == 4 and is_chosen_here(x):
        return x.contiguous(memory_format=torch.channels_last)
    return x


def doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of size 3 over `x` with each point repeated twice on each axis, without making that map.

    Of three neighbours of a point two are the same, so each point of the result is a convolution of size 2 over `x`,
    by kernels with two weights added; which two depends on whether the point is even or odd on each axis. That is 4/9
    of the arithmetic in two dimensions, 8/27 in three.

    Args:
        x: `[batch, in_channels, *spatial]`.
        weight: `[out_channels, in_channels, 3, ...]`.
        bias: `[out_channels]`.

    Returns:
        `[batch, out_channels, *twice]`, laid out in memory as `x`.
    """
    y = _phases(x, weight, bias, ())
    return y.movedim(-1, 1) if is_channels_last(x) else y


def _phases(x: Tensor, weight: Tensor, bias: Tensor | None, odd: tuple[bool, ...]) -> Tensor:
    """The points of `doubled` that are `odd` or even on the first axes, and all points on the others.

    Args:
        x: `[batch, in_channels, *spatial]`.
        weight: `[out_channels, in_channels, *kernel]`, of size 2 on the axes of `odd`, of 3 on the others.
        bias: `[out_channels]`.
        odd: For each of the first axes.

    Returns:
        `[batch, out_channels, *sizes]`, twice the size on the other axes; with the channels last if they are in `x`.
    """
    known, dims = len(odd), x.ndim - 2
    if known == dims:
        part = CONVOLVE[dims](x, weight, bias, padding=1)
        for axis, (first, length) in enumerate(zip(odd, x.shape[2:], strict=True), 2):
            part = part.narrow(axis, int(first), length)
        return part.movedim(1, -1) if is_channels_last(x) else part
    left, middle, right = weight.unbind(2 + known)
    even = _phases(x, torch.stack([left, middle + right], 2 + known), bias, (*odd, False))
    uneven = _phases(x, torch.stack([left + middle, right], 2 + known), bias, (*odd, True))
    axis = known + (1 if is_channels_last(x) else 2)
    return torch.stack([even, uneven], axis + 1).flatten(axis, axis + 1)


def pays_to_double(x: Tensor, conv: nn.Module) -> bool:
    """Whether `doubled` is sooner than the repetition: where there are many points for each weight."""
    return (
        is_chosen_here(x)
        and isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and conv.padding_mode == "zeros"
        and x.numel() > 2 * conv.in_channels * conv.out_channels
    )


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` `[batch, channels, height, width]` has its channels last in memory, as torch's kernels see it too.

    They look at the stride of a batch of one.
    """
    if x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return len(x) > 1 or x.stride(0) == x.numel()


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`: the same constructor, weights and function, computed in the way that suits the sizes."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve `input` `[batch, in_channels, height, width]`."""
        y: Tensor
        if not self._may_choose(input, weight):
            y = super()._conv_forward(input, weight, bias)
            return y
        if self.kernel_size == (1, 1):
            y = F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias)
            return y.permute(0, 3, 1, 2)
        points = input.shape[0] * input.shape[2] * input.shape[3] // (self.stride[0] * self.stride[1])
        if points >= 2 * self.out_channels:
            y = super()._conv_forward(input, weight, bias)
        elif (
            points > self.out_channels // 4
            or weight.numel() < LARGE_WEIGHT
            or torch.is_grad_enabled()  # which would keep what all points see
        ):
            y = super()._conv_forward(input.contiguous(), weight, bias)
        else:
            y = self._product(input, weight, bias)
        return y.contiguous(memory_format=torch.channels_last)

    def _may_choose(self, input: Tensor, weight: Tensor) -> bool:
        """Whether a channels-last `input` meets plain weights where nobody else decides how things are computed."""
        return (
            is_chosen_here(input)
            and is_channels_last(input)
            and weight.is_contiguous()
            and input.dtype == weight.dtype
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and self.groups == 1
            and (self.kernel_size != (1, 1) or (self.stride == (1, 1) and self.padding == (0, 0)))
        )

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution as one matrix product over what each point of the output sees."""
        padding = (int(self.padding[0]), int(self.padding[1]))
        seen = F.unfold(input, self.kernel_size, self.dilation, padding, self.stride)
        matrix = weight.flatten(1).expand(input.shape[0], -1, -1)
        y = torch.bmm(matrix, seen) if bias is None else torch.baddbmm(bias[:, None], matrix, seen)
        size = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                input.shape[2:], self.kernel_size, self.stride, padding, self.dilation, strict=True
            )
        )
        return y.reshape(*y.shape[:2], *size)


def is_chosen_here(x: Tensor) -> bool:
    """Whether how to compute is for this library to choose: in full precision on a CPU, where nobody else chooses."""
    return is_precise_on_cpu(x) and not is_transformed()


def is_precise_on_cpu(x: Tensor) -> bool:
    """Whether `x` is on a CPU, and operations there are in full precision."""
    is_precise = x.dtype is torch.float32 or x.dtype is torch.float64
    return x.is_cpu and is_precise and not torch.is_autocast_enabled("cpu")


def is_transformed() -> bool:
    """Whether operations are not run but compiled or exported, or mapped or differentiated by `torch.func`."""
    return torch.compiler.is_compiling() or transforms() is not None
