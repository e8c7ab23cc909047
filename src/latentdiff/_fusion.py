"""Layers computed together, where nobody would notice: the same function with fewer passes over memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module


def is_plain(linear: nn.Module) -> bool:
    """Whether `linear` is its weight and bias and nothing else: no adapter, no hook, no quantisation.

    What is not plain must be called, so that those who changed or watch it are heard.
    """
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and "forward" not in linear.__dict__
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
        and not (_torch_module._global_forward_hooks or _torch_module._global_forward_pre_hooks)
    )


def geglu(x: Tensor, linear: nn.Linear) -> Tensor:
    """The first half of `linear(x)` times the GELU of the second (Shazeer 2020, arXiv:2002.05202, eq. 6).

    As two products rather than the halves of one, what follows runs over memory without gaps, and in place where
    nobody keeps it for a gradient.

    Args:
        x: `[batch, length, dim]`.
        linear: From `dim` to twice `hidden`.

    Returns:
        `[batch, length, hidden]`.
    """
    if not is_plain(linear) or torch.compiler.is_compiling():
        value, gate = linear(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
    weights = linear.weight.unflatten(0, (2, -1)).unbind(0)
    biases = linear.bias.unflatten(0, (2, -1)).unbind(0)
    value, gate = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
    if torch.is_grad_enabled():
        return value * F.gelu(gate)
    return value.mul_(torch.ops.aten.gelu_(gate))
