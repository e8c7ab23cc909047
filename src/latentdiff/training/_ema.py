"""Moving average of weights."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    r"""Exponential moving average of a module's weights, \(\bar w \leftarrow d\,\bar w + (1 - d)\,w\).

    In its first steps the decay is \(\min(d, (1 + n) / (10 + n))\), n updates having been made, so that the random
    start is soon forgotten; the decay itself is left as it was given. Buffers are copied.

    Attributes:
        module: The averaged copy: in evaluation mode, without gradients.
        decay: d, in [0, 1).
        updates: Number of updates made.
    """

    def __init__(self, module: M, decay: float = 0.999) -> None:
        """Start at the module's present weights.

        Args:
            module: What is trained.
            decay: d, in [0, 1).

        Raises:
            ValueError: If `decay` is out of range.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.module: M = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.updates: int = 0

    @torch.no_grad()
    def update(self, module: M) -> None:
        """Take the weights of `module` into the average; call it after each step of the optimiser."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        for own, current in zip(self.module.buffers(), module.buffers(), strict=True):
            own.copy_(current)

    @contextmanager
    def swapped_into(self, module: M) -> Generator[M]:
        """Let `module` have the averaged weights for a while; its own come back whatever happens."""
        own = [parameter.detach().clone() for parameter in module.parameters()]
        self._copy(self.module.parameters(), module)
        try:
            yield module
        finally:
            self._copy(own, module)

    def copy_to(self, module: M) -> None:
        """Give `module` the averaged weights for good."""
        self._copy(self.module.parameters(), module)

    @staticmethod
    @torch.no_grad()
    def _copy(values: Iterable[Tensor], module: nn.Module) -> None:
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)
