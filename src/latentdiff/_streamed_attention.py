"""Self-attention among all points of a map that comes in bands, with two maps in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from latentdiff._attention import SpatialSelfAttention, to_map, to_tokens
from latentdiff._gathered_norm import GatheredNorm
from latentdiff._typing import Tokens


def attend(attention: SpatialSelfAttention, bands: list[Tensor]) -> None:
    r"""Let the points of a map attend to each other, band by band; what comes out is written over the bands.

    Besides the map there is one more, of the normalised points \(t\), which serve as keys and as values. With one head,

    \[ (W_q t_i + b_q)^\top (W_k t_j + b_k) = \bigl(W_k^\top (W_q t_i + b_q)\bigr)^\top t_j + c_i, \qquad
       \sum_j p_{ij} (W_v t_j + b_v) = W_v \Bigl(\sum_j p_{ij} t_j\Bigr) + b_v, \]

    as the softmax over j knows nothing of \(c_i\) and its \(p_{ij}\) sum to 1.

    Args:
        attention: With one head and separate projections, as autoencoders have it.
        bands: `[1, channels, *spatial]` each.
    """
    tokens = _normalised(attention, bands)
    start = 0
    for band in bands:
        size = band.shape[2:]
        stop = start + size.numel()
        out = to_map(_attended(attention, tokens[:, start:stop], tokens), tuple(size))
        band.add_(out)
        start = stop


def _normalised(attention: SpatialSelfAttention, bands: list[Tensor]) -> Tokens:
    """The points of all bands after the norm, whose statistics are those of the whole map: `[1, points, channels]`."""
    norm = GatheredNorm(attention.norm)
    for band in bands:
        norm.gather(band)
    norm.is_gathered = True
    points = [band.shape[2:].numel() for band in bands]
    tokens = bands[0].new_empty(1, sum(points), attention.channels)
    for part, band in zip(tokens.split(points, 1), bands, strict=True):
        part.copy_(to_tokens(norm(band)))
    return tokens


def _attended(attention: SpatialSelfAttention, queries: Tokens, tokens: Tokens) -> Tokens:
    """What `queries` `[1, count, channels]`, some of `tokens` `[1, points, channels]`, get to see: shaped like them."""
    folded = F.linear(attention.to_q(queries), attention.to_k.weight.T)
    heads = (folded[:, None], tokens[:, None], tokens[:, None])
    seen = F.scaled_dot_product_attention(*heads)[:, 0]
    out: Tensor = attention.to_out(attention.to_v(seen))
    return out
