"""Codebook search beside vector-quantize-pytorch: time and peak memory at 8,192 and 16,384 codes.

Both quantise the same vectors with the same codes, without learning; their indices are compared before the clock runs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from bench.memory import peak_bytes
from bench.timing import compare
from latentdiff import VectorQuantizer

SIZES = (8192, 16384)
DIMS = (4, 256)
SIDE = 64
"""Of the map: 4,096 vectors, those of an image of 256 or 512 points at f = 4 or 8."""


def pair(size: int, dim: int, device: str) -> tuple[VectorQuantizer, VectorQuantize]:
    """Both quantisers with one codebook, in evaluation mode."""
    own = VectorQuantizer(codebook_size=size, dim=dim).to(device).eval()
    peer = VectorQuantize(dim=dim, codebook_size=size, accept_image_fmap=True).to(device).eval()
    codes = torch.randn(size, dim, device=device)
    with torch.no_grad():
        own.codebook.copy_(codes)
        peer._codebook.embed.copy_(codes[None])
    return own, peer


@torch.no_grad()
def run(device: str, rounds: int) -> list[dict[str, object]]:
    """Print a table, and return its rows."""
    rows: list[dict[str, object]] = []
    print(
        f"{'codes':>6} {'dim':>4} {'peer / ours (quartiles)':>24} {'ours, ms':>9} {'MiB, ours':>10} {'MiB, peer':>10}"
    )
    for size in SIZES:
        for dim in DIMS:
            own, peer = pair(size, dim, device)
            z = torch.randn(1, dim, SIDE, SIDE, device=device)
            agreement = share_of_equal(own(z).indices, peer(z)[1])
            if agreement < 0.999:  # the peer's distances are float32: some of the nearest are taken for each other
                raise RuntimeError(f"the two find other codes: {agreement:.4f} are equal")
            ratio = compare(lambda: own(z), lambda: peer(z), rounds)  # noqa: B023
            memory = [peak_bytes(lambda: call(z)) / 2**20 for call in (own, peer)]  # noqa: B023
            row = {"codes": size, "dim": dim, "ratio": ratio.median, "low": ratio.low, "high": ratio.high}
            rows.append(row | {"ms": ratio.ours * 1e3, "mib": memory[0], "mib_peer": memory[1]})
            print(f"{size:>6} {dim:>4} {ratio!s:>24} {ratio.ours * 1e3:>9.0f} {memory[0]:>10.1f} {memory[1]:>10.1f}")
    return rows


def share_of_equal(first: Tensor, second: Tensor) -> float:
    """Which share of two maps of indices, of any shape, is equal."""
    return (first.flatten() == second.flatten()).double().mean().item()
