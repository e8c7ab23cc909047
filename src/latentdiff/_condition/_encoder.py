"""From what a user gives to a condition: the base of all encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from latentdiff._checks import check_rate, check_shape
from latentdiff._condition._condition import Condition
from latentdiff._module import Module
from latentdiff._noise import draw_uniform

Routing: TypeAlias = Literal["context", "embedding"]
"""By which way a vector reaches the network: as a token of cross-attention, or added to the time embedding."""

NullKind: TypeAlias = Literal["learned", "zeros", "empty"]
"""What stands for no condition: a learned vector, zeros, or the encoding of an empty input (prompt, layout)."""


class ConditionEncoder(Module, ABC):
    """From what a user gives to a `Condition` (Rombach et al. 2022, arXiv:2112.10752, section 3.3: the encoder tau).

    A subclass says how to encode (`forward`) and what stands for no condition at all (`null`), and keeps the latter in
    its state. Training replaces conditions by the null at the rate `dropout`, which is what classifier-free guidance
    needs; that it happened is kept in the state too, as `null_trained`.

    References:
        Ho and Salimans 2022, arXiv:2207.12598, algorithm 1.
    """

    null_trained: Tensor
    """`[]`, bool: whether a null was ever put in place of a condition in training."""

    def __init__(self, *, dropout: float = 0.1) -> None:
        """Set the rate.

        Args:
            dropout: Share of the samples whose condition training drops, in [0, 1].

        Raises:
            ValueError: If it is out of range.
        """
        super().__init__()
        check_rate("dropout", dropout)
        self.dropout = dropout
        self.register_buffer("null_trained", torch.tensor(False))

    @abstractmethod
    def forward(self, y: object) -> Condition:
        """Encode a batch of whatever the encoder takes."""

    @abstractmethod
    def null(self, batch: int) -> Condition:
        """No condition, `batch` times, in the form that `forward` returns; a `concat` of it has size 1 on each axis."""

    def for_training(self, y: object, generator: torch.Generator | None = None) -> Condition:
        """What a training step conditions on: `y` encoded, and dropped at the rate `dropout`.

        An encoder that adds noise to what it is given, or that has parts with rates of their own, does so here;
        `forward` draws nothing.

        Args:
            y: What `forward` takes.
            generator: Where chance comes from.

        Returns:
            The condition.
        """
        condition: Condition = self(y)
        return self.drop(condition, generator=generator)

    def drop(
        self, condition: Condition, probability: float | None = None, generator: torch.Generator | None = None
    ) -> Condition:
        """Replace whole samples by the null, each by its own chance.

        Args:
            condition: What `forward` returned.
            probability: In [0, 1]; None is `dropout`.
            generator: Where chance comes from; a CPU generator decides the same on every device.

        Returns:
            The condition, of the same batch.

        Raises:
            ValueError: If `probability` is out of range.
        """
        probability = self.dropout if probability is None else probability
        check_rate("probability", probability)
        if probability == 0:
            return condition
        if self.training:
            self.null_trained.fill_(True)
        # a draw of its own: 0 ... 2 are those of the loss
        keep = draw_uniform(len(condition), generator, step=3, device=self.null_trained.device) >= probability
        return condition.where(keep, self.null(len(condition)))

    def require_null(self) -> None:
        """Refuse to go on where the null was never trained.

        Raises:
            ValueError: If no condition was ever dropped in training.
        """
        if not self.null_trained.item():
            raise ValueError(
                "guidance must have a trained null, but no condition was dropped in training: train with dropout > 0, "
                "or sample with guidance_scale=1"
            )


def named_parts(y: object, required: Set[str], optional: Set[str] = frozenset()) -> dict[str, object]:
    """`y` as a dictionary with exactly the keys it must have and may have.

    Raises:
        TypeError: If `y` is no mapping.
        ValueError: If a key is missing or unknown.
    """
    if not isinstance(y, Mapping):
        raise TypeError(f"y must be a mapping with {_list(required)}, got {type(y).__name__}")
    missing, unknown = required - y.keys(), y.keys() - required - optional
    if missing or unknown:
        may = f", and may have {_list(optional)}" if optional else ""
        raise ValueError(f"y must have {_list(required)}{may}, got {_list(set(y))}")
    return dict(y)


def check_integers(name: str, value: object, meaning: str) -> Tensor:
    """`value` as a tensor of integers, which are called `meaning`.

    Raises:
        TypeError: If it is no tensor, or does not hold integers.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of {meaning}, got {type(value).__name__}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold integer {meaning}, got {value.dtype}")
    return value


def check_mask(mask: object, ids: Tensor, meaning: str) -> Tensor:
    """`mask` as booleans of the shape of `ids` `[batch, length]`, True where there is a `meaning`.

    Raises:
        TypeError: If it is no tensor, or does not hold booleans.
        ValueError: If its shape does not fit.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, True where there is {meaning}, got {got}")
    batch, length = ids.shape
    check_shape("mask", mask, "batch length", batch=batch, length=length)
    return mask


def _list(names: Set[object]) -> str:
    return ", ".join(sorted(map(repr, names))) or "nothing"
