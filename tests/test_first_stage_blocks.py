"""What every block of the first stage does alike, for any rank and any number of channels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import latentdiff as ld
from latentdiff._typing import SpatialDims

RANKS: list[SpatialDims] = [1, 2, 3]
CHANNELS = [1, 2, 3, 4, 13]


def autoencoder(channels: int, rank: SpatialDims, bottleneck: object) -> ld.Autoencoder:
    return ld.Autoencoder(
        in_channels=channels,
        latent_channels=2,
        base_channels=channels,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        bottleneck=bottleneck,  # type: ignore[arg-type]
        codebook_size=8 if bottleneck == "vq" else None,
        spatial_dims=rank,
    )


BLOCKS: dict[str, Callable[[int, SpatialDims], ld.Module]] = {
    "vector": lambda channels, rank: ld.VectorQuantizer(codebook_size=8, dim=channels, gradient="rotation"),
    "averaged": lambda channels, rank: ld.VectorQuantizer(codebook_size=8, dim=channels, decay=0.9, restart_below=0.1),
    "restarted": lambda channels, rank: ld.VectorQuantizer(codebook_size=8, dim=channels, restart_below=0.1),
    "residual": lambda channels, rank: ld.ResidualQuantizer(stages=2, codebook_size=8, dim=channels),
    "scalar": lambda channels, rank: ld.FiniteScalarQuantizer(levels=[3 + channel % 2 for channel in range(channels)]),
    "kl": lambda channels, rank: autoencoder(channels, rank, "kl"),
    "vq": lambda channels, rank: autoencoder(channels, rank, "vq"),
    "none": lambda channels, rank: autoencoder(channels, rank, "none"),
    "fsq": lambda channels, rank: autoencoder(channels, rank, ld.FiniteScalarQuantizer(levels=(4, 3))),
    "rvq": lambda channels, rank: autoencoder(
        channels, rank, ld.ResidualQuantizer(stages=2, codebook_size=8, dim=2, decay=0.9)
    ),
}


def outcome(block: ld.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map that a block gives, and its own term of a loss."""
    out = block(x)
    if isinstance(out, ld.Quantized):
        return out.latents, out.loss
    assert isinstance(out, ld.AutoencoderOutput)
    return out.reconstruction, out.regularization


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", BLOCKS)
def test_forward_backward_save_and_load(name: str, rank: SpatialDims, channels: int, tmp_path: Path) -> None:
    block = BLOCKS[name](channels, rank)
    x = (2 * torch.rand(2, channels, *(4, 6, 2)[:rank]) - 1).requires_grad_()
    y, loss = outcome(block, x)
    assert y.shape == x.shape
    (y.square().sum() + loss).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    block.eval()
    ld.save(block, tmp_path / "block.safetensors")
    loaded = ld.load(tmp_path / "block.safetensors")
    assert type(loaded) is type(block)
    assert loaded.config == block.config
    with torch.no_grad():
        for ours, theirs in zip(outcome(block, x.detach()), outcome(loaded, x.detach()), strict=True):
            assert torch.equal(ours, theirs)


def compiles(name: str, rank: SpatialDims, channels: int) -> None:
    torch.compiler.reset()
    block = BLOCKS[name](channels, rank).eval()
    x = 2 * torch.rand(2, channels, *(4, 6, 2)[:rank]) - 1
    expected = outcome(copy.deepcopy(block), x)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    for ours, theirs in zip(outcome(compiled, x), expected, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("rank", "channels"), [(1, 13), (2, 1), (3, 3)])
@pytest.mark.parametrize("name", ["vector", "averaged", "restarted", "residual", "scalar"])
def test_quantizers_compile_as_one_graph(name: str, rank: SpatialDims, channels: int) -> None:
    compiles(name, rank, channels)


@pytest.mark.parametrize(("name", "rank", "channels"), [("fsq", 3, 3), ("rvq", 1, 13)])
def test_autoencoders_compile_as_one_graph(name: str, rank: SpatialDims, channels: int) -> None:
    compiles(name, rank, channels)


@pytest.mark.slow
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_compiles_as_one_graph(name: str, rank: SpatialDims, channels: int) -> None:
    compiles(name, rank, channels)
