"""What several processes do together, and one process alone does not: sums, draws that all share, gathering."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other processes to agree with: `torch.distributed` is initialised, with more than one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of `tensor`, of any shape, over all processes, the same on each."""
    if is_distributed():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def from_first_process(tensor: Tensor) -> Tensor:
    """The `tensor`, of any shape, of process 0, on every process."""
    if is_distributed():
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.broadcast(tensor, src=0)
    return tensor


def gather(tensor: Tensor) -> list[Tensor]:
    """The `tensor`, of one shape everywhere, of every process, in the order of their ranks."""
    if not is_distributed():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return gathered
