"""Residual vector quantisation: each stage quantises what the stages before it left over."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from latentdiff._checks import check_count, check_floating, check_shape, working_dtype
from latentdiff._quantized import CodeGradient, Quantized, Quantizer, check_indices, pass_gradient
from latentdiff._quantizer import VectorQuantizer
from latentdiff._typing import Latents


class ResidualQuantizer(Quantizer):
    r"""Codebooks in sequence: a vector becomes the sum of one code from each.

    With \(r_0 = z\), stage d takes the code \(e_d\) nearest to \(r_{d-1}\) and leaves \(r_d = r_{d-1} - e_d\). The loss
    is the sum of the stages' losses; each stage sees its residual with the earlier codes held fixed, so that its
    commitment term is \(\beta\, \overline{\lVert z - \mathrm{sg}[e_1 + \dots + e_d] \rVert^2}\).

    Each stage chooses for itself, not for the sum: unlike the other quantisers, quantising a sum of codes may find
    another, so codes of known indices are decoded with `quantize=False`.

    Example:
        >>> quantizer = ResidualQuantizer(stages=4, codebook_size=64, dim=3, decay=0.99)
        >>> quantized = quantizer(torch.randn(2, 3, 8, 6))
        >>> quantized.latents.shape, quantized.indices.shape
        (torch.Size([2, 3, 8, 6]), torch.Size([2, 4, 8, 6]))

    References:
        Zeghidour et al. 2021, arXiv:2107.03312, algorithm 1; Lee et al. 2022, arXiv:2203.01941, eq. 2 to 4 and 7.
    """

    def __init__(
        self,
        *,
        stages: int,
        codebook_size: int,
        dim: int,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        decay: float | None = None,
        restart_below: float = 0.0,
        gradient: CodeGradient = "straight_through",
    ) -> None:
        """Build a `VectorQuantizer` for each stage.

        Args:
            stages: Number of codebooks.
            codebook_size: Codes of each.
            dim: Size of a code.
            commitment_weight: See `VectorQuantizer`, as the rest.
            codebook_weight: Likewise.
            decay: Likewise.
            restart_below: Likewise.
            gradient: How the gradient passes from the sum of codes to the input.

        Raises:
            ValueError: If a number is out of range, or has no use in this combination.
        """
        super().__init__()
        check_count("stages", stages)
        self.stages = stages
        self.codebook_size = codebook_size
        self.dim = dim
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.decay = decay
        self.restart_below = restart_below
        self.gradient: CodeGradient = gradient
        self.quantizers: nn.ModuleList = nn.ModuleList(self._stage() for _ in range(stages))

    def _stage(self) -> VectorQuantizer:
        return VectorQuantizer(
            codebook_size=self.codebook_size,
            dim=self.dim,
            commitment_weight=self.commitment_weight,
            codebook_weight=self.codebook_weight,
            decay=self.decay,
            restart_below=self.restart_below,
            gradient=self.gradient,
        )

    @property
    def _stages(self) -> list[VectorQuantizer]:
        return [cast(VectorQuantizer, stage) for stage in self.quantizers]

    def quantize(self, z: Latents) -> Quantized:
        """Quantise through all stages and leave the codebooks as they are, whatever the mode.

        Args:
            z: `[batch, dim, *spatial]`.

        Returns:
            As `forward`.

        Raises:
            ValueError: If the shape does not fit.
            TypeError: If `z` is not floating.
        """
        check_floating("z", z)
        check_shape("z", z, "batch dim ...", dim=self.dim)
        residual = z.to(working_dtype(z.dtype))
        total = torch.zeros_like(residual)
        found: list[Quantized] = []
        for stage in self._stages:
            quantized = stage.quantize(residual)
            codes = quantized.latents.detach()
            residual, total = residual - codes, total + codes
            found.append(quantized)
        return Quantized(
            self._passed(z, total),
            torch.stack([quantized.indices for quantized in found], dim=1),
            torch.stack([quantized.loss for quantized in found]).sum(),
            torch.stack([quantized.perplexity for quantized in found]).mean(),
            torch.stack([quantized.usage for quantized in found]).mean(),
        )

    def lookup(self, indices: Tensor) -> Latents:
        """The sums of the codes of `indices`.

        Args:
            indices: `[batch, stages, *spatial]`, integers in 0 ... codebook_size - 1; the first few stages alone give
                a coarser map.

        Returns:
            `[batch, dim, *spatial]`, in the codebooks' dtype.

        Raises:
            TypeError: If `indices` are not integers.
            ValueError: If one is out of range, or there are more stages than codebooks.
        """
        check_indices(indices, "batch stages ...", self.codebook_size)
        if indices.shape[1] > self.stages:
            raise ValueError(f"indices must have at most {self.stages} stages, got {indices.shape[1]}")
        return torch.stack(
            [stage.lookup(one) for stage, one in zip(self._stages, indices.unbind(1), strict=False)]
        ).sum(0)

    @torch.no_grad()
    def learn(self, z: Latents, indices: Tensor, generator: torch.Generator | None = None) -> None:
        """Let each stage learn from the residuals it stood for, as `VectorQuantizer.learn`.

        Args:
            z: `[batch, dim, *spatial]`.
            indices: Of `z`, `[batch, stages, *spatial]`.
            generator: For restarts of dead codes.
        """
        if self.decay is None and self.restart_below == 0:
            return
        residual = z.to(working_dtype(z.dtype))
        for stage, one in zip(self._stages, indices.unbind(1), strict=True):
            left = residual - stage.lookup(one)
            stage.learn(residual, one, generator)
            residual = left

    @torch.no_grad()
    def initialize(self, z: Latents, *, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """Place the codes of each stage at the k-means of what the stages before it leave of `z`.

        Args:
            z: `[batch, dim, *spatial]`, an encoder's outputs; more vectors than codes.
            iterations: Of Lloyd's algorithm; 0 places the codes at vectors drawn at random.
            generator: For the draw of the first centres.

        Raises:
            ValueError: If the shape does not fit.
            TypeError: If `z` is not floating.
        """
        check_floating("z", z)
        residual = z.to(working_dtype(z.dtype))
        for stage in self._stages:
            stage.initialize(residual, iterations=iterations, generator=generator)
            residual = residual - stage.quantize(residual).latents

    def _passed(self, z: Latents, total: Tensor) -> Latents:
        """The sums of codes `total` `[batch, dim, *spatial]` with their gradient for `z`, in its dtype."""
        vectors, codes = (x.movedim(1, -1).reshape(-1, self.dim) for x in (z.to(total.dtype), total))
        passed = pass_gradient(vectors, codes, self.gradient)
        return passed.reshape(z.shape[0], *z.shape[2:], self.dim).movedim(-1, 1).to(z.dtype)
