"""A learned weight of each noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentdiff._checks import check_positive
from latentdiff._module import Module
from latentdiff._prediction import edm_input_time


class Uncertainty(Module):
    r"""u, the log of the loss to be expected at a noise level (Karras et al. 2024, arXiv 2312.02696, eq. 21).

    With it a loss L becomes \(L / e^{u} + u\). That is least where \(u = \log E[L]\), namely \(1 + \log E[L]\), so all
    noise levels come to have gradients of one size, whatever the other weight. u is linear in random Fourier features
    of \(\frac14 \log(\sigma / \alpha)\) and starts at 0, where the loss is unchanged.

    Its parameters are no part of the network: give them to the optimiser too, and leave them out of what is sampled.
    """

    frequencies: Tensor
    """Of the features, `[dim]`; drawn once, not trained."""

    phases: Tensor
    """Of the features, `[dim]`; drawn once, not trained."""

    def __init__(self, *, dim: int = 128) -> None:
        """Draw the features.

        Args:
            dim: Number of features, positive.

        Raises:
            ValueError: If it is not.
        """
        super().__init__()
        check_positive("dim", dim)
        self.dim = dim
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(dim))
        self.register_buffer("phases", 2 * math.pi * torch.rand(dim))
        self.weight: nn.Parameter = nn.Parameter(torch.zeros(dim))
        self.bias: nn.Parameter = nn.Parameter(torch.zeros(()))

    def forward(self, log_snr: Tensor) -> Tensor:
        """u at a log SNR.

        Args:
            log_snr: float64 `[batch]`; infinite at the ends.

        Returns:
            float32 `[batch]`, under autocast too.
        """
        level = torch.as_tensor(edm_input_time(log_snr)).unsqueeze(-1)
        features = math.sqrt(2) * torch.cos(level * self.frequencies.double() + self.phases.double())
        # products and a sum, not a matrix product, which autocast would compute in half precision
        return (features.float() * self.weight.float()).sum(-1) + self.bias.float()
