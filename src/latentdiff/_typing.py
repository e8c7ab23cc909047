"""Names for what crosses borders: tensors by their meaning, configuration, randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Images: TypeAlias = Tensor
"""`[batch, channels, *spatial]`, floating, in [-1, 1]."""

Latents: TypeAlias = Tensor
"""`[batch, channels, *spatial]`, floating, of unit size."""

Tokens: TypeAlias = Tensor
"""`[batch, length, dim]`, floating."""

Times: TypeAlias = Tensor | float
"""The model's time: a tensor `[batch]` or `[]`, integer or floating, or one number for the batch."""

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""What a configuration is made of."""

Prediction: TypeAlias = Literal["epsilon", "sample", "v_prediction", "flow", "edm"]
"""What a network's output means."""

SpatialDims: TypeAlias = Literal[1, 2, 3]
"""Number of spatial axes: signals, images, volumes."""


@runtime_checkable
class NoiseSource(Protocol):
    """Noise as a function of its own key: the same key gives the same noise, whatever was drawn before."""

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normal noise of `shape` `[batch, ...]` for draw number `step`."""
        ...  # pragma: no cover


Generator: TypeAlias = torch.Generator | Sequence[torch.Generator] | NoiseSource | None
"""A generator, one a sample, a counter-based source, or torch's global state (None)."""
