"""Layers computed together, or in place, where nobody would notice: the same function in fewer passes over memory.

A module that somebody changed or watches (an adapter, a hook, a quantised weight, a compiled part) is called as it is.
Nothing is kept between calls, so weights may change at any time and in any way.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules import module as everywhere

from latentdiff._convolution import Conv2d, is_transformed
from latentdiff._gathered_norm import GatheredNorm
from latentdiff._normalization import GroupNorm

PLAIN: Final = frozenset({nn.Linear, GroupNorm, nn.Conv1d, nn.Conv3d, Conv2d})
"""Modules that are their weights and nothing else, whose results are new tensors."""


def is_plain(module: nn.Module) -> bool:
    """Whether `module` is its weights and nothing else: no adapter, no hook, no quantisation, none that compiles."""
    return (
        type(module) in PLAIN
        and type(module.weight) is nn.Parameter
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not (everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks)
        and not (everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks)
        and not is_transformed()
    )


def silu_of(norm: nn.Module, x: Tensor, *, is_free: bool = False) -> Tensor:
    """`silu(norm(x))`, shaped like `x`; in place where the norm's result, or with `is_free` `x`, is nobody else's."""
    if isinstance(norm, GatheredNorm):
        return norm.silu(x)
    if torch.is_grad_enabled() or not is_plain(norm) or not isinstance(norm, GroupNorm):
        return F.silu(norm(x))
    return norm.silu(x, is_free=is_free)


def drop_out(x: Tensor, rate: float, is_training: bool) -> Tensor:
    """`x` after dropout; without a call of torch where there is none."""
    return F.dropout(x, rate) if is_training and rate else x


def plus(last: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """`y + x`, shaped like both; in place where `y`, the result of the module `last`, is nobody else's."""
    if torch.is_grad_enabled() or y.dtype != x.dtype or not is_plain(last):
        return y + x
    return y.add_(x)


def geglu(x: Tensor, linear: nn.Module) -> Tensor:
    """The first half of `linear(x)` times the GELU of the second (Shazeer 2020, arXiv:2002.05202, eq. 6).

    As two products rather than the halves of one, what follows runs over memory without gaps, and in place where
    nobody keeps it for a gradient.

    Args:
        x: `[batch, length, dim]`.
        linear: From `dim` to twice `hidden`.

    Returns:
        `[batch, length, hidden]`.
    """
    if not is_plain(linear) or not isinstance(linear, nn.Linear):
        both: Tensor = linear(x)
        value, gate = both.chunk(2, dim=-1)
        return value * F.gelu(gate)
    parts = zip(linear.weight.chunk(2), linear.bias.chunk(2), strict=True)
    if torch.is_grad_enabled():
        gated: Tensor = _Gated.apply(*(F.linear(x, *part) for part in parts))  # type: ignore[no-untyped-call]
        return gated
    value, gate = (F.linear(x, weight).add_(bias) for weight, bias in parts)  # sooner than from rows of the bias
    torch.ops.aten.gelu_(gate)
    return value.mul_(gate)


class _Context(FunctionCtx):
    """What torch gives the two directions of a function."""

    saved_tensors: tuple[Tensor, ...]


class _Gated(torch.autograd.Function):
    """`value * gelu(gate)`, whose gradient takes the GELU again instead of keeping it: three arrays instead of four."""

    @staticmethod
    def forward(ctx: _Context, value: Tensor, gate: Tensor) -> Tensor:
        """Multiply; the GELU's array is the result's."""
        ctx.save_for_backward(value, gate)
        return F.gelu(gate).mul_(value)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both factors' gradients, which may be differentiated again."""
        value, gate = ctx.saved_tensors
        of_gate: Tensor = torch.ops.aten.gelu_backward(gradient * value, gate)
        return gradient * F.gelu(gate), of_gate
