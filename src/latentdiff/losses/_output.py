"""A loss and where it came from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DiffusionLossOutput:
    """A loss and where it came from.

    Attributes:
        loss: Mean over the batch of `importance * per_sample`, `[]`.
        per_sample: Weighted loss of each sample, `[batch]`.
        t: The times, `[batch]`.
        importance: What makes up for times being drawn more or less often than others, `[batch]`, float64; 1 unless
            they were drawn by importance.
    """

    loss: Tensor
    per_sample: Tensor
    t: Tensor
    importance: Tensor
