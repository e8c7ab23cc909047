"""Finite scalar quantisation: each channel is rounded to one of a few levels; the codes are a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from latentdiff._checks import check_floating, check_shape, working_dtype
from latentdiff._quantized import Quantized, Quantizer, check_indices, code_use
from latentdiff._typing import Latents

MARGIN: Final = 1e-3
"""How far `bound` reaches past the outermost levels, relative to them: else tanh could not come close."""


class FiniteScalarQuantizer(Quantizer):
    r"""A grid for a codebook (Mentzer et al. 2023, arXiv:2309.15505, sec. 3.1): nothing to learn, nothing to collapse.

    Channel i has \(L_i\) levels at distance \(1 / \lfloor L_i / 2 \rfloor\): from -1 to 1 for an odd number, from -1 to
    \(1 - 2 / L_i\) for an even one. `bound` takes an encoder's output there by

    \[ \Bigl(h \tanh(z + \operatorname{artanh}(o / h)) - o\Bigr) / \lfloor L / 2 \rfloor, \qquad
       h = (1 + 10^{-3})\,(L - 1) / 2, \]

    with \(o = 1/2\) for an even L and 0 for an odd one; `quantize` rounds, with a straight-through gradient. So
    quantising twice is once, and what `lookup` returns is a fixed point.

    The number of a code is \(\sum_i k_i \prod_{j < i} L_j\), with \(k_i\) its level in channel i counted from the
    lowest. Levels are found in float32 at least; a dtype too coarse to hold them apart is refused.

    Example:
        >>> quantizer = FiniteScalarQuantizer(levels=(8, 5, 5))
        >>> quantized = quantizer(torch.randn(2, 3, 8, 6))
        >>> quantizer.codebook_size, torch.allclose(quantizer.lookup(quantized.indices), quantized.latents)
        (200, True)
    """

    def __init__(self, *, levels: Sequence[int]) -> None:
        """Keep the levels.

        Args:
            levels: Number of levels of each channel, at least 2. The paper advises (8, 6, 5) for 2 ** 8 codes,
                (8, 5, 5, 5) for 2 ** 10, (7, 5, 5, 5, 5) for 2 ** 12, (8, 8, 8, 6, 5) for 2 ** 14 (table 1).

        Raises:
            ValueError: If there are no levels, a channel has fewer than 2, or there are more codes than int64 counts.
        """
        super().__init__()
        self.levels: tuple[int, ...] = tuple(levels)
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels must be at least 2, one number for each channel, got {self.levels}")
        self.dim: int = len(self.levels)
        self.codebook_size: int = math.prod(self.levels)
        if self.codebook_size >= 2**63:
            raise ValueError(f"levels must make fewer than 2 ** 63 codes, got {self.codebook_size}")

    def bound(self, z: Latents) -> Latents:
        """Take an encoder's output into the range of the levels.

        Args:
            z: `[batch, dim, *spatial]`.

        Returns:
            Same shape, about in [-1, 1], float32 at least.

        Raises:
            ValueError: If the shape does not fit.
            TypeError: If `z` is not floating.
        """
        self._check(z)
        z = z.to(working_dtype(z.dtype))
        half, offset, unit = ([*values] for values in zip(*map(_shape_of, self.levels), strict=True))
        shift = [math.atanh(o / h) for o, h in zip(offset, half, strict=True)]
        bounded = self._channels(half, z) * (z + self._channels(shift, z)).tanh() - self._channels(offset, z)
        return bounded / self._channels(unit, z)

    def quantize(self, z: Latents) -> Quantized:
        """Round to the nearest level.

        Args:
            z: `[batch, dim, *spatial]`, a point after `bound`.

        Returns:
            As `forward`; the loss is 0.

        Raises:
            ValueError: If the shape does not fit, or the dtype of `z` cannot tell the levels apart.
            TypeError: If `z` is not floating.
        """
        self._check(z)
        dtype = z.dtype
        z = z.to(working_dtype(dtype))
        unit = self._channels([level // 2 for level in self.levels], z)
        lowest = self._channels([-(level // 2) for level in self.levels], z)
        highest = self._channels([(level - 1) // 2 for level in self.levels], z)
        steps = (z.detach() * unit).round().clamp(lowest, highest)
        indices = ((steps - lowest).long() * self._places(z.device, z.ndim)).sum(1)
        latents = z + (steps / unit - z).detach()
        perplexity, usage = code_use(indices, self.codebook_size, z.dtype)
        return Quantized(latents.to(dtype), indices, z.new_zeros(()), perplexity, usage)

    def lookup(self, indices: Tensor) -> Latents:
        """The codes of `indices`.

        Args:
            indices: `[batch, *spatial]`, integers in 0 ... codebook_size - 1.

        Returns:
            `[batch, dim, *spatial]`, float32, in [-1, 1].

        Raises:
            TypeError: If `indices` are not integers.
            ValueError: If one is out of range.
        """
        check_indices(indices, "batch ...", self.codebook_size)
        levels = torch.tensor(self.levels, device=indices.device).reshape(1, -1, *(1,) * (indices.ndim - 1))
        steps = indices[:, None] // self._places(indices.device, indices.ndim + 1) % levels
        return (steps - levels // 2).float() / (levels // 2)

    def _check(self, z: Latents) -> None:
        check_floating("z", z)
        check_shape("z", z, "batch dim ...", dim=self.dim)
        most = round(2 / torch.finfo(z.dtype).eps)
        if max(self.levels) > most:
            raise ValueError(f"levels must be at most {most} in {z.dtype}, got {self.levels}; use float32")

    def _channels(self, values: Sequence[float], z: Latents) -> Tensor:
        """One number for each channel, shaped to work on `z` `[batch, dim, *spatial]`."""
        return torch.tensor(values, dtype=z.dtype, device=z.device).reshape(1, -1, *(1,) * (z.ndim - 2))

    def _places(self, device: torch.device, ndim: int) -> Tensor:
        """What a level of each channel adds to the number of the code, `[1, dim, ...]` of `ndim` axes."""
        places = [math.prod(self.levels[:channel]) for channel in range(self.dim)]
        return torch.tensor(places, device=device).reshape(1, -1, *(1,) * (ndim - 2))


def _shape_of(level: int) -> tuple[float, float, int]:
    """Half-width h, offset o and steps in a unit, of a channel with `level` levels."""
    return (1 + MARGIN) * (level - 1) / 2, 0.0 if level % 2 else 0.5, level // 2
