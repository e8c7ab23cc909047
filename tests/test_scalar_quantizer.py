from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentdiff import FiniteScalarQuantizer

SEEDS = st.integers(0, 2**31 - 1)
LEVELS = [(2,), (3, 2), (8, 5, 5), (7, 5, 5, 5), (4, 4, 4), (2, 3, 4, 5, 6), (256, 5), (255, 4)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_indices_and_codes_are_a_bijection_in_every_dtype(levels: tuple[int, ...], dtype: torch.dtype) -> None:
    fsq = FiniteScalarQuantizer(levels=levels)
    indices = torch.arange(math.prod(levels)).reshape(1, -1)
    codes = fsq.lookup(indices)
    assert len(codes[0].T.unique(dim=0)) == fsq.codebook_size == math.prod(levels)
    out = fsq.quantize(codes.to(dtype))
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.latents, codes.to(dtype), rtol=0, atol=1e-7)  # codes are float32


@pytest.mark.parametrize("level", range(2, 12))
def test_levels_are_those_of_the_paper(level: int) -> None:
    codes = FiniteScalarQuantizer(levels=(level,)).lookup(torch.arange(level)[None]).flatten()
    expected = [(k - level // 2) / (level // 2) for k in range(level)]
    torch.testing.assert_close(codes, torch.tensor(expected), rtol=0, atol=1e-7)


def test_the_first_channel_counts_fastest() -> None:
    fsq = FiniteScalarQuantizer(levels=(3, 2, 4))
    codes = [tuple(code) for code in fsq.lookup(torch.arange(24)[None])[0].T.tolist()]
    expected = itertools.product((-1.0, -0.5, 0.0, 0.5), (-1.0, 0.0), (-1.0, 0.0, 1.0))
    assert codes == [(first, second, third) for third, second, first in expected]


@given(SEEDS, st.lists(st.integers(2, 12), min_size=1, max_size=5), st.floats(0.01, 100))
def test_every_encoder_output_becomes_the_nearest_code_of_the_published_formula(
    seed: int, levels: list[int], scale: float
) -> None:
    z = scale * randn(2, len(levels), 5, 3, seed=seed)
    out = FiniteScalarQuantizer(levels=levels)(z)
    for channel, level in enumerate(levels):  # Mentzer et al. 2023, appendix A.1
        half = (level - 1) * 1.001 / 2
        offset = 0.0 if level % 2 else 0.5
        bounded = torch.tanh(z[:, channel] + math.atanh(offset / half)) * half - offset
        expected = torch.round(bounded) / (level // 2)
        torch.testing.assert_close(out.latents[:, channel], expected, rtol=0, atol=1e-12)
    assert out.indices.min() >= 0
    assert out.indices.max() < math.prod(levels)


@given(SEEDS, st.lists(st.integers(2, 12), min_size=1, max_size=5))
def test_quantizing_twice_is_once(seed: int, levels: list[int]) -> None:
    fsq = FiniteScalarQuantizer(levels=levels)
    once = fsq(3 * randn(2, len(levels), 5, 3, seed=seed))
    twice = fsq.quantize(once.latents)
    assert torch.equal(once.indices, twice.indices)
    assert torch.equal(once.latents, twice.latents)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8])
def test_every_level_is_reached(level: int) -> None:
    out = FiniteScalarQuantizer(levels=(level,))(torch.linspace(-20, 20, 4001).reshape(1, 1, -1))
    assert out.usage == 1
    assert out.indices.unique().tolist() == list(range(level))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_in_float32(dtype: torch.dtype) -> None:
    fsq, z = FiniteScalarQuantizer(levels=(256, 8, 5)), randn(2, 3, 9, 8, seed=3, dtype=dtype)
    out = fsq(z)
    assert torch.equal(out.indices, fsq(z.float()).indices)
    assert out.loss.dtype == torch.float32


def test_gradients_pass_straight_through_the_rounding_and_through_the_bound() -> None:
    fsq = FiniteScalarQuantizer(levels=(8, 5))
    z = randn(2, 2, 4, 3).requires_grad_()
    upstream = randn(2, 2, 4, 3, seed=1)
    (fsq(z).latents * upstream).sum().backward()
    other = z.detach().requires_grad_()
    (fsq.bound(other) * upstream).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, other.grad)
    beyond = torch.full((1, 2, 3), 1.7, requires_grad=True)
    fsq.quantize(beyond).latents.sum().backward()
    assert torch.equal(beyond.grad, torch.ones(1, 2, 3))  # type: ignore[arg-type]


def test_nothing_learns_and_the_loss_is_zero() -> None:
    fsq = FiniteScalarQuantizer(levels=(8, 5, 5))
    assert not fsq.state_dict()
    assert fsq(randn(2, 3, 4)).loss == 0
    with pytest.raises(ValueError, match="must have a codebook to be initialised, got FiniteScalarQuantizer"):
        fsq.initialize(randn(2, 3, 4))


def test_use_of_a_codebook_larger_than_memory_is_counted() -> None:
    fsq = FiniteScalarQuantizer(levels=(1024,) * 6)  # 2 ** 60 codes
    out = fsq.quantize(fsq.lookup(torch.tensor([[0, 2**60 - 1, 2**59, 0]])))
    assert out.indices.tolist() == [[0, 2**60 - 1, 2**59, 0]]
    expected = math.exp(0.5 * math.log(2) + 0.5 * math.log(4))
    assert out.perplexity.item() == pytest.approx(expected, rel=1e-6)
    assert out.usage.item() == pytest.approx(3 / 2**60, rel=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    fsq = FiniteScalarQuantizer(levels=(257, 3))
    with pytest.raises(ValueError, match=r"levels must be at most 256 in torch.bfloat16, got \(257, 3\); use float32"):
        fsq(randn(2, 2, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="z must have dim=2, got dim=3"):
        fsq(randn(2, 3, 4))
    with pytest.raises(TypeError, match=r"z must be floating, got torch.int64"):
        fsq.quantize(torch.zeros(2, 2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"indices must be in \[0, 770\], got values in \[0, 771\]"):
        fsq.lookup(torch.tensor([[0, 771]]))
    for levels in ((), (1, 3)):
        with pytest.raises(ValueError, match="levels must be at least 2, one number for each channel, got"):
            FiniteScalarQuantizer(levels=levels)
    with pytest.raises(ValueError, match=r"levels must make fewer than 2 \*\* 63 codes, got"):
        FiniteScalarQuantizer(levels=(2,) * 63)
