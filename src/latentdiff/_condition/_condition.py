"""What steers the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from latentdiff._checks import by_sample, check_shape
from latentdiff._typing import Tokens


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Condition:
    """Everything a network is told beside the noisy latents and the time; each part may be absent.

    Attributes:
        context: Tokens for cross-attention, `[batch, length, context_dim]`.
        context_mask: `[batch, length]`, bool, True where attention may look; None looks everywhere.
        embedding: A vector added to the time embedding, `[batch, embedding_dim]`; for a network with a table of
            classes, labels `[batch]`, integer, -1 for none.
        concat: Channels put beside the latents, `[batch, concat_channels, *spatial]`; of size 1 on each axis where it
            is the same at all points, as a null is.

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
        batches = [part.shape[0] for part in self._parts().values()]
        if any(batch != batches[0] for batch in batches):  # no set: torch.export's symbolic sizes have no hash
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

    def to(
        self,
        device: torch.device | torch.dtype | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Condition:
        """All parts on a device, the floating ones in a dtype; as for a tensor, a dtype may come alone."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return Condition(
            **{
                name: part.to(device, dtype if part.is_floating_point() else None, non_blocking=non_blocking)
                for name, part in self._parts().items()
            }
        )

    def expand(self, size: Sequence[int]) -> Condition:
        """This condition with a `concat` of size 1 repeated, without a copy, to the spatial `size`.

        Without `concat`, or where it has that size, nothing changes.

        Raises:
            ValueError: If `concat` has another size.
        """
        if self.concat is None or self.concat.shape[2:] == tuple(size):
            return self
        if len(size) != self.concat.ndim - 2 or set(self.concat.shape[2:]) != {1}:
            raise ValueError(
                f"concat must have the spatial size {list(size)}, or 1 on each axis, got {list(self.concat.shape[2:])}"
            )
        return replace(self, concat=self.concat.expand(*self.concat.shape[:2], *size))

    def cat(self, *others: object) -> Condition:
        """This condition and `others` along the batch: two conditions for one call of a network.

        A shorter context is padded and masked, and a `concat` of size 1 repeated. Other parts must have the same shape.

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
        return Condition(**{name: torch.where(by_sample(keep, one[name]), one[name], two[name]) for name in one})

    def _parts(self) -> dict[str, Tensor]:
        """The parts that are there, by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: part for name, part in named if part is not None}

    def _alike(self, other: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parts of both, of one length and size, the other's in the dtype and on the device of these."""
        if not isinstance(other, Condition):
            raise TypeError(f"other must be a Condition, got {type(other).__name__}")
        one, two = self, other
        if one.context is not None and two.context is not None:
            lengths = {one.context.shape[1], two.context.shape[1]}
            if len(lengths) > 1 or one.context_mask is not None or two.context_mask is not None:
                one, two = one._padded(max(lengths)), two._padded(max(lengths))
        if one.concat is not None and two.concat is not None and one.concat.ndim == two.concat.ndim:
            sizes = one.concat.shape[2:], two.concat.shape[2:]
            if set(sizes[0]) == {1}:
                one = one.expand(sizes[1])
            elif set(sizes[1]) == {1}:
                two = two.expand(sizes[0])
        ours, theirs = one._parts(), two._parts()
        if ours.keys() != theirs.keys() or any(ours[name].shape[1:] != theirs[name].shape[1:] for name in ours):
            raise ValueError(f"conditions must have the same parts and shapes, got {self} and {other}")
        return ours, {name: part.to(ours[name]) for name, part in theirs.items()}

    def _padded(self, length: int) -> Condition:
        """The same with a context of `length` tokens, the last ones masked."""
        if self.context is None:
            return self
        mask = F.pad(visible(self.context, self.context_mask), (0, length - self.context.shape[1]), value=False)
        context = F.pad(self.context, (0, 0, 0, length - self.context.shape[1]))
        return replace(self, context=context, context_mask=mask)


def visible(context: Tokens, mask: Tensor | None) -> Tensor:
    """The mask `[batch, length]` of a context `[batch, length, context_dim]`: all True where there is none."""
    if mask is not None:
        return mask
    return torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)


# `torch.export` and whoever else looks for tensors inside of arguments is told where they are. The mask goes first, as
# the guards of torch 2.13 would take `context_mask` for `context` with something behind it.
LEAVES: Final = ("context_mask", "context", "embedding", "concat")


def _flatten(condition: Condition) -> tuple[list[Tensor | None], None]:
    return [getattr(condition, name) for name in LEAVES], None


def _flatten_with_keys(condition: Condition) -> tuple[list[tuple[_pytree.KeyEntry, Tensor | None]], None]:
    keys = [cast("_pytree.KeyEntry", _pytree.GetAttrKey(name)) for name in LEAVES]
    return list(zip(keys, _flatten(condition)[0], strict=True)), None


def _unflatten(leaves: Iterable[object], _: object) -> Condition:
    """A condition of anything, as torch puts placeholders in the place of tensors: nothing is checked."""
    condition = object.__new__(Condition)
    for name, leaf in zip(LEAVES, leaves, strict=True):
        object.__setattr__(condition, name, leaf)
    return condition


_pytree.register_pytree_node(
    Condition,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name="latentdiff.Condition",
)
