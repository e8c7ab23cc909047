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

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_fast_map(x: Tensor) -> Tensor:
    """`x` `[batch, channels, *spatial]` in the layout that networks are fastest in: channels last on a CPU in 2D."""
    if x.ndim == 4 and _is_chosen_here(x):
        return x.contiguous(memory_format=torch.channels_last)
    return x


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`: the same constructor, weights and function, computed in the way that suits the sizes."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve `input` `[batch, in_channels, height, width]`."""
        if not self._may_choose(input, weight):
            return super()._conv_forward(input, weight, bias)
        if weight.shape[2:] == (1, 1):
            return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        points = input.shape[0] * input.shape[2] * input.shape[3] // (self.stride[0] * self.stride[1])
        if points >= 2 * self.out_channels:
            return super()._conv_forward(input, weight, bias)
        if points > self.out_channels // 4:
            y = super()._conv_forward(input.contiguous(), weight, bias)
        else:
            y = self._product(input, weight, bias)
        return y.contiguous(memory_format=torch.channels_last)

    def _may_choose(self, input: Tensor, weight: Tensor) -> bool:
        """Whether a channels-last `input` meets plain weights where nobody else decides how things are computed."""
        return (
            _is_chosen_here(input)
            and input.ndim == 4
            and input.is_contiguous(memory_format=torch.channels_last)
            and weight.is_contiguous()
            and input.dtype == weight.dtype
            and self.padding_mode == "zeros"
            and self.groups == 1
            and (self.kernel_size != (1, 1) or (self.stride == (1, 1) and self.padding == (0, 0)))
        )

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution as one matrix product over what each point of the output sees."""
        seen = F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)
        matrix = weight.flatten(1).expand(input.shape[0], -1, -1)
        y = torch.bmm(matrix, seen) if bias is None else torch.baddbmm(bias[:, None], matrix, seen)
        size = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(input.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        )
        return y.unflatten(2, tuple(size))


def _is_chosen_here(x: Tensor) -> bool:
    """Whether how to compute is for this library to choose: on a CPU, where no compiler or autocast does."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )
