"""What an objective is told about the step it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentdiff._noise import CounterNoise


class SampleNoise:
    """A stream of random numbers for each sample of a batch: a `NoiseSource`, to be passed as `generator`.

    Each call draws the next numbers of the streams, as a `torch.Generator` would. Sample i of the batch has the stream
    of sample `first_sample + i`, whatever the size of the batch and the number of processes that share it.

    Attributes:
        draws: Calls so far.
    """

    def __init__(self, seed: int, first_sample: int = 0) -> None:
        """Begin.

        Args:
            seed: In 0 ... 2 ** 64 - 1.
            first_sample: Number of the first sample of the batch.
        """
        self._noise = CounterNoise(seed, first_sample)
        self.draws: int = 0

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normal noise of `shape` `[batch, ...]`; `step` is not looked at, each call has its own numbers."""
        self.draws += 1
        return self._noise.normal(shape, step=self.draws, device=device, dtype=dtype)


@dataclass(frozen=True)
class Step:
    """What an objective is told about the step it is asked for.

    Attributes:
        number: Steps made before this one.
        generator: Where chance comes from; the same numbers for the same sample of a batch, however many processes
            share the batch and in how many parts it is taken.
        kept: What objectives leave for later ones of the same step, such as a reconstruction, by names of their own.
    """

    number: int
    generator: SampleNoise
    kept: dict[str, object] = field(default_factory=dict)


def key(*parts: int | str) -> int:
    """A number in 0 ... 2 ** 63 - 1 that differs, as if drawn, where the parts do: a seed for each use."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
