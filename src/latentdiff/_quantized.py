"""What all quantisers share: their face, their result, the gradient past the rounding, how codes are counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff._checks import check_shape
from latentdiff._module import Module
from latentdiff._typing import Latents

CodeGradient: TypeAlias = Literal["straight_through", "rotation"]
"""How a gradient at the codes becomes one at the vectors they stand for; see `pass_gradient`."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """What a quantiser makes of a map.

    Attributes:
        latents: The codes, `[batch, dim, *spatial]`; their gradient passes through to the input.
        indices: Which codes, int64 `[batch, *spatial]`; of a `ResidualQuantizer`, `[batch, stages, *spatial]`.
        loss: `[]`, a mean over all elements; of a `ResidualQuantizer`, the sum of its stages' means.
        perplexity: exp(entropy of the use of codes in this batch, in nats), `[]`, from 1 to codebook_size; of a
            `ResidualQuantizer`, the mean over its stages.
        usage: Fraction of the codes that this batch uses, `[]`, in (0, 1]; likewise.
    """

    latents: Latents
    indices: Tensor
    loss: Tensor
    perplexity: Tensor
    usage: Tensor


class Quantizer(Module, ABC):
    """A map of vectors to a map of codes: the face of every discrete bottleneck, and what to subclass for another.

    A pass is three steps. `bound` takes an encoder's output to where codes are, `quantize` goes to a code, and `learn`
    moves the codes in training, if they do not learn by gradient. Latents of an `Autoencoder` with such a bottleneck
    are points after `bound` and before `quantize`.
    """

    dim: int
    """Channels of a code."""

    codebook_size: int
    """Number of codes; of a `ResidualQuantizer`, in each stage."""

    def forward(self, z: Latents, generator: torch.Generator | None = None) -> Quantized:
        """Bound and quantise, and in training mode let the codes learn from it afterwards.

        Args:
            z: `[batch, dim, *spatial]`, an encoder's output, any number of spatial axes.
            generator: For restarts of dead codes.

        Returns:
            Codes with their gradient, indices, loss and statistics of use.

        Raises:
            ValueError: If the shape does not fit.
            TypeError: If `z` is not floating.
        """
        z = self.bound(z)
        quantized = self.quantize(z)
        if self.training:
            self.learn(z, quantized.indices, generator)
        return quantized

    def bound(self, z: Latents) -> Latents:
        """Where quantisation starts: `z` `[batch, dim, *spatial]` itself, unless a subclass limits it."""
        return z

    @abstractmethod
    def quantize(self, z: Latents) -> Quantized:
        """Quantise `z` `[batch, dim, *spatial]`, a point after `bound`; codes stay as they are whatever the mode."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Latents:
        """The codes `[batch, dim, *spatial]` of `indices`, shaped as `quantize` returns them."""

    def learn(self, z: Latents, indices: Tensor, generator: torch.Generator | None = None) -> None:
        """Move the codes towards the vectors they stood for; nothing here.

        Args:
            z: `[batch, dim, *spatial]`, after `bound`.
            indices: Of `z`, shaped as `quantize` returns them.
            generator: For restarts of dead codes.
        """

    def initialize(self, z: Latents, *, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """Place the codes by data `z` `[batch, dim, *spatial]`, where they can be placed.

        Args:
            z: An encoder's outputs, `[batch, dim, *spatial]`.
            iterations: Of k-means.
            generator: For the draw of the first centres.

        Raises:
            ValueError: If the codes are fixed.
        """
        raise ValueError(f"a quantizer must have a codebook to be initialised, got {type(self).__name__}")


def pass_gradient(vectors: Tensor, codes: Tensor, gradient: CodeGradient) -> Tensor:
    r"""The codes, with a gradient for the vectors they stand for, and none for the codes themselves.

    `"straight_through"` is \(z + \mathrm{sg}[e - z]\): the vector gets the code's gradient as it is. `"rotation"` is
    \(\mathrm{sg}[\lVert e \rVert / \lVert z \rVert\, R]\, z\) with R the rotation of z to e in their plane: the
    gradient keeps its angle to the code. Where z is all but zero there is no such rotation, and it goes straight
    through.

    Args:
        vectors: z, `[count, dim]`.
        codes: e, `[count, dim]`.
        gradient: Which of the two.

    Returns:
        `[count, dim]`, the codes to rounding.

    References:
        van den Oord et al. 2017, arXiv:1711.00937, sec. 3.2; Fifty et al. 2024, arXiv:2410.06424, sec. 4.2.
    """
    if gradient == "straight_through":
        return vectors + (codes - vectors).detach()
    with torch.no_grad():
        length, code_length = (x.norm(dim=1, keepdim=True) for x in (vectors, codes))
        direction, code_direction = F.normalize(vectors, dim=1), F.normalize(codes, dim=1)
        middle = F.normalize(direction + code_direction, dim=1)
        scale = code_length / length.clamp(min=torch.finfo(vectors.dtype).tiny)
        can_rotate = length > torch.finfo(vectors.dtype).eps * code_length
    # R z = z - 2 r r^T z + 2 e' z'^T z, with z', e' of length 1 and r the direction of z' + e'
    along_middle = (vectors * middle).sum(1, keepdim=True)
    along_vector = (vectors * direction).sum(1, keepdim=True)
    rotated = scale * (vectors - 2 * along_middle * middle + 2 * along_vector * code_direction)
    moved = torch.where(can_rotate, rotated, vectors)
    return moved + (codes - moved).detach()


def code_use(indices: Tensor, codebook_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    r"""Perplexity and usage of codes; memory grows with the number of indices, not of codes.

    With \(c_i\) how often index i is found among the n, the entropy \(-\sum_k p_k \log p_k\) is
    \(\log n - \overline{\log c_i}\).

    Args:
        indices: Of any shape, int64.
        codebook_size: Number of codes.
        dtype: Of the two.

    Returns:
        \(\exp\) of the entropy, and the fraction of the codes that is used, `[]` each.
    """
    ordered = indices.flatten().sort().values
    group = (ordered != torch.cat([ordered[:1], ordered[:-1]])).cumsum(0)  # 0 for the least index found, 1 for the next
    sizes = torch.zeros_like(group).scatter_add(0, group, torch.ones_like(group))
    counts = sizes.gather(0, group)
    perplexity = ordered.numel() / counts.to(dtype).log().mean().exp()
    distinct = (sizes > 0).sum()
    return perplexity, distinct.to(dtype) / codebook_size


def check_indices(indices: Tensor, pattern: str, codebook_size: int, **sizes: int) -> None:
    """Require integers `[batch, ...]` that name codes; values are looked at where that costs no wait for a device.

    Raises:
        TypeError: If `indices` are not integers.
        ValueError: If the shape does not fit or one is out of range.
    """
    check_shape("indices", indices, pattern, **sizes)
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices must be int64 or int32, got {indices.dtype}")
    if indices.device.type == "cpu" and not torch.compiler.is_compiling():
        least, most = (int(bound) for bound in torch.aminmax(indices))
        if least < 0 or most >= codebook_size:
            raise ValueError(f"indices must be in [0, {codebook_size - 1}], got values in [{least}, {most}]")
