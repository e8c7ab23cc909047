"""What steers the network, and the encoders that make it from labels and the like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_positive, check_shape
from latentdiff._module import Module
from latentdiff._noise import draw_uniform
from latentdiff._typing import Tokens

Routing: TypeAlias = Literal["context", "embedding"]
"""By which way a vector reaches the network: as a token of cross-attention, or added to the time embedding."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Condition:
    """Everything a network is told beside the noisy latents and the time; each part may be absent.

    Attributes:
        context: Tokens for cross-attention, `[batch, length, context_dim]`.
        context_mask: `[batch, length]`, bool, True where attention may look; None looks everywhere.
        embedding: A vector added to the time embedding, `[batch, embedding_dim]`; for a network with a table of
            classes, labels `[batch]`, integer, -1 for none.
        concat: Channels put beside the latents, `[batch, concat_channels, *spatial]`.

    Raises:
        TypeError: If `context_mask` is not boolean, or a part is no tensor.
        ValueError: If a part has another rank, the parts differ in batch size, or a mask does not fit its context.
    """

    context: Tokens | None = None
    context_mask: Tensor | None = None
    embedding: Tensor | None = None
    concat: Tensor | None = None

    def __post_init__(self) -> None:
        if self.context is not None:
            check_shape("context", self.context, "batch length context_dim")
        if self.embedding is not None:
            check_shape("embedding", self.embedding, "batch ...")
            if self.embedding.ndim > 1:
                check_shape("embedding", self.embedding, "batch embedding_dim")
        if self.concat is not None:
            check_shape("concat", self.concat, "batch concat_channels length ...")
        if self.context_mask is not None:
            if self.context is None:
                raise ValueError("context_mask must come with the context it masks, got context=None")
            batch, length, _ = self.context.shape
            check_shape("context_mask", self.context_mask, "batch length", batch=batch, length=length)
            if self.context_mask.dtype != torch.bool:
                raise TypeError(
                    f"context_mask must be bool, True where attention may look, got {self.context_mask.dtype}"
                )
        parts = self._parts()
        if len({part.shape[0] for part in parts.values()}) > 1:
            raise ValueError(f"the parts of a Condition must have the same batch, got {self}")

    def __len__(self) -> int:
        """The batch size; 0 where all parts are absent."""
        for part in self._parts().values():
            return part.shape[0]
        return 0

    def __getitem__(self, index: slice | Tensor) -> Condition:
        """The samples at `index` along the batch: a slice, or a tensor `[n]` of numbers or `[batch]` of booleans.

        Raises:
            TypeError: If `index` is a single number, which would take the batch axis away.
        """
        if not isinstance(index, slice | Tensor):
            raise TypeError(f"index must be a slice or a tensor, got {index!r}; take one sample by [i : i + 1]")
        return Condition(**{name: part[index] for name, part in self._parts().items()})

    def __repr__(self) -> str:
        """The shapes, not the numbers."""
        shapes = (f"{name}={list(part.shape)}" for name, part in self._parts().items())
        return f"Condition({', '.join(shapes)})"

    def to(self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """All parts on a device, the floating ones in a dtype; as for a tensor, a dtype may come alone."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        parts = self._parts().items()
        return Condition(**{name: part.to(device, dtype if part.is_floating_point() else None) for name, part in parts})

    def cat(self, *others: object) -> Condition:
        """This condition and `others` along the batch: two conditions for one call of a network.

        A shorter context is padded and masked. Other parts must have the same shape.

        Raises:
            TypeError: If one of `others` is no `Condition`.
            ValueError: If one has a part that another lacks, or in another shape.
        """
        joined = self
        for other in others:
            one, two = joined._alike(other)
            joined = Condition(**{name: torch.cat([one[name], two[name]]) for name in one})
        return joined

    def where(self, keep: Tensor, other: Condition) -> Condition:
        """This condition's samples where `keep` `[batch]`, bool, is True, those of `other` elsewhere.

        Raises:
            TypeError: If `other` is no `Condition`.
            ValueError: If the two do not have the same parts and batch.
        """
        if len(self) != len(other):
            raise ValueError(f"other must have the same batch of {len(self)}, got {len(other)}")
        check_shape("keep", keep, "batch", batch=len(self))
        one, two = self._alike(other)
        return Condition(**{name: torch.where(_spread(keep, one[name]), one[name], two[name]) for name in one})

    def _parts(self) -> dict[str, Tensor]:
        """The parts that are there, by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: part for name, part in named if part is not None}

    def _alike(self, other: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parts of both, contexts of one length, the other's in the dtype and on the device of these."""
        if not isinstance(other, Condition):
            raise TypeError(f"other must be a Condition, got {type(other).__name__}")
        one, two = self, other
        if one.context is not None and two.context is not None:
            lengths = {one.context.shape[1], two.context.shape[1]}
            if len(lengths) > 1 or one.context_mask is not None or two.context_mask is not None:
                one, two = one._padded(max(lengths)), two._padded(max(lengths))
        ours, theirs = one._parts(), two._parts()
        if ours.keys() != theirs.keys() or any(ours[name].shape[1:] != theirs[name].shape[1:] for name in ours):
            raise ValueError(f"conditions must have the same parts and shapes, got {self} and {other}")
        return ours, {name: part.to(ours[name]) for name, part in theirs.items()}

    def _padded(self, length: int) -> Condition:
        """The same with a context of `length` tokens, the last ones masked."""
        if self.context is None:
            return self
        mask = self.context_mask
        if mask is None:
            mask = torch.ones(self.context.shape[:2], dtype=torch.bool, device=self.context.device)
        missing = length - self.context.shape[1]
        return replace(
            self, context=F.pad(self.context, (0, 0, 0, missing)), context_mask=F.pad(mask, (0, missing), value=False)
        )


def _spread(keep: Tensor, part: Tensor) -> Tensor:
    """`keep` `[batch]` with further axes of size 1, so that it selects samples of `part` `[batch, ...]`."""
    return keep.reshape(-1, *(1,) * (part.ndim - 1))


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
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        self.dropout = dropout
        self.register_buffer("null_trained", torch.tensor(False))

    @abstractmethod
    def forward(self, y: object) -> Condition:
        """Encode a batch of whatever the encoder takes."""

    @abstractmethod
    def null(self, batch: int) -> Condition:
        """No condition, `batch` times, in the form that `forward` returns."""

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
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        if probability == 0:
            return condition
        if self.training:
            self.null_trained.fill_(True)
        keep = draw_uniform(len(condition), generator, device=self.null_trained.device) >= probability
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


class ClassEncoder(ConditionEncoder):
    """A learned vector for each class, and one for none.

    The last row of the table `embedding` `[num_classes + 1, dim]` is the null.
    """

    def __init__(self, *, num_classes: int, dim: int, routing: Routing = "context", dropout: float = 0.1) -> None:
        """Build the table.

        Args:
            num_classes: Labels are 0 ... num_classes - 1.
            dim: Size of a vector.
            routing: `"context"`: one token for cross-attention; `"embedding"`: added to the time embedding.
            dropout: Share of the samples whose label training drops, in [0, 1].

        Raises:
            ValueError: If a number is out of range, or `routing` is unknown.
        """
        super().__init__(dropout=dropout)
        check_positive("num_classes", num_classes)
        check_positive("dim", dim)
        check_choice("routing", routing, get_args(Routing))
        self.num_classes = num_classes
        self.dim = dim
        self.routing: Routing = routing
        self.embedding: nn.Embedding = nn.Embedding(num_classes + 1, dim)

    def forward(self, y: object) -> Condition:
        """Look labels up.

        Labels on an accelerator are waited for, once a call, so that a wrong one raises here; labels on the CPU cost
        no wait, and are moved.

        Args:
            y: `[batch]`, integer, in 0 ... num_classes - 1, or -1 for none.

        Returns:
            A condition with context `[batch, 1, dim]` or embedding `[batch, dim]`.

        Raises:
            TypeError: If `y` is no tensor, or does not hold integers.
            ValueError: If it has another rank, or a label is out of range.
        """
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a torch.Tensor of labels, got {type(y).__name__}")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise TypeError(f"y must hold integer labels, got {y.dtype}")
        check_shape("y", y, "batch")
        if not torch.compiler.is_compiling():
            low, high = torch.stack(torch.aminmax(y)).tolist()
            if low < -1 or high >= self.num_classes:
                raise ValueError(
                    f"y must be in [0, {self.num_classes - 1}], or -1 for none, got labels in [{low}, {high}]"
                )
        labels = y.to(self.embedding.weight.device, torch.int64)
        if self.training:
            self.null_trained.logical_or_((labels < 0).any())
        return self._condition(torch.where(labels < 0, self.num_classes, labels))

    def null(self, batch: int) -> Condition:
        """The vector for none, `batch` times."""
        return self._condition(torch.full((batch,), self.num_classes, device=self.embedding.weight.device))

    def _condition(self, rows: Tensor) -> Condition:
        vectors: Tensor = self.embedding(rows)
        return Condition(context=vectors[:, None]) if self.routing == "context" else Condition(embedding=vectors)
