"""What contract suites share: one way to say what is broken, one way to compare."""

from __future__ import annotations

import torch
from torch import Tensor


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with `message` unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def require_close(found: Tensor, wanted: Tensor, tolerance: float, message: str) -> None:
    """Require equal shapes, and differences up to `tolerance`, absolute and in units of the largest value."""
    require(found.shape == wanted.shape, f"{message}: shapes {list(found.shape)} and {list(wanted.shape)}")
    bound = tolerance * max(1.0, wanted.abs().max().item())
    difference = (found.to(torch.float64) - wanted.to(torch.float64)).abs().max().item()
    require(difference <= bound, f"{message}: they differ by {difference:.3g}, allowed {bound:.3g}")


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Standard normal numbers, float64 on the CPU, that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
