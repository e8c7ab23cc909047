"""Linear attention: as self-attention, at a cost that grows with the number of points and not with its square."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentdiff._attention import to_map, to_tokens
from latentdiff._module import Module


class SpatialLinearAttention(Module):
    r"""Attention among the points of a map in which each channel of the keys weighs the points once for all queries.

    \(Q\, (\mathrm{softmax}_n(K)^T V)\): the softmax goes over the points n, and the queries are not normalised. One
    head; neither a norm before it nor the map added to it, as some first stages of the published code have it.

    References:
        Shen et al. 2018, arXiv:1812.01243, section 3.2, without the softmax of the queries.
    """

    def __init__(self, *, channels: int) -> None:
        """Build the projections.

        Args:
            channels: Channels of the map.
        """
        super().__init__()
        self.channels = channels
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` `[batch, channels, *spatial]`, each point of it, to a mixture of all points, shaped like `x`."""
        q, k, v = self.to_qkv(to_tokens(x)).chunk(3, dim=2)
        summary = torch.einsum("bnd,bne->bde", k.softmax(dim=1), v)
        return to_map(self.to_out(q @ summary), tuple(x.shape[2:]))
