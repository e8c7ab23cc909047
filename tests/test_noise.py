from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff import CounterNoise, draw_noise
from latentdiff._noise import _multiply, _philox, draw_uniform


def test_philox_gives_the_words_of_its_authors() -> None:
    """Known answers of the reference implementation, Random123 (kat_vectors, philox4x32 with 10 rounds)."""
    ones = 0xFFFFFFFF
    for word, want in (
        (0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (ones, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ):
        counter = torch.tensor([word])
        got = _philox((counter, counter, counter, counter), word | word << 32)
        assert tuple(int(w) for w in got) == want


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_products_of_words_are_exact(a: int, b: int) -> None:
    high, low = _multiply(a, torch.tensor([b]))
    assert int(high) << 32 | int(low) == a * b


@given(seed=st.integers(0, 2**64 - 1), first=st.integers(0, 50), step=st.integers(0, 2**32 - 1))
def test_noise_is_a_function_of_seed_sample_and_step(seed: int, first: int, step: int) -> None:
    whole = draw_noise((60, 3, 5), CounterNoise(seed), step=step)
    part = draw_noise((7, 3, 5), CounterNoise(seed, first), step=step)
    assert torch.equal(part, whole[first : first + 7])
    assert not torch.equal(whole, draw_noise((60, 3, 5), CounterNoise(seed), step=step ^ 1))
    assert not torch.equal(whole, draw_noise((60, 3, 5), CounterNoise(seed ^ 1), step=step))


def test_counter_noise_is_standard_normal_and_uncorrelated() -> None:
    x = draw_noise((400, 500), CounterNoise(5), dtype=torch.float64)
    y = draw_noise((400, 500), CounterNoise(5), step=1, dtype=torch.float64)
    n = x.numel() ** 0.5
    moments = [x.mean(), x.square().mean() - 1, (x**3).mean(), (x**4).mean() - 3]
    for moment, spread in zip(moments, (1, 2**0.5, 15**0.5, 96**0.5), strict=True):
        assert abs(moment.item()) < 4 * spread / n
    for product in (x * y, x[:, 1:] * x[:, :-1], x[1:] * x[:-1]):
        assert abs(product.mean().item()) < 4 / n


def test_a_list_of_generators_gives_each_sample_its_own() -> None:
    noise = draw_noise((3, 2, 4), [torch.Generator().manual_seed(i) for i in range(3)])
    for i in range(3):
        assert torch.equal(noise[i], draw_noise((1, 2, 4), torch.Generator().manual_seed(i))[0])


@pytest.mark.parametrize("generator", [torch.Generator().manual_seed(1), CounterNoise(1), None])
def test_uniform_numbers_are_uniform(generator: torch.Generator | CounterNoise | None) -> None:
    u = draw_uniform(4000, generator)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean().item() - 0.5) < 4 * (1 / 12) ** 0.5 / 4000**0.5
    assert u.dtype == torch.float64


def test_bad_generators_are_refused() -> None:
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        draw_noise((2, 3), 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be in"):
        CounterNoise(-1)
    with pytest.raises(ValueError, match="first_sample must be in"):
        CounterNoise(0, 2**32)
