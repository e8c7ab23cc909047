"""Codebook search: 4,096 vectors, those of an image of 256 or 512 points at f = 4 or 8, without learning."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.goals import Case, Goal
from bench.race import Contestant, race
from bench.settings import Settings
from latentdiff import VectorQuantizer

GOALS = (
    Goal("best peer / ours, time", cpu=1.0, cuda=1.0),
    Goal("ours / vector-quantize-pytorch, memory", cpu=1.0, cuda=1.0, at_most=True),
)
SIZES = (8192, 16384)
DIMS = (4, 256)
SIDE = 64


def run(settings: Settings) -> list[Case]:
    """Two sizes of the codebook, two of its codes."""
    sizes, side = ((64,), 4) if settings.quick else (SIZES, SIDE)
    return [_case(size, dim, side, settings) for size in sizes for dim in DIMS]


def _case(size: int, dim: int, side: int, settings: Settings) -> Case:
    codes = torch.randn(size, dim, device=settings.device)
    z = torch.randn(1, dim, side, side, device=settings.device)
    contestants = [
        Contestant("ours", lambda: ours(codes, z)),
        Contestant("vector-quantize-pytorch", lambda: vector_quantize(codes, z)),
        Contestant("diffusers", lambda: diffusers(codes, z)),
    ]
    return race(
        f"{size:,} codes of {dim}",
        contestants,
        settings,
        goals=GOALS,
        memory=True,
        tolerance=1e-3,  # float32 distances: some of the nearest are taken for each other
        difference=share_of_unequal,
    )


def ours(codes: Tensor, z: Tensor) -> Callable[[], Tensor]:
    """Indices of this library's quantiser."""
    quantizer = VectorQuantizer(codebook_size=len(codes), dim=codes.shape[1]).to(z.device).eval()
    with torch.no_grad():
        quantizer.codebook.copy_(codes)
    return without_gradient(lambda: quantizer(z).indices)


def vector_quantize(codes: Tensor, z: Tensor) -> Callable[[], Tensor]:
    """Those of vector-quantize-pytorch."""
    package: Any = importlib.import_module("vector_quantize_pytorch")
    quantizer = package.VectorQuantize(dim=codes.shape[1], codebook_size=len(codes), accept_image_fmap=True)
    quantizer = quantizer.to(z.device).eval()
    with torch.no_grad():
        quantizer._codebook.embed.copy_(codes[None])
    return without_gradient(lambda: quantizer(z)[1])


def diffusers(codes: Tensor, z: Tensor) -> Callable[[], Tensor]:
    """Those of the quantiser in diffusers' `VQModel`."""
    package: Any = importlib.import_module("diffusers.models.autoencoders.vae")
    quantizer = package.VectorQuantizer(len(codes), codes.shape[1], beta=0.25).to(z.device).eval()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(codes)
    return without_gradient(lambda: quantizer(z)[2][2])


def without_gradient(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`call` under `no_grad`."""

    def run() -> Tensor:
        with torch.no_grad():
            return call()

    return run


def share_of_unequal(found: Tensor, wanted: Tensor) -> float:
    """Which share of two maps of indices, of any shape, differs."""
    return (found.flatten() != wanted.flatten()).double().mean().item()
