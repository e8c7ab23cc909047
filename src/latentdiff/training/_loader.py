"""Batches of the steps from a loader that is gone through from its beginning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, cast, runtime_checkable

import torch

from latentdiff.training._random import seeded
from latentdiff.training._step import key


@runtime_checkable
class Resumable(Protocol):
    """A loader that knows how to go on, such as torchdata's `StatefulDataLoader`."""

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        ...  # pragma: no cover

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from there."""
        ...  # pragma: no cover


class LoaderBatches:
    """Batches as a function of the step, of a `DataLoader` or any iterable that can be gone through anew.

    Asked in turn it goes on; asked for another step it begins the epoch anew and skips. What is drawn from torch's
    global generators, such as the order of a `DataLoader(shuffle=True)` and augmentations, is a function of seed, epoch
    and step, and so are the generators that the loader and its sampler have.
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader, self.seed = loader, seed
        self._next, self._epoch = 0, -1
        self._items: Iterator[Any] | None = None

    def __call__(self, step: int) -> Any:
        """The batch of a step."""
        if self._items is None or step != self._next:
            self._seek(step)
        batch = self._draw()
        self._next = step + 1
        return batch

    def state(self) -> dict[str, Any] | None:
        """What the loader says of where it is, if it does, and which epoch this is."""
        if not isinstance(self.loader, Resumable):
            return None
        return {"loader": self.loader.state_dict(), "epoch": self._epoch, "next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        cast(Resumable, self.loader).load_state_dict(state["loader"])
        self._epoch, self._next = state["epoch"] - 1, state["next"]
        self._begin()

    def _seek(self, step: int) -> None:
        length = len(cast("list[Any]", self.loader)) if hasattr(self.loader, "__len__") else 0
        epoch, skipped = divmod(step, length) if length else (0, step)
        self._epoch, self._next = epoch - 1, step - skipped
        self._begin()
        for _ in range(skipped):
            self._draw()
            self._next += 1

    def _draw(self) -> Any:
        """The next batch, of the next epoch where this one is at its end."""
        with seeded(key("batch", self.seed, self._next), torch.device("cpu")):
            item = next(self._running(), self)
        if item is self:
            self._begin()
            with seeded(key("batch", self.seed, self._next), torch.device("cpu")):
                item = next(self._running(), self)
        if item is self:
            raise ValueError("batches must hold at least one batch, and be there anew each epoch, got none")
        return item

    def _running(self) -> Iterator[Any]:
        if self._items is None:
            self._begin()
        return cast("Iterator[Any]", self._items)

    def _begin(self) -> None:
        self._epoch += 1
        sampler, seed = getattr(self.loader, "sampler", None), key("epoch", self.seed, self._epoch)
        for owner in (self.loader, sampler, getattr(self.loader, "batch_sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                generator.manual_seed(seed)
            if callable(set_epoch := getattr(owner, "set_epoch", None)):
                set_epoch(self._epoch)
        with seeded(seed, torch.device("cpu")):
            self._items = iter(self.loader)
