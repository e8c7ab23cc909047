"""Training over several processes, by PyTorch's own engines."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latentdiff._distributed import from_first_process, is_distributed
from latentdiff.training._sharding import is_sharded, local


@dataclass(frozen=True)
class Replicated:
    """Each process has the whole model; gradients are averaged (`DistributedDataParallel`).

    Attributes:
        find_unused_parameters: Whether some steps leave some parameters without a gradient; looking for them takes a
            little time.
    """

    find_unused_parameters: bool = False

    def wrap(self, module: nn.Module, trained: frozenset[str], device: torch.device) -> nn.Module:
        """`module` as it is to be called, gradients of the parameters named `trained` being averaged."""
        if not is_distributed():
            return module
        if ignored := [name for name, _ in module.named_parameters() if name not in trained]:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)  # pyright: ignore[reportPrivateUsage]
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=self.find_unused_parameters,
        )


@dataclass(frozen=True)
class Sharded:
    """Each process has a part of each weight, gradient and moment; weights are whole while needed (`fully_shard`).

    Attributes:
        blocks: Classes of modules whose weights are gathered by themselves, each time, so that never all are there at
            once, such as `(torch.nn.TransformerEncoderLayer,)`; their weights must be used in their own `forward`
            only. Without any, all weights of an objective are gathered for a step: then gradients, moments and averages
            are what is saved.
    """

    blocks: tuple[type[nn.Module], ...] = ()

    def wrap(self, module: nn.Module, trained: frozenset[str], device: torch.device) -> nn.Module:
        """`module` itself, its parameters sharded; scalars, which cannot be, stay whole.

        Raises:
            ValueError: If there is no process group.
        """
        if not dist.is_initialized():
            raise ValueError("parallel must be left out in a process alone; start with torchrun and join_processes()")
        from torch.distributed.fsdp import fully_shard  # takes a second: not for those who never shard

        scalars = {weight for weight in module.parameters() if weight.ndim == 0}
        options: dict[str, Any] = {"ignored_params": scalars} if scalars else {}
        if scalars and "ignored_params" not in inspect.signature(fully_shard).parameters:
            raise ValueError("module must have no scalar parameters to be sharded by this version of torch")
        mesh = dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),))
        for part in list(module.modules()):
            if isinstance(part, self.blocks) and part is not module:
                fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh, **options)
        return module


Parallel: TypeAlias = Replicated | Sharded


def join_processes() -> torch.device:
    """Join the processes that `torchrun` started, and say on which device this one trains.

    A process alone, without `torchrun`, joins nothing.

    Returns:
        The GPU of this process's number on its machine if there are GPUs, else the CPU.
    """
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else None
    if device is not None:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo" if device is None else "nccl")
    return device or torch.device("cpu")


@torch.no_grad()
def equalize(modules: Iterable[nn.Module]) -> None:
    """Give all processes the parameters and buffers of the first one."""
    if is_distributed():
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.copy_(from_first_process(tensor.detach()))


def only_gathering(module: nn.Module, is_last: bool) -> AbstractContextManager[object]:
    """Within: gradients are summed over the processes only if `is_last`, of the parts of a batch."""
    if isinstance(module, DistributedDataParallel) and not is_last:
        return cast("AbstractContextManager[object]", module.no_sync())
    elif callable(choose := getattr(module, "set_requires_gradient_sync", None)):
        choose(is_last)
    return nullcontext()


@torch.no_grad()
def average_whole_gradients(parameters: Iterable[Tensor]) -> None:
    """Average over the processes the gradients of those parameters, of any shape, that sharding left whole."""
    for weight in parameters:
        if weight.grad is not None and not is_sharded(weight):
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm `[]` of all gradients of parameters of any shape, over all shards."""
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    shards = [local(grad) for grad in gradients if is_sharded(grad)]
    rest = [grad for grad in gradients if not is_sharded(grad)]
    squares = [_square_sum(part) for part in (shards, rest) if part]
    if shards:
        dist.all_reduce(squares[0])
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], longest: float, norm: Tensor) -> None:
    """Make gradients of parameters of any shape shorter where their common `norm` `[]` is above `longest`."""
    gradients = [local(weight.grad) for weight in parameters if weight.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp(max=1.0))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _square_sum(tensors: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor.numel()])  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return (
        torch.stack([norm.float() for norm in norms]).square().sum()
        if norms
        else torch.zeros((), device=tensors[0].device)
    )
