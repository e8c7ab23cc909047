from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentdiff.losses import PyramidLoss
from networks import normal


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.integers(1, 3),
    levels=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_pyramid_distance_is_a_distance_of_any_size(shape: list[int], channels: int, levels: int, seed: int) -> None:
    distance = PyramidLoss(levels=levels)
    a, b = normal((2, channels, *shape), seed), normal((2, channels, *shape), seed + 1)
    assert (distance(a, b) > 0).all()
    torch.testing.assert_close(distance(b, a), distance(a, b))
    x = a.clone().requires_grad_()
    same = distance(x, a)
    assert same.tolist() == [0, 0]
    same.sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    torch.testing.assert_close(distance(a.flip(0), b.flip(0)), distance(a, b).flip(0))


@given(seed=st.integers(0, 2**32))
def test_pyramid_distance_is_the_formula(seed: int) -> None:
    """One level in one dimension, by matrices."""
    n, saturation = 11, 0.3
    a, b = normal((1, 1, n), seed), normal((1, 1, n), seed + 1)
    blur = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            blur[i, min(max(i + offset, 0), n - 1)] += weight / 16

    def bands(x: Tensor) -> tuple[Tensor, Tensor]:
        z = x - blur @ x
        return z / (saturation + blur @ z.abs()), (blur @ x)[::2]

    (y_a, low_a), (y_b, low_b) = bands(a[0, 0]), bands(b[0, 0])
    want = ((y_a - y_b).abs().mean() + (low_a - low_b).abs().mean()) / 2
    torch.testing.assert_close(PyramidLoss(levels=1, saturation=saturation)(a, b), want[None])


def test_pyramid_distance_sees_lost_detail_that_a_pixel_wise_error_does_not() -> None:
    """Faint noise removed beside a strong edge, against a change of brightness with the same squared error."""
    x = torch.zeros(1, 1, 24, 32)
    x[..., 16:] = 1.5
    detailed = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    brighter = detailed + (detailed - x).square().mean().sqrt()
    distance = PyramidLoss()
    assert distance(x, detailed) > 3 * distance(brighter, detailed)


def test_gradient_of_the_pyramid_is_right() -> None:
    a, b = normal((2, 1, 7)).requires_grad_(), normal((2, 1, 7), seed=1)
    assert torch.autograd.gradcheck(lambda x: PyramidLoss(levels=2)(x, b), a)


def test_pyramid_distance_does_not_know_left_from_right() -> None:
    """On sizes that keep the first and last value at every level."""
    a, b, distance = normal((2, 2, 17, 33)), normal((2, 2, 17, 33), seed=1), PyramidLoss(levels=4)
    torch.testing.assert_close(distance(a.flip(2), b.flip(2)), distance(a, b))
    torch.testing.assert_close(distance(a.flip(3), b.flip(3)), distance(a, b))
    torch.testing.assert_close(distance(a.mT, b.mT), distance(a, b))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_rank_and_channel_count_compiles_as_one_graph(dims: int, channels: int) -> None:
    shape = (2, channels, 6, 7, 8)[: 2 + dims]
    a, b, distance = normal(shape), normal(shape, seed=1), PyramidLoss(levels=2)
    torch.compiler.reset()
    assert torch.equal(torch.compile(distance, backend="eager", fullgraph=True)(a, b), distance(a, b))


def test_half_precision_and_autocast_give_a_float32_distance() -> None:
    a, b, distance = normal((2, 3, 9, 8)).bfloat16(), normal((2, 3, 9, 8), seed=1).bfloat16(), PyramidLoss()
    with torch.autocast("cpu", torch.bfloat16):
        got = distance(a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, distance(a.double(), b.double()).float())


x = torch.zeros(2, 3, 4, 5)
CASES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: PyramidLoss(levels=0), ValueError, "levels must be positive"),
    (lambda: PyramidLoss(saturation=0.0), ValueError, "saturation must be positive"),
    (lambda: PyramidLoss()(x, x[:1]), ValueError, "reconstruction must have shape"),
    (lambda: PyramidLoss()(x[0, 0, 0], x[0, 0, 0]), ValueError, "images must have at least 2 axes"),
    (lambda: PyramidLoss()(x.int(), x), TypeError, "reconstruction must be floating"),
    (lambda: PyramidLoss()(x, x.int()), TypeError, "images must be floating"),
]


@pytest.mark.parametrize(("call", "error", "match"), CASES)
def test_what_does_not_fit_is_refused(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
