"""An average of weights over the steps of a training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from latentdiff.training._sharding import local

M = TypeVar("M", bound=nn.Module)


class Average(ABC, Generic[M]):
    """An average of a module's weights over the steps of a training, kept up to date step by step.

    Weights go by their names. Those without gradient (`requires_grad_(False)`, such as a frozen autoencoder's) are not
    copied: both modules have the same ones. Buffers are copied at each update.

    Attributes:
        module: The averaged copy: in evaluation mode, without gradients.
        averaged: Names of the weights that are averaged.
        updates: Number of updates made.
    """

    def __init__(self, module: M) -> None:
        """Start at the module's present weights.

        Args:
            module: What is trained, on the device where it is trained.
        """
        frozen = {id(weight): weight for weight in module.parameters() if not weight.requires_grad}
        self.averaged: tuple[str, ...] = tuple(name for name, weight in _weights(module) if weight.requires_grad)
        self.module: M = copy.deepcopy(module, cast("dict[int, object]", frozen)).requires_grad_(False).eval()
        self.updates: int = 0

    @abstractmethod
    def decay_of(self, updates: int) -> float:
        r"""\(d\) of the update \(\bar w \leftarrow d\,\bar w + (1 - d)\,w\) that has `updates` others before it."""

    @torch.no_grad()
    def update(self, module: M) -> None:
        """Take the weights of `module` into the average; call it after each step of the optimiser.

        Raises:
            ValueError: If `module` has not the weights of the one that this was made of.
        """
        decay = self.decay_of(self.updates)
        pairs = self._pairs(module)
        self.updates += 1
        averages: list[Tensor] = [local(own) for own, _ in pairs]
        weights: list[Tensor] = [local(current) for _, current in pairs]
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        for own, current in zip(self.module.buffers(), module.buffers(), strict=True):
            own.copy_(current)

    @contextmanager
    def swapped_into(self, module: M) -> Generator[M]:
        """Let `module` have the averaged weights for a while; its own come back whatever happens."""
        own = {name: weight.detach().clone() for name, weight in _weights(module)}
        self.copy_to(module)
        try:
            yield module
        finally:
            _copy(own, module)

    def copy_to(self, module: M) -> None:
        """Give `module` the averaged weights for good."""
        _copy(dict(_weights(self.module)), module)

    def _pairs(self, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Averages and present weights, matched by name."""
        own, current = dict(_weights(self.module)), dict(_weights(module))
        if own.keys() != current.keys():
            differing = sorted(own.keys() ^ current.keys())
            raise ValueError(f"module must have the weights that are averaged, got others: {', '.join(differing[:4])}")
        return [(own[name], current[name]) for name in self.averaged]


def _weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.named_parameters())


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, parameter in _weights(module):
        parameter.copy_(values[name])
