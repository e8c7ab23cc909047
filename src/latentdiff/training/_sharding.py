"""Tensors of which each process has a part: `torch.distributed.tensor.DTensor`.

Importing it takes about a second, so it waits until something is sharded.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn


class Sharded(Protocol):
    """What is asked here of a `DTensor`."""

    def to_local(self) -> Tensor:
        """The part of this process, `[...]`."""
        ...  # pragma: no cover

    def full_tensor(self) -> Tensor:
        """All parts, gathered, `[...]`."""
        ...  # pragma: no cover


def is_sharded(tensor: object) -> bool:
    """Whether a tensor of any shape is a `DTensor`."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process has; any other tensor as it is, of any shape."""
    return cast(Sharded, tensor).to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, of its whole shape; any other tensor as it is, of any shape."""
    return cast(Sharded, tensor).full_tensor() if is_sharded(tensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of a module with its sharded tensors gathered, each `[...]` of its whole shape.

    To be called on every process. What it returns can be loaded into a model that is not sharded, to sample from it
    or to `ld.save` it.
    """
    return {name: whole(value).detach() for name, value in module.state_dict().items()}


def shard_like(copy: nn.Module, module: nn.Module) -> None:
    """Give the parameters of `copy` the sharding of those of `module` that have the same names."""
    owners = dict(copy.named_modules())
    for name, weight in module.named_parameters():
        own = copy.get_parameter(name)
        if is_sharded(weight) and not is_sharded(own):
            path, _, last = name.rpartition(".")
            setattr(owners[path], last, nn.Parameter(_sharded(own.detach(), weight), requires_grad=False))


@torch.no_grad()
def fill(target: Tensor, stored: Tensor) -> None:
    """Fill `target`, sharded or not, from a whole tensor of its shape, which every process has."""
    part = local(_sharded(stored.to(target.device), target)) if is_sharded(target) else stored
    local(target).copy_(part)


def _sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor `[...]`, which every process has, sharded as `like`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    pattern = cast(DTensor, like)
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements)
