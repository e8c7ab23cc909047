"""Batches as a function of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from latentdiff._checks import check_count
from latentdiff.training._step import key

B = TypeVar("B")


class Batches(Generic[B]):
    """Batches of a data set as a function of the step, so that there is nothing to keep for going on after a stop.

    Each epoch is a permutation of its own, drawn from the seed; what does not fill a batch at its end is left out.
    `batches(step)` is the batch of a step: all of it alone, and its own share on each of several processes, in the
    order of their ranks.

    Attributes:
        data: The samples.
        batch_size: Samples in a step, over all processes.
        seed: Of the permutations and of `transform`.
        steps_per_epoch: Whole batches in an epoch.
    """

    def __init__(
        self,
        data: Tensor | tuple[Tensor, ...] | Dataset[Any],
        batch_size: int,
        *,
        seed: int = 0,
        transform: Callable[[Any, torch.Generator], B] | None = None,
    ) -> None:
        """Take the samples.

        Args:
            data: A tensor `[samples, ...]`, a tuple of such tensors, or a data set with `len` and `[index]`, whose
                items are collated as `DataLoader` does. If it has an attribute `epoch`, as `LatentCache` has, that is
                set to the number of the epoch.
            batch_size: Samples in a step, over all processes.
            seed: Of the permutations and of `transform`.
            transform: What to do with a batch, by chance drawn from a generator on the CPU, such as flips; the batch
                is moved to the device of training after it. Its numbers differ from process to process.

        Raises:
            ValueError: If there are fewer samples than a batch takes, or tensors differ in length.
            TypeError: If `batch_size` is no int.
        """
        check_count("batch_size", batch_size)
        lengths = {len(tensor) for tensor in data} if isinstance(data, tuple) else {_length(data)}
        if len(lengths) != 1:
            raise ValueError(f"data must be tensors of one length, got {sorted(lengths)}")
        (self._samples,) = lengths
        if self._samples < batch_size:
            raise ValueError(f"data must have at least batch_size={batch_size} samples, got {self._samples}")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.transform = transform
        self.steps_per_epoch: int = self._samples // batch_size
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> B:
        """The batch of a step, or this process's share of it.

        Raises:
            ValueError: If the processes cannot share a batch evenly.
        """
        indices = self.indices(step)
        batch: B = self._take(indices, step // self.steps_per_epoch)
        if self.transform is None:
            return batch
        return self.transform(batch, torch.Generator().manual_seed(key("transform", self.seed, step, _rank())))

    def indices(self, step: int) -> Tensor:
        """Which samples a step takes, or this process of them: int64 `[share]`.

        Raises:
            ValueError: If the processes cannot share a batch evenly.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(key("permutation", self.seed, epoch))
            self._order = (epoch, torch.randperm(self._samples, generator=generator))
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self.batch_size % processes:
            raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {self.batch_size}")
        share = self.batch_size // processes
        start = place * self.batch_size + _rank() * share
        return self._order[1][start : start + share]

    def _take(self, indices: Tensor, epoch: int) -> Any:
        if isinstance(self.data, Tensor):
            return self.data[indices.to(self.data.device)]
        if isinstance(self.data, tuple):
            return tuple(tensor[indices.to(tensor.device)] for tensor in self.data)
        if hasattr(self.data, "epoch"):
            self.data.epoch = epoch  # pyright: ignore[reportAttributeAccessIssue]
        return default_collate([self.data[index] for index in indices.tolist()])


def split(batch: Any, parts: int) -> list[Any]:
    """A batch in equal parts.

    It is made of tensors `[batch, ...]` and sequences with one entry a sample, in tuples, lists and mappings. A list or
    tuple within these that is as long as the batch has one entry a sample; any other holds parts.

    Raises:
        ValueError: If the parts cannot be equal.
        TypeError: If the batch holds no tensors or sequences.
    """
    if parts == 1:
        return [batch]
    samples = count(batch)
    if samples % parts:
        raise ValueError(f"batch must be a multiple of accumulate={parts}, got {samples} samples")
    size = samples // parts
    return [_rows(batch, slice(i * size, (i + 1) * size), samples, is_outer=True) for i in range(parts)]


def _rows(batch: Any, rows: slice, samples: int, *, is_outer: bool = False) -> Any:
    """Some samples of a batch, or of a part of it."""
    if isinstance(batch, Mapping):
        return {name: _rows(value, rows, samples) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        if _is_plain(batch) or (len(batch) == samples and not is_outer):
            return batch[rows]
        return tuple(_rows(value, rows, samples) for value in batch)
    return batch[rows] if isinstance(batch, Tensor) else batch


def count(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor or sequence of plain values.

    Raises:
        TypeError: If there is none.
    """
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    if isinstance(batch, tuple | list) and batch:
        return len(batch) if _is_plain(batch) else count(batch[0])
    raise TypeError(f"a batch must be made of tensors and sequences, got {type(batch).__name__}")


def _is_plain(batch: Sequence[Any]) -> bool:
    """Whether a sequence has one word or number a sample."""
    return all(isinstance(value, str | int | float) for value in batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors, of any shape, on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(to_device(value, device) for value in batch)
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    return batch


def _length(data: Any) -> int:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(f"data must be tensors or a data set with len and [index], got {type(data).__name__}")
    return len(data)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
