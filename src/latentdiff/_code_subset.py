"""Numbers for those codes of a codebook that data use, as published models of indices have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from latentdiff._checks import check_shape

UnknownCode: TypeAlias = Literal["extra", "random"] | int
"""What becomes of a code outside the subset: a number of its own, one drawn at random, or always the same."""


@dataclass(frozen=True, slots=True, eq=False)
class CodeSubset:
    """Some codes of a codebook, numbered 0, 1, 2 ...: a smaller vocabulary for a model of indices.

    Of a large codebook a data set may use a few hundred codes. Published transformers over such indices count only
    those, by a list `used` that comes with the model (`remap` in the configurations of Esser et al. 2021,
    arXiv:2012.09841): number i stands for the code `used[i]`. Codes that are not in the list get what `unknown` says.

    Example:
        >>> subset = CodeSubset(torch.tensor([7, 2, 9]))
        >>> numbers = subset.compress(torch.tensor([[2, 9, 5, 7]]))
        >>> numbers, subset.expand(numbers), len(subset)
        (tensor([[1, 2, 3, 0]]), tensor([[2, 9, 7, 7]]), 4)

    Attributes:
        used: `[count]`, int64, distinct codes in the order of their numbers.
        unknown: `"extra"`: one more number, `count`, for them all, which `expand` takes back to `used[0]`; `"random"`:
            any number, drawn anew; or a number.

    Raises:
        TypeError: If `used` is not int64.
        ValueError: If it is empty or names a code twice, or `unknown` is no number of the subset.
    """

    used: Tensor
    unknown: UnknownCode = "extra"

    def __post_init__(self) -> None:
        check_shape("used", self.used, "count")
        if self.used.dtype != torch.int64:
            raise TypeError(f"used must be int64, got {self.used.dtype}")
        if len(self.used.unique()) < len(self.used) or int(self.used.min()) < 0:
            raise ValueError("used must hold distinct codes, not negative")
        if self.unknown not in ("extra", "random", *range(len(self.used))):
            raise ValueError(f"unknown must be 'extra', 'random' or in [0, {len(self.used) - 1}], got {self.unknown!r}")

    def __len__(self) -> int:
        """How many numbers there are."""
        return len(self.used) + (self.unknown == "extra")

    def compress(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The numbers of codes.

        Args:
            indices: Codes, any shape, int64, on the device of `used`.
            generator: For unknown codes, where they are drawn.

        Returns:
            Same shape, int64, in 0 ... `len(self)` - 1.
        """
        ordered, number = self.used.sort()
        place = torch.searchsorted(ordered, indices.contiguous()).clamp(max=len(ordered) - 1)
        return torch.where(ordered[place] == indices, number[place], self._unknown(indices, generator))

    def expand(self, numbers: Tensor) -> Tensor:
        """The codes of numbers.

        Args:
            numbers: Any shape, int64, in 0 ... `len(self)` - 1.

        Returns:
            Same shape, int64: indices of the codebook.
        """
        return self.used[torch.where(numbers < len(self.used), numbers, 0)]

    def _unknown(self, indices: Tensor, generator: torch.Generator | None) -> Tensor:
        """What stands for each of `indices`, of any shape, if it is not in the subset."""
        if self.unknown == "random":
            device = indices.device if generator is None else generator.device
            return torch.randint(len(self.used), indices.shape, generator=generator, device=device).to(indices.device)
        return torch.full_like(indices, len(self.used) if self.unknown == "extra" else int(self.unknown))
