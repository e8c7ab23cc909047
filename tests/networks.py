"""Help for the tests of networks: weights of which none is zero, and tensors of a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from latentdiff import _attention, _convolution, _fusion

M = TypeVar("M", bound=nn.Module)


def randomised(module: M, seed: int = 0) -> M:
    """`module` with weights that keep activations near unit size, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise * (parameter.shape[0] / parameter.numel()) ** 0.5)
            else:
                parameter.copy_(parameter + 0.1 * noise)
    return module


def normal(shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of `shape`, a function of the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@contextmanager
def plainly() -> Iterator[None]:
    """Within: networks take torch's plain operations, as under a compiler, rather than those chosen by size."""
    with ExitStack() as stack:
        for module in (_attention, _convolution, _fusion):
            stack.enter_context(mock.patch.object(module, "is_transformed", return_value=True))
        yield
