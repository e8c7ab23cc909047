"""Layers computed together, or in place, where nobody would notice: the same function in fewer passes over memory.

A module that somebody changed or watches (an adapter, a hook, a quantised weight, a compiled part) is called as it is.
Nothing is kept between calls, so weights may change at any time and in any way.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from latentdiff._convolution import Conv2d, is_transformed
from latentdiff._normalization import GroupNorm

PLAIN: Final = frozenset({nn.Linear, GroupNorm, nn.Conv1d, nn.Conv3d, Conv2d})
"""Modules that are their weights and nothing else, whose results are new tensors."""

HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS: Final = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
"""Where torch keeps whom a module, or any module, tells."""


def is_plain(module: nn.Module) -> bool:
    """Whether `module` is its weights and nothing else: no adapter, no hook, no quantisation, none that compiles."""
    return (
        type(module) in PLAIN
        and type(module.weight) is nn.Parameter
        and "forward" not in module.__dict__
        and not any(getattr(module, hooks) for hooks in HOOKS)
        and not any(getattr(everywhere, hooks) for hooks in GLOBAL_HOOKS)
        and not is_transformed()
    )


def silu_of(norm: nn.Module, x: Tensor) -> Tensor:
    """`silu(norm(x))`, in place where the norm's result is nobody else's; shaped like `x`."""
    y: Tensor = norm(x)
    return F.silu(y, inplace=not torch.is_grad_enabled() and is_plain(norm))


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
    weights = linear.weight.unflatten(0, (2, -1)).unbind(0)
    biases = linear.bias.unflatten(0, (2, -1)).unbind(0)
    value, gate = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    if torch.is_grad_enabled():
        return value * F.gelu(gate)
    torch.ops.aten.gelu_(gate)
    return value.mul_(gate)
