"""Averages of weights: closed forms, and those put together after training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor, nn

import latentdiff as ld
from latentdiff.training import EMA, EMASnapshots, PowerEMA
from latentdiff.training._power_ema import gamma_of
from latentdiff.training._snapshots import Profile, _product, combine


class Nested(nn.Module):
    """Names that collide where dots are left out, and buffers that are counts and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential()
        self.a.bx = nn.Parameter(torch.zeros(2))
        self.ab = nn.Sequential()
        self.ab.x = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(3, 2).requires_grad_(False)


def test_weights_go_by_their_names() -> None:
    """Trap: the average of `ab.x` must not end as that of `a.bx`."""
    module = Nested()
    ema = EMA(module, 0.5)
    module.a.bx.data.fill_(10)
    module.ab.x.data.fill_(100)
    ema.update(module)
    assert ema.module.a.bx.tolist() == [0.1 * 0 + 0.9 * 10] * 2  # the first decay is 1 / 10
    assert ema.module.ab.x.tolist() == pytest.approx([0.1 * 1 + 0.9 * 100] * 2)


def test_modules_with_other_weights_are_refused() -> None:
    module = Nested()
    ema = EMA(module)
    module.more = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="module must have the weights that are averaged, got others: more"):
        ema.update(module)
    assert ema.updates == 0


def test_buffers_are_copied() -> None:
    module = Nested()
    ema = EMA(module)
    module.norm(torch.randn(5, 3))
    ema.update(module)
    assert ema.module.norm.num_batches_tracked == 1
    assert torch.equal(ema.module.norm.running_var, module.norm.running_var)
    assert ema.module.norm.running_var.data_ptr() != module.norm.running_var.data_ptr()


def test_frozen_weights_are_shared_and_the_others_are_not() -> None:
    module = Nested()
    ema = EMA(module)
    assert ema.module.frozen.weight is module.frozen.weight
    assert ema.module.a.bx is not module.a.bx
    assert not ema.module.a.bx.requires_grad
    assert module.a.bx.requires_grad
    assert "frozen.weight" not in ema.averaged


def test_weights_come_back_after_an_error() -> None:
    module = Nested()
    ema = EMA(module)
    module.a.bx.data.fill_(7)
    with pytest.raises(KeyError), ema.swapped_into(module):  # noqa: PT012
        assert module.a.bx.tolist() == [0, 0]
        raise KeyError
    assert module.a.bx.tolist() == [7, 7]


@given(sigma_rel=st.floats(0.01, 0.28))
def test_widths_are_the_standard_deviations_of_their_profiles(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)

    def moment(order: int) -> float:
        return quad(lambda x: x**order * (gamma + 1) * x**gamma, 0, 1, points=[0.5, 0.9])[0]

    assert moment(0) == pytest.approx(1, rel=1e-6)
    # a difference of two numbers near 1, each good to 1e-8
    assert math.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(sigma_rel, rel=1e-3)


def test_published_exponents() -> None:
    # Karras et al. 2024, section 3.1: sigma_rel = .05 and .10 are gamma = 16.97 and 6.94
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)
    assert gamma_of(1 / math.sqrt(12)) == pytest.approx(0, abs=1e-9)
    for wrong in (0.0, 0.3, math.nan):
        with pytest.raises(ValueError, match=r"sigma_rel must be in \(0, 0.288675\]"):
            gamma_of(wrong)


@given(sigma_rel=st.floats(0.03, 0.288), updates=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_power_averages_are_their_closed_form(sigma_rel: float, updates: int, seed: int) -> None:
    module = nn.Linear(3, 2).double()
    ema = PowerEMA(module, sigma_rel)
    weights = torch.randn(updates, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for weight in weights:
        module.weight.data.copy_(weight)
        ema.update(module)
    # the integral of the profile over each step: (k^(g + 1) - (k - 1)^(g + 1)) / n^(g + 1)
    k = torch.arange(updates + 1, dtype=torch.float64) / updates
    share = (k ** (ema.gamma + 1)).diff()
    torch.testing.assert_close(ema.module.weight, torch.einsum("k,kij->ij", share, weights), rtol=1e-10, atol=1e-12)


def test_the_widest_average_is_the_mean() -> None:
    module = nn.Linear(1, 1, bias=False).double()
    ema = PowerEMA(module, 1 / math.sqrt(12))
    for value in (3.0, 5.0, 10.0):
        module.weight.data.fill_(value)
        ema.update(module)
    assert ema.module.weight.item() == pytest.approx(6.0, rel=1e-7)


@given(a=st.floats(0.03, 0.25), b=st.floats(0.03, 0.25), s=st.integers(1, 40), t=st.integers(1, 40))
def test_inner_products_are_integrals(a: float, b: float, s: int, t: int) -> None:
    p, q = Profile(gamma_of(a), s), Profile(gamma_of(b), t)

    def value(profile: Profile, x: float) -> float:
        return (profile.gamma + 1) * (x / profile.updates) ** profile.gamma / profile.updates

    end = min(s, t)
    integral = quad(lambda x: value(p, x) * value(q, x), 0, end, points=[0.8 * end])[0]
    assert _product(p, q) == pytest.approx(integral, rel=1e-6)


def test_a_profile_that_is_there_is_taken_as_it_is() -> None:
    profiles = [Profile(gamma, updates) for updates in (10, 20, 30) for gamma in (6.9, 17.0)]
    factors, error = combine(profiles, profiles[3])
    assert factors == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-6)
    assert error < 1e-6


def walk(steps: int) -> Tensor:
    """Weights that drift and shake, as in training: `[steps, 2, 3]`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, 2, 3, dtype=torch.float64, generator=generator).cumsum(0)


@pytest.mark.parametrize("sigma_rel", [0.06, 0.08, 0.12, 0.15])
def test_averages_put_together_afterwards_are_those_computed_directly(tmp_path: Path, sigma_rel: float) -> None:
    module = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, affine=False)).double()
    averages, direct = [PowerEMA(module, width) for width in (0.05, 0.1)], PowerEMA(module, sigma_rel)
    snapshots = EMASnapshots(tmp_path / "averages")
    early: Tensor | None = None
    for step, weight in enumerate(walk(800), 1):
        module[0].weight.data.copy_(weight)
        for average in (*averages, direct):
            average.update(module)
        if step % 50 == 0:
            snapshots.add(*averages)
        if step == 600:
            early = direct.module[0].weight.clone()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 * 16
    built = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, affine=False)).double()
    error = snapshots.reconstruct(built, sigma_rel)
    assert error < 0.03
    # the walk's size is about 800 ** .5, of which the profile's error is a share
    size = walk(800).std().item()
    nearest = (averages[0].module[0].weight - direct.module[0].weight).abs().max().item()
    difference = (built[0].weight - direct.module[0].weight).abs().max().item()
    assert difference < 0.01 * size
    assert difference < 0.1 * nearest
    snapshots.reconstruct(built, sigma_rel, updates=600)
    assert early is not None
    assert (built[0].weight - early).abs().max() < 0.01 * size


def test_snapshots_keep_buffers_and_may_be_of_half_precision(tmp_path: Path) -> None:
    module = Nested()
    averages = [PowerEMA(module, width) for width in (0.05, 0.1)]
    module.norm(torch.randn(5, 3))
    for average in averages:
        average.update(module)
    snapshots = EMASnapshots(tmp_path)
    snapshots.add(*averages, dtype=torch.float16)
    other = Nested()
    before = other.frozen.weight.clone()
    assert snapshots.reconstruct(other, 0.05) < 1e-6
    assert torch.equal(other.norm.running_mean, module.norm.running_mean)
    assert other.norm.num_batches_tracked == 1
    torch.testing.assert_close(other.ab.x, module.ab.x)
    assert torch.equal(other.frozen.weight, before)


def test_snapshots_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    snapshots = EMASnapshots(tmp_path / "none")
    with pytest.raises(ld.CheckpointError, match="must have snapshots of at most 0 updates, got none"):
        snapshots.reconstruct(nn.Linear(3, 2), 0.1)
    average = PowerEMA(nn.Linear(3, 2), 0.1)
    average.update(nn.Linear(3, 2))
    snapshots.add(average)
    with pytest.raises(ld.CheckpointError, match="does not fit module, which has no bias"):
        snapshots.reconstruct(nn.Linear(3, 2, bias=False), 0.1)
