"""A step of several objectives on a batch, over any number of processes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentdiff._distributed import is_distributed
from latentdiff.training._average import Average
from latentdiff.training._batches import count, split
from latentdiff.training._objective import Objective
from latentdiff.training._parallel import (
    Parallel,
    Sharded,
    average_whole_gradients,
    equalize,
    gradient_norm,
    only_gathering,
    scale_gradients,
)
from latentdiff.training._random import seeded
from latentdiff.training._sharding import shard_like
from latentdiff.training._step import SampleNoise, Step, key

NORM = "gradient_norm"


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is not finite; no weight has moved for it.

    Attributes:
        step: Steps made before the one that failed.
        figures: What was logged of it, by name.
    """

    def __init__(self, message: str, step: int, figures: Mapping[str, float]) -> None:
        """Say what is not finite, and when."""
        super().__init__(message)
        self.step = step
        self.figures: dict[str, float] = dict(figures)


class Engine:
    """Objectives with their optimisers and averages, ready for steps."""

    def __init__(
        self,
        objectives: Sequence[Objective],
        averages: Sequence[tuple[Average[Any], nn.Module]],
        *,
        parallel: Parallel,
        autocast: bool,
        accumulate: int,
        seed: int,
    ) -> None:
        self.objectives, self.averages = tuple(objectives), tuple(averages)
        self.accumulate, self.seed = accumulate, seed
        self.device = next(iter(self.objectives[0].parameters)).device
        self._autocast = autocast
        equalize(one.module for one in objectives)
        equalize(module for average, source in averages for module in (average.module, source))
        self.modules = [parallel.wrap(one.module, frozenset(one.parameter_names), self.device) for one in objectives]
        for average, module in averages:
            shard_like(average.module, module)
        self._parameters = [objective.parameters for objective in objectives]  # to look for them takes a while
        self.optimizers = [objective.make_optimizer() for objective in objectives]
        self._is_sharded = isinstance(parallel, Sharded)

    def advance(self, batch: Any, number: int) -> dict[str, float]:
        """Make a step on this process's share of a batch, `[share, ...]`, and tell its figures over all processes.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite; then all is as it was before.
        """
        buffers = [buffer.clone() for buffer in self._buffers()]
        sums: dict[str, Tensor] = {}
        taken = [False] * len(self.objectives)
        rank = dist.get_rank() if is_distributed() else 0
        with seeded(key("step", self.seed, number, rank), self.device):
            for step, part in self._parts(batch, number, rank):
                is_last = step.kept.pop("is last part", False) is True
                for i, objective in enumerate(self.objectives):
                    figures = self._backward(i, part, step, is_last)
                    taken[i] = taken[i] or bool(figures)
                    for name, value in figures.items():
                        label = self._label(objective, name)
                        sums[label] = sums.get(label, 0) + value / self.accumulate
        norms = self._norms(taken)
        told = _told(sums, norms)
        if bad := [
            name for name, value in told.items() if name in norms.keys() | self._losses() and not math.isfinite(value)
        ]:
            message = self._what_is_wrong(bad, number, batch)
            self._restore(buffers)
            raise NonFiniteError(message, number, told)
        self._move(taken, norms, number)
        return told

    def _parts(self, batch: Any, number: int, rank: int) -> Iterator[tuple[Step, Any]]:
        """The parts in which the batch is taken, each with its samples' random numbers."""
        parts = split(batch, self.accumulate)
        for i, part in enumerate(parts):
            size = count(part)
            noise = SampleNoise(key("samples", self.seed, number), (rank * self.accumulate + i) * size)
            yield Step(number, noise, {"is last part": i + 1 == len(parts)}), part

    def _backward(self, i: int, batch: Any, step: Step, is_last: bool) -> dict[str, Tensor]:
        """Add an objective's gradient on a part of the batch; its figures `[]`, or none if it sits the step out."""
        module = self.modules[i]
        with only_gathering(module, is_last):
            with self._cast():
                answer: Tensor | Mapping[str, Tensor] | None = module(batch, step)
            if answer is None:
                return {}
            figures = {"loss": answer} if isinstance(answer, Tensor) else dict(answer)
            if "loss" not in figures:
                raise ValueError(f"module must return a loss or a mapping with 'loss', got {sorted(figures)}")
            (figures["loss"] / self.accumulate).backward()
        return {name: value.detach().float() for name, value in figures.items()}

    def _norms(self, taken: Sequence[bool]) -> dict[str, Tensor]:
        """Norm `[]` of each objective's gradient, whose shared part is averaged before."""
        norms: dict[str, Tensor] = {}
        for objective, parameters, is_taken in zip(self.objectives, self._parameters, taken, strict=True):
            if is_taken:
                if self._is_sharded:
                    average_whole_gradients(parameters)
                norms[self._label(objective, NORM)] = gradient_norm(parameters)
        return norms

    @torch.no_grad()
    def _move(self, taken: Sequence[bool], norms: Mapping[str, Tensor], number: int) -> None:
        """Clip gradients, move weights, take them into the averages."""
        for i, (objective, optimizer) in enumerate(zip(self.objectives, self.optimizers, strict=True)):
            if not taken[i]:
                continue
            if objective.clip is not None:
                scale_gradients(self._parameters[i], objective.clip, norms[self._label(objective, NORM)])
            for group in optimizer.param_groups:
                group["lr"] = objective.learning_rate.at(number)
            optimizer.step()
        self.forget_gradients()
        for average, module in self.averages:
            average.update(module)

    def forget_gradients(self) -> None:
        """Let go of all gradients."""
        for weight in itertools.chain(*self._parameters):
            weight.grad = None

    def _buffers(self) -> list[Tensor]:
        return [buffer for objective in self.objectives for buffer in objective.module.buffers()]

    @torch.no_grad()
    def _restore(self, buffers: Sequence[Tensor]) -> None:
        """Undo what a step did before its optimisers moved."""
        for own, before in zip(self._buffers(), buffers, strict=True):
            own.copy_(before)
        self.forget_gradients()

    def _cast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._autocast else nullcontext()

    @staticmethod
    def _label(objective: Objective, name: str) -> str:
        return f"{objective.name}/{name}" if objective.name else name

    def _losses(self) -> set[str]:
        return {self._label(objective, "loss") for objective in self.objectives}

    def _what_is_wrong(self, bad: Sequence[str], number: int, batch: Any) -> str:
        """What to look at: gradients, learning rates, the batch."""
        weights = [
            self._label(objective, name)
            for objective, parameters in zip(self.objectives, self._parameters, strict=True)
            for name, weight in zip(objective.parameter_names, parameters, strict=True)
            if weight.grad is not None and not weight.grad.isfinite().all()
        ]
        rates = ", ".join(f"{objective.learning_rate.at(number):.3g}" for objective in self.objectives)
        where = f"{', '.join(weights[:4])} and {max(len(weights) - 4, 0)} more" if weights else "none"
        return (
            f"{' and '.join(bad)} must be finite, got something else at step {number}; no weight has moved. Look at "
            f"the batch of this step ({_described(batch)}), the learning rate ({rates}), the figures of the steps "
            f"before it, and the weights whose gradients are not finite ({where})"
        )


def _told(sums: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures `[]` as numbers, averaged over the processes, in one transfer; norms are the same on all."""
    if not sums:
        return {}
    first = next(iter(sums.values()))
    means = torch.stack([value.reshape(()).to(first.device, torch.float32) for value in sums.values()])
    if is_distributed():
        dist.all_reduce(means)
        means /= dist.get_world_size()
    joined = torch.cat([means, *(norm.reshape(1).to(means) for norm in norms.values())])
    return dict(zip((*sums, *norms), joined.tolist(), strict=True))


def _described(batch: Any) -> str:
    """The tensors of a batch in a few words."""
    tensors = list(_tensors(batch))
    words: list[str] = []
    for tensor in tensors[:3]:
        text = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.is_floating_point() and tensor.numel():
            finite = tensor[tensor.isfinite()]
            span = f" in [{finite.min():.3g}, {finite.max():.3g}]" if finite.numel() else ""
            text += f"{span}, {tensor.numel() - finite.numel()} values not finite"
        words.append(text)
    return "; ".join(words) or "no tensors"


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)
