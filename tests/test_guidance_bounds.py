"""Clipping and dynamic thresholding: bounded samples, and the noise that goes with them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guided import SCHEDULES, labelled, labels, noised, recombined
from latentdiff import guidance
from latentdiff.guidance._threshold import quantile


def test_clipping_bounds_the_sample_and_the_noise_follows() -> None:
    data = labelled(SCHEDULES["variance_preserving"])
    x = noised(data, 400.0)
    plain, got = data(x, 400.0), guidance.Clip(data, -0.5, 0.2)(x, 400.0)
    assert torch.equal(got.sample, plain.sample.clamp(-0.5, 0.2))
    is_kept = got.sample == plain.sample
    assert 0 < is_kept.sum() < is_kept.numel()
    assert torch.equal(got.noise[is_kept], plain.noise[is_kept])
    assert (got.noise != plain.noise)[~is_kept].all()
    torch.testing.assert_close(recombined(got, data.schedule, 400.0), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frame", SCHEDULES)
def test_bounds_that_nothing_reaches_change_nothing(frame: str) -> None:
    data = labelled(SCHEDULES[frame])
    for t in (-1.0, 0.0, 500.0, 999.0):
        x = noised(data, t)
        want = data(x, t, labels())
        for guided in (guidance.Clip(data, -9, 9), guidance.DynamicThreshold(data, limit=9)):
            for time in (t, torch.full((4,), t)):
                got = guided(x, time, labels())
                assert torch.equal(got.sample, want.sample)
                assert torch.equal(got.noise, want.noise)


@given(percentile=st.floats(0.01, 1), limit=st.floats(0.01, 2), seed=st.integers(0, 2**32))
def test_dynamic_thresholding_is_its_formula(percentile: float, limit: float, seed: int) -> None:
    """s = max(limit, quantile of |x_0|) for each sample; clip to [-s, s]; times limit / s."""
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 300.0, seed)
    sample = data(x, 300.0).sample
    s = torch.quantile(sample.flatten(1).abs(), percentile, dim=1).clamp(min=limit).reshape(-1, 1, 1)
    got = guidance.DynamicThreshold(data, percentile, limit)(x, 300.0).sample
    torch.testing.assert_close(got, torch.minimum(torch.maximum(sample, -s), s) / s * limit)
    assert got.abs().max() <= limit * (1 + 1e-12)


def test_each_sample_has_its_own_threshold() -> None:
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 1.0)
    x[2] *= 10
    plain, got = data(x, 1.0).sample, guidance.DynamicThreshold(data, 1.0, limit=4.0)(x, 1.0).sample
    assert torch.equal(got[[0, 1, 3]], plain[[0, 1, 3]])
    assert got[2].abs().max().item() == pytest.approx(4.0)


@given(size=st.integers(1, 50), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_quantiles_are_those_of_torch(size: int, share: float, seed: int) -> None:
    values = torch.rand(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(quantile(values, share), torch.quantile(values, share, dim=1), rtol=1e-13, atol=1e-13)


def test_quantiles_have_no_limit_of_size() -> None:
    """`torch.quantile` refuses more than 16 million values."""
    size = 2**24 + 8
    values = torch.arange(size, dtype=torch.float64).unsqueeze(0)
    assert quantile(values, 0.9999).item() == pytest.approx(0.9999 * (size - 1), rel=1e-12)


def test_bad_bounds_are_refused() -> None:
    data = labelled(SCHEDULES["flow"])
    with pytest.raises(ValueError, match=r"low must be below high, got 1.0 and 1.0"):
        guidance.Clip(data, 1.0, 1.0)
    for percentile in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"percentile must be in \(0, 1\]"):
            guidance.DynamicThreshold(data, percentile)
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        guidance.DynamicThreshold(data, limit=0)
