"""Several encoders at once."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from latentdiff._checks import check_choice
from latentdiff._condition._condition import Condition, visible
from latentdiff._condition._encoder import ConditionEncoder, named_parts
from latentdiff._module import describe
from latentdiff._typing import JSON


class MultiEncoder(ConditionEncoder):
    """Several conditions at once: contexts one after the other, maps beside each other, embeddings summed or joined.

    The null is that of all. In training each part is dropped by its own encoder's chance, and all of them together by
    `dropout`.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, ConditionEncoder],
        embedding: Literal["sum", "concat"] = "sum",
        dropout: float = 0.0,
    ) -> None:
        """Join the encoders.

        Args:
            encoders: By the names that `forward` gets their inputs under; their order is that of the parts.
            embedding: Whether embeddings are added up, being of one size, or put one after the other.
            dropout: Share of the samples for which training drops all parts together, in [0, 1].

        Raises:
            TypeError: If one is no encoder.
            ValueError: If there are none, a name is no Python identifier, or a number is out of range.
        """
        super().__init__(dropout=dropout)
        check_choice("embedding", embedding, ("sum", "concat"))
        if not encoders:
            raise ValueError("encoders must not be empty")
        for name, encoder in encoders.items():
            if not name.isidentifier() or keyword.iskeyword(name) or hasattr(nn.ModuleDict, name):
                raise ValueError(f"names of encoders must be Python identifiers that torch does not use, got {name!r}")
            if not isinstance(encoder, ConditionEncoder):
                raise TypeError(f"encoders must be condition encoders, got {type(encoder).__name__} for {name!r}")
        self.encoders: nn.ModuleDict = nn.ModuleDict(dict(encoders))
        self.embedding: Literal["sum", "concat"] = embedding

    @property
    def config(self) -> dict[str, JSON]:
        """The arguments that build this encoder again, those of the encoders in them."""
        encoders: dict[str, JSON] = {name: describe(encoder) for name, encoder in self._named()}
        return {"encoders": encoders, "embedding": self.embedding, "dropout": self.dropout}

    def forward(self, y: object) -> Condition:
        """Encode.

        Args:
            y: A mapping from each encoder's name to what it takes, or to None for its null, `[batch, ...]` each.

        Returns:
            A condition with the parts of all.

        Raises:
            TypeError: If `y` is no mapping.
            ValueError: If a name is missing or unknown, all are None, or the parts do not fit together.
        """
        parts = self._inputs(y)
        return self._joined({name: None if part is None else self._encoder(name)(part) for name, part in parts.items()})

    def null(self, batch: int) -> Condition:
        """The null of all, `batch` times."""
        return self._join([encoder.null(batch) for _, encoder in self._named()])

    def for_training(self, y: object, generator: torch.Generator | None = None) -> Condition:
        """What a training step conditions on: each part dropped by its own chance, and all by that of the whole.

        Args:
            y: What `forward` takes.
            generator: Where chance comes from.

        Returns:
            The condition.
        """
        parts = self._inputs(y)
        conditions = {
            name: None if part is None else self._encoder(name).for_training(part, generator)
            for name, part in parts.items()
        }
        return self.drop(self._joined(conditions), generator=generator)

    def require_null(self) -> None:
        """Refuse to go on where the null was never trained: neither that of all at once, nor that of each.

        Raises:
            ValueError: If that is so.
        """
        for _, encoder in self._named():
            if not self.null_trained.item():
                encoder.require_null()

    def _named(self) -> Iterable[tuple[str, ConditionEncoder]]:
        return ((name, self._encoder(name)) for name in self.encoders)

    def _encoder(self, name: str) -> ConditionEncoder:
        encoder = self.encoders[name]
        if not isinstance(encoder, ConditionEncoder):
            raise TypeError(f"encoders must be condition encoders, got {type(encoder).__name__} for {name!r}")
        return encoder

    def _inputs(self, y: object) -> dict[str, object]:
        parts = named_parts(y, set(self.encoders))
        if all(part is None for part in parts.values()):
            raise ValueError("y must have a part that is not None; no condition at all is null(batch)")
        return {name: parts[name] for name in self.encoders}

    def _joined(self, conditions: Mapping[str, Condition | None]) -> Condition:
        """All conditions as one, those that are None by their nulls."""
        sizes = {name: len(condition) for name, condition in conditions.items() if condition is not None}
        batch = max(sizes.values())
        if min(sizes.values()) != batch:
            each = ", ".join(f"{name!r}: {size}" for name, size in sizes.items())
            raise ValueError(f"encoders must be given as many samples each, got {each}")
        filled: list[Condition] = []
        for name, condition in conditions.items():
            if condition is None:
                encoder = self._encoder(name)
                if self.training:
                    encoder.null_trained.fill_(True)
                condition = encoder.null(batch)
            filled.append(condition)
        return self._join(filled)

    def _join(self, conditions: list[Condition]) -> Condition:
        """Several conditions of the same samples as one."""
        context, mask = _join_contexts([c for c in conditions if c.context is not None])
        embeddings = [c.embedding for c in conditions if c.embedding is not None]
        embedding: Tensor | None = None
        if embeddings:
            embedding = torch.cat(embeddings, dim=1) if self.embedding == "concat" else _sum(embeddings)
        concat = _join_maps([c for c in conditions if c.concat is not None])
        return Condition(context=context, context_mask=mask, embedding=embedding, concat=concat)


def _join_contexts(conditions: list[Condition]) -> tuple[Tensor | None, Tensor | None]:
    """Contexts one after the other, `[batch, length, dim]`, and their mask `[batch, length]` where one has any."""
    contexts = [c.context for c in conditions if c.context is not None]
    if not contexts:
        return None, None
    dims = {context.shape[-1] for context in contexts}
    if len(dims) > 1:
        raise ValueError(f"encoders must make context tokens of one size, got {sorted(dims)}")
    mask: Tensor | None = None
    if any(c.context_mask is not None for c in conditions):
        mask = torch.cat([visible(c.context, c.context_mask) for c in conditions if c.context is not None], dim=1)
    return torch.cat(contexts, dim=1), mask


def _join_maps(conditions: list[Condition]) -> Tensor | None:
    """Maps beside each other, `[batch, channels, *spatial]`; those of size 1 are repeated."""
    sizes = [tuple(c.concat.shape[2:]) for c in conditions if c.concat is not None]
    if not sizes:
        return None
    size = next((size for size in sizes if set(size) != {1}), sizes[0])
    return torch.cat([c.concat for c in (c.expand(size) for c in conditions) if c.concat is not None], dim=1)


def _sum(embeddings: list[Tensor]) -> Tensor:
    """The sum of vectors `[batch, dim]` of one size."""
    dims = {embedding.shape[-1] for embedding in embeddings}
    if len(dims) > 1:
        raise ValueError(f"encoders must make embeddings of one size to be summed, got {sorted(dims)}; or join them")
    return torch.stack(embeddings).sum(dim=0)
