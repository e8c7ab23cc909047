"""Vector quantisation: each vector of a map becomes its nearest code."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_count, check_floating, check_shape, working_dtype
from latentdiff._codebook import CodebookAverage, CodeRestarts, k_means, nearest_codes
from latentdiff._quantized import CodeGradient, Quantized, Quantizer, check_indices, code_use, pass_gradient
from latentdiff._typing import Latents
from latentdiff._value_range import check_values


class VectorQuantizer(Quantizer):
    r"""A codebook, and the way of each vector to its nearest code (van den Oord et al. 2017, arXiv:1711.00937).

    With \(e\) the code nearest to \(z\) and sg no gradient, the output is \(z + \mathrm{sg}[e - z]\), and

    \[ L = w\, \overline{\lVert \mathrm{sg}[z] - e \rVert^2} + \beta\, \overline{\lVert z - \mathrm{sg}[e] \rVert^2} \]

    with \(w\) the `codebook_weight` and \(\beta\) the `commitment_weight` (eq. 3; means over elements). The published
    models of VQGAN and latent diffusion were trained with the two weights exchanged: 0.25 on the codebook, 1 on the
    commitment.

    With `decay` the codebook has no gradient and no first term: it is a moving average of the vectors it stands for
    (`CodebookAverage`), updated by `forward` in training mode, over all processes of `torch.distributed`. With
    `restart_below`, `forward` in training mode also gives dead codes a new start, with `decay` or without
    (`CodeRestarts`).

    Half precision and autocast are safe: distances, loss and codes are computed in float32 at least.

    Example:
        >>> quantizer = VectorQuantizer(codebook_size=512, dim=4, decay=0.99)
        >>> quantized = quantizer(torch.randn(2, 4, 8, 6))
        >>> quantized.latents.shape, quantized.indices.shape
        (torch.Size([2, 4, 8, 6]), torch.Size([2, 8, 6]))
    """

    codebook: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        dim: int,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        decay: float | None = None,
        restart_below: float = 0.0,
        cosine: bool = False,
        gradient: CodeGradient = "straight_through",
    ) -> None:
        r"""Draw the codes from \(U(-1/K, 1/K)\).

        Args:
            codebook_size: Number of codes K.
            dim: Size of a code.
            commitment_weight: Beta, on the term that draws the input to its code.
            codebook_weight: On the term that draws the code to the input; only without `decay`.
            decay: Of the moving average, in [0, 1), such as 0.99; None learns the codebook by gradient.
            restart_below: A code with fewer vectors a step than this, on average over as many steps as `decay` says or
                else over about a hundred, starts again at a vector of the batch; 0 for never.
            cosine: Whether vectors and codes are scaled to length 1 before they are compared (Yu et al. 2021,
                arXiv:2110.04627, sec. 3.2); latents then have length 1 too.
            gradient: How the gradient passes from codes to vectors: `"straight_through"` as it is, `"rotation"` turned
                and stretched as the vector is (Fifty et al. 2024, arXiv:2410.06424).

        Raises:
            ValueError: If a number is out of range, or has no use in this combination.
        """
        super().__init__()
        check_count("codebook_size", codebook_size)
        check_count("dim", dim)
        check_choice("gradient", gradient, get_args(CodeGradient))
        if not (0 <= commitment_weight < float("inf") and 0 <= codebook_weight < float("inf")):
            raise ValueError(
                "commitment_weight and codebook_weight must be finite and not negative, "
                f"got {commitment_weight} and {codebook_weight}"
            )
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be None or in [0, 1), got {decay}")
        if decay is not None and codebook_weight != 1:
            raise ValueError(
                f"codebook_weight must be left at 1 with decay: there is no such term, got {codebook_weight}"
            )
        if not 0 <= restart_below < float("inf"):
            raise ValueError(f"restart_below must not be negative, got {restart_below}")
        self.codebook_size = codebook_size
        self.dim = dim
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.decay = decay
        self.restart_below = restart_below
        self.cosine = cosine
        self.gradient: CodeGradient = gradient
        codes = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        self.average: CodebookAverage | None = None
        self.restarts: CodeRestarts | None = None
        if decay is None:
            self.codebook = nn.Parameter(codes)
            if restart_below > 0:
                self.restarts = CodeRestarts(codebook_size, restart_below=restart_below)
        else:
            self.register_buffer("codebook", codes)
            self.average = CodebookAverage(codes, decay=decay, restart_below=restart_below)

    def quantize(self, z: Latents) -> Quantized:
        """Quantize and leave the codebook as it is, whatever the mode.

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
        vectors = self._vectors(z)
        codebook = self._codes(vectors.dtype)
        indices = nearest_codes(vectors, codebook)
        codes = F.embedding(indices, codebook)
        loss = self.commitment_weight * (vectors - codes.detach()).square().mean()
        if self.average is None:
            loss = loss + self.codebook_weight * (vectors.detach() - codes).square().mean()
        latents = pass_gradient(vectors, codes, self.gradient)
        perplexity, usage = code_use(indices, self.codebook_size, vectors.dtype)
        shape = (z.shape[0], *z.shape[2:])
        return Quantized(
            latents.reshape(*shape, self.dim).movedim(-1, 1).to(z.dtype),
            indices.reshape(shape),
            loss,
            perplexity,
            usage,
        )

    def lookup(self, indices: Tensor) -> Latents:
        """The codes of `indices`.

        Args:
            indices: `[batch, *spatial]`, integers in 0 ... codebook_size - 1.

        Returns:
            `[batch, dim, *spatial]`, in the codebook's dtype.

        Raises:
            TypeError: If `indices` are not integers.
            ValueError: If one is out of range.
        """
        check_indices(indices, "batch ...", self.codebook_size)
        return F.embedding(indices, self._codes(self.codebook.dtype)).movedim(-1, 1)

    @torch.no_grad()
    def learn(self, z: Latents, indices: Tensor, generator: torch.Generator | None = None) -> None:
        """With `decay`: take a step of the average; else count codes and restart those that are dead, if any are to be.

        Both over all processes of `torch.distributed`.

        Args:
            z: `[batch, dim, *spatial]`.
            indices: The code of each vector, `[batch, *spatial]`.
            generator: For restarts of dead codes.

        Raises:
            ValueError: If the codebook is in half precision.
        """
        if self.average is not None:
            self.codebook.copy_(self.average.update(self._vectors(z), indices.flatten(), generator))
        elif self.restarts is not None:
            self.codebook.copy_(self.restarts.update(self.codebook, self._vectors(z), indices.flatten(), generator))

    @torch.no_grad()
    def initialize(self, z: Latents, *, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """Place the codes at the k-means of vectors, over all processes: a start from which few codes die.

        Args:
            z: `[batch, dim, *spatial]`, an encoder's outputs; more vectors than codes.
            iterations: Of Lloyd's algorithm; 0 places the codes at vectors drawn at random.
            generator: For the draw of the first centres.

        Raises:
            ValueError: If the shape does not fit or a value is not finite.
            TypeError: If `z` is not floating, or `iterations` no int.
        """
        check_floating("z", z)
        check_shape("z", z, "batch dim ...", dim=self.dim)
        check_values("z", z, None)
        check_count("iterations", iterations, least=0)
        self.codebook.copy_(k_means(self._vectors(z), self.codebook_size, iterations, generator))
        if self.average is not None:
            self.average.start(self.codebook)
        if self.restarts is not None:
            self.restarts.start()

    def _vectors(self, z: Latents) -> Tensor:
        """`z` `[batch, dim, *spatial]` as vectors `[count, dim]`, as they are compared."""
        vectors = z.movedim(1, -1).reshape(-1, self.dim).to(working_dtype(z.dtype))
        return F.normalize(vectors, dim=1) if self.cosine else vectors

    def _codes(self, dtype: torch.dtype) -> Tensor:
        """The codes `[codebook_size, dim]` as they are compared."""
        codes = self.codebook.to(dtype)
        if not self.cosine:
            return codes
        return F.normalize(codes if self.restarts is None else codes.clone(), dim=1)  # restarts come before gradients
