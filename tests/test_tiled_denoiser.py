"""Denoising in windows: exact where a denoiser looks at nothing beyond a point, seamless and consistent elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import latentdiff as ld
from latentdiff.testing import check_denoiser
from networks import normal

SCHEDULE = ld.NoiseSchedule.cosine(50)


def pointwise(x: Tensor, t: Tensor, condition: object = None) -> Tensor:
    """A network that looks at one point of its input and of the map beside it."""
    beside = condition.concat.to(x) if isinstance(condition, ld.Condition) and condition.concat is not None else 0
    return torch.sin(x) + 0.3 * beside


def looks_around(x: Tensor, t: Tensor, condition: object = None) -> Tensor:
    """A network that looks 1 point far, and sees zeros beyond the edge."""
    kernel = normal((x.shape[1], x.shape[1], 3, 3), 5).to(x) / 5
    return F.conv2d(x, kernel, padding=1)


def denoiser(network: ld.Denoiser | object = pointwise) -> ld.Denoiser:
    return ld.Denoiser(network, SCHEDULE, "v_prediction")  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 9),
    lengths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    share=st.floats(0, 0.99),
)
def test_windows_change_nothing_for_a_denoiser_of_points(
    seed: int, size: int, lengths: tuple[int, int], share: float
) -> None:
    x, t = normal((2, 3, *lengths), seed), torch.tensor([7.0, 31.0])
    condition = ld.Condition(concat=normal((2, 3, *lengths), seed + 1))
    whole = denoiser()(x, t, condition)
    tiled = ld.TiledDenoiser(denoiser(), size, int(share * size))(x, t, condition)
    torch.testing.assert_close(tiled.sample, whole.sample)
    torch.testing.assert_close(tiled.noise, whole.noise)


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes_have_windows_too(dims: int) -> None:
    x = normal((2, 3, *(9, 10, 11)[:dims]))
    tiled = ld.TiledDenoiser(denoiser(), 4, 1)(x, 20)
    torch.testing.assert_close(tiled.sample, denoiser()(x, 20).sample)


def test_one_window_is_the_denoiser_itself() -> None:
    x = normal((2, 3, 5, 7))
    one, other = (d(x, 9.0) for d in (denoiser(looks_around), ld.TiledDenoiser(denoiser(looks_around), 7, 3)))
    assert torch.equal(one.sample, other.sample)


def test_only_points_near_an_edge_of_a_window_differ_and_overlap_makes_that_little() -> None:
    """Windows of 8 with 6 shared: a point that a network with a reach of 1 sees cut off, others see whole."""
    x = normal((1, 2, 8, 26))
    whole, tiled = (d(x, 25.0).sample for d in (denoiser(looks_around), ld.TiledDenoiser(denoiser(looks_around), 8, 6)))
    hard = ld.TiledDenoiser(denoiser(looks_around), 8, 0)(x, 25.0).sample
    assert (tiled - whole).square().mean() < 0.2 * (hard - whole).square().mean()
    assert torch.equal((hard - whole)[..., 1:6].abs() < 1e-12, torch.ones(1, 2, 8, 5, dtype=torch.bool))


def test_sample_and_noise_stay_together() -> None:
    """alpha * sample + sigma * noise = x_t, as weights sum to 1 at each point."""
    check_denoiser(ld.TiledDenoiser(denoiser(looks_around), 3, 1), normal((2, 3, 7, 8)))


def test_a_null_of_one_point_is_for_all_windows_and_guidance_may_stand_on_either_side() -> None:
    x, condition = normal((2, 3, 7, 8)), ld.Condition(concat=normal((2, 3, 7, 8), 1))
    null = ld.Condition(concat=normal((2, 3, 1, 1), 2))
    inside = ld.TiledDenoiser(ld.guidance.ClassifierFree(denoiser(), 3.0, negative=null), 4, 2)
    outside = ld.guidance.ClassifierFree(ld.TiledDenoiser(denoiser(), 4, 2), 3.0, negative=null.expand((7, 8)))
    plain = ld.guidance.ClassifierFree(denoiser(), 3.0, negative=null)
    for guided in (inside, outside):
        torch.testing.assert_close(guided(x, 20.0, condition).sample, plain(x, 20.0, condition).sample)


def test_variances_are_averaged_too() -> None:
    def network(x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return torch.cat([x, x.tanh()], 1)

    learned, x = ld.Denoiser(network, SCHEDULE, "epsilon", "learned_range"), normal((2, 3, 7, 8))
    whole, tiled = learned(x, 20.0).log_variance, ld.TiledDenoiser(learned, 4, 2)(x, 20.0).log_variance
    assert whole is not None
    assert tiled is not None
    torch.testing.assert_close(tiled, whole)


def test_a_sampler_works_on_it() -> None:
    noise = normal((1, 3, 9, 6))
    sampler = ld.Sampler("ddim", steps=5)
    whole, tiled = (sampler.sample(d, noise) for d in (denoiser(), ld.TiledDenoiser(denoiser(), 4, 2)))
    torch.testing.assert_close(tiled, whole)


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        ld.TiledDenoiser(denoiser(), 0, 0)
    with pytest.raises(ValueError, match="overlap must be less than size=4, got 4"):
        ld.TiledDenoiser(denoiser(), 4, 4)
    with pytest.raises(ValueError, match="overlap must be at least 0, got -1"):
        ld.TiledDenoiser(denoiser(), 4, -1)
    with pytest.raises(TypeError, match=r"size must be an int, got 4\.0"):
        ld.TiledDenoiser(denoiser(), 4.0, 1)  # type: ignore[arg-type]
