from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from latentdiff import CounterNoise, DiagonalGaussian, Gaussian
from latentdiff._distributions import PointMass
from latentdiff._moments import ChannelMoments

SEEDS = st.integers(0, 2**31 - 1)
RANKS = st.integers(1, 3)


def moments(rank: int, seed: int, batch: int = 3, channels: int = 2) -> tuple[Tensor, Tensor]:
    """Mean and log-variance `[batch, channels, *spatial]`, float64, all axes of different size."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, 4, 5, 6)[: 2 + rank]
    mean, log_variance = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return mean, log_variance


def posterior(rank: int, seed: int, batch: int = 3) -> DiagonalGaussian:
    return DiagonalGaussian(*moments(rank, seed, batch))


def independent(gaussian: DiagonalGaussian) -> Independent[Normal]:
    return Independent(Normal(gaussian.mean, gaussian.std), gaussian.mean.ndim - 1)


# Gaussian


def test_gaussian_divergence_and_density_are_those_of_torch() -> None:
    (mean, log_variance), (other_mean, other_log_variance) = moments(2, 0), moments(2, 1)
    a, b = Gaussian(mean, log_variance.exp()), Gaussian(other_mean, other_log_variance.exp())
    p, q = Normal(a.mean, a.variance.sqrt()), Normal(b.mean, b.variance.sqrt())
    torch.testing.assert_close(a.kl(b), kl_divergence(p, q))
    torch.testing.assert_close(a.log_prob(b.mean), p.log_prob(b.mean))
    torch.testing.assert_close(a.log_variance, log_variance)


def test_gaussian_sample_is_mean_and_scaled_noise_and_keeps_the_dtype() -> None:
    mean, log_variance = moments(1, 0)
    gaussian, noise = Gaussian(mean, log_variance.exp()), torch.randn_like(mean)
    assert torch.equal(gaussian.sample(noise), mean + log_variance.exp().sqrt() * noise)
    assert Gaussian(mean.bfloat16(), torch.tensor(0.5)).sample(noise).dtype == torch.bfloat16


def test_gaussian_without_variance_is_its_mean() -> None:
    mean, _ = moments(1, 0)
    assert torch.equal(Gaussian(mean, torch.tensor(0.0)).sample(torch.randn_like(mean)), mean)


# DiagonalGaussian


@given(RANKS, SEEDS)
def test_kl_is_one_number_a_sample_the_sum_of_those_of_its_components(rank: int, seed: int) -> None:
    q = posterior(rank, seed)
    standard = Independent(Normal(torch.zeros_like(q.mean), 1.0), rank + 1)
    assert q.kl().shape == (3,)
    torch.testing.assert_close(q.kl(), kl_divergence(independent(q), standard))
    torch.testing.assert_close(q.kl(), q.kl(reduction="none").flatten(1).sum(1))
    torch.testing.assert_close(q.kl(reduction="element") * q.mean[0].numel(), q.kl())


@given(RANKS, SEEDS)
def test_kl_between_two_posteriors_is_that_of_torch(rank: int, seed: int) -> None:
    q, p = posterior(rank, seed), posterior(rank, seed + 1)
    torch.testing.assert_close(q.kl(p), kl_divergence(independent(q), independent(p)))
    torch.testing.assert_close(q.kl(Gaussian(p.mean, p.variance)), q.kl(p))


@given(RANKS, SEEDS, st.sampled_from([torch.float64, torch.float32]), st.floats(1e-6, 3))
def test_kl_is_never_negative(rank: int, seed: int, dtype: torch.dtype, size: float) -> None:
    mean, log_variance = (size * moment.to(dtype) for moment in moments(rank, seed))
    assert (DiagonalGaussian(0 * mean, log_variance).kl(reduction="none") >= 0).all()
    assert (DiagonalGaussian(mean, log_variance).kl() >= 0).all()


def test_kl_with_itself_is_zero() -> None:
    q = posterior(2, 0)
    assert torch.equal(q.kl(q), torch.zeros(3, dtype=torch.float64))
    standard = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    assert torch.equal(standard.kl(), torch.zeros(2))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_kl_is_what_samples_say(rank: int) -> None:
    q = posterior(rank, rank)
    prior = DiagonalGaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))
    generator = torch.Generator().manual_seed(0)
    draws = [q.sample(generator) for _ in range(4000)]
    estimates = torch.stack([prior.nll(z) - q.nll(z) for z in draws])
    error = estimates.std(0) / math.sqrt(len(draws))
    assert ((estimates.mean(0) - q.kl()).abs() < 4 * error).all()


@given(RANKS, SEEDS, st.floats(-3, 3), st.floats(0.05, 20))
def test_kl_does_not_depend_on_the_unit_of_the_latents(rank: int, seed: int, shift: float, scaling: float) -> None:
    q, p = posterior(rank, seed), posterior(rank, seed + 1)
    shifts = shift + torch.arange(2, dtype=torch.float64).reshape(-1, *(1,) * rank)
    scalings = scaling + torch.arange(2, dtype=torch.float64).reshape(-1, *(1,) * rank)
    moved, other = q.affine(shifts, scalings), p.affine(shifts, scalings)
    torch.testing.assert_close(moved.kl(), q.kl())
    torch.testing.assert_close(moved.kl(other), q.kl(p))
    torch.testing.assert_close(moved.affine(1.0, 3.0).kl(), q.kl())


@given(RANKS, SEEDS)
def test_affine_moves_mean_std_and_samples_alike(rank: int, seed: int) -> None:
    q = posterior(rank, seed)
    moved = q.affine(0.5, 3.0)
    torch.testing.assert_close(moved.mean, 3 * (q.mean - 0.5))
    torch.testing.assert_close(moved.std, 3 * q.std)
    torch.testing.assert_close(moved.variance, 9 * q.variance)
    a, b = (gaussian.sample(torch.Generator().manual_seed(seed)) for gaussian in (q, moved))
    torch.testing.assert_close(b, 3 * (a - 0.5))


@given(RANKS, SEEDS)
def test_nll_is_the_negative_density_and_changes_by_the_jacobian(rank: int, seed: int) -> None:
    q, z = posterior(rank, seed), moments(rank, seed + 1)[0]
    torch.testing.assert_close(q.nll(z), -independent(q).log_prob(z))
    moved = q.affine(0.5, 3.0)
    torch.testing.assert_close(moved.nll(3 * (z - 0.5)), q.nll(z) + math.log(3) * z[0].numel())


def test_log_variance_is_clamped_to_the_published_bounds() -> None:
    log_variance = torch.tensor([[-100.0, -30.0, 1.0, 20.0, 100.0]])
    q = DiagonalGaussian(torch.zeros(1, 5), log_variance)
    assert torch.equal(q.log_variance, torch.tensor([[-30.0, -30.0, 1.0, 20.0, 20.0]]))
    moved = q.affine(0.0, 10.0)  # the bounds move with the unit
    torch.testing.assert_close(moved.log_variance, q.log_variance + 2 * math.log(10))


def test_arithmetic_is_float32_at_least() -> None:
    mean, log_variance = (moment.to(torch.bfloat16) for moment in moments(2, 0))
    q = DiagonalGaussian(mean, log_variance)
    exact = DiagonalGaussian(mean.double(), log_variance.double())
    assert q.sample().dtype == q.std.dtype == q.kl().dtype == torch.float32
    torch.testing.assert_close(q.kl().double(), exact.kl(), rtol=1e-6, atol=0)


def test_samples_have_the_posterior_mean_and_variance() -> None:
    mean, log_variance = moments(1, 0, batch=1)
    q = DiagonalGaussian(mean.expand(20000, -1, -1), log_variance.expand(20000, -1, -1))
    z = q.sample(torch.Generator().manual_seed(0))
    assert ((z.mean(0) - mean[0]).abs() < 5 * q.std[0] / math.sqrt(20000)).all()
    torch.testing.assert_close(z.var(0), q.variance[0], rtol=0.06, atol=0)  # 6 / sqrt(20000 / 2)


def test_samples_of_a_list_or_counter_do_not_depend_on_the_batch() -> None:
    q = posterior(2, 0)
    last = DiagonalGaussian(q.mean[2:], q.log_variance[2:])
    assert torch.equal(q.sample(CounterNoise(7))[2:], last.sample(CounterNoise(7, first_sample=2)))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 2)]
    assert torch.equal(q.sample(generators)[2:], last.sample([torch.Generator().manual_seed(2)]))


def test_a_counter_that_also_serves_a_walk_gives_the_posterior_other_noise() -> None:
    source, shape = CounterNoise(7), (3, 2, 4)
    q = DiagonalGaussian(torch.zeros(shape), torch.zeros(shape))
    walk = [source.normal(shape, step=i, device=torch.device("cpu"), dtype=torch.float32) for i in range(4)]
    assert not any(torch.equal(q.sample(source), noise) for noise in walk)


def test_sample_is_differentiable_in_both_moments() -> None:
    mean, log_variance = (moment.requires_grad_() for moment in moments(1, 0))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z = DiagonalGaussian(mean, log_variance).sample(torch.Generator().manual_seed(5))
    by_mean, by_log_variance = torch.autograd.grad(z.sum(), (mean, log_variance))
    torch.testing.assert_close(by_mean, torch.ones_like(mean))
    torch.testing.assert_close(by_log_variance, 0.5 * (0.5 * log_variance).exp() * noise)


def test_mode_is_the_mean() -> None:
    q = posterior(2, 0)
    assert torch.equal(q.mode(), q.mean)


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        posterior(1, 0).mean = torch.zeros(1)  # type: ignore[misc]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log_variance must have the shape of mean \[2, 3\], got \[2, 1\]"):
        DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="reduction must be one of 'sample', 'element', 'none', got 'mean'"):
        posterior(1, 0).kl(reduction="mean")  # type: ignore[arg-type]


# PointMass


def test_a_point_has_no_spread_and_nothing_to_regularise() -> None:
    z = moments(2, 0)[0]
    point = PointMass(z)
    state = torch.get_rng_state()
    assert torch.equal(point.sample(), z)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(point.mode(), z)
    assert torch.equal(point.std, torch.zeros_like(z))
    assert torch.equal(point.kl(), torch.zeros(3, dtype=torch.float64))
    assert point.kl(reduction="none").shape == z.shape
    torch.testing.assert_close(point.affine(0.5, 3.0).mode(), 3 * (z - 0.5))


# Moments of a stream


@given(RANKS, SEEDS, st.floats(0, 1e6), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_moments_of_a_stream_are_those_of_the_whole(rank: int, seed: int, offset: float, cuts: list[int]) -> None:
    mean, log_variance = moments(rank, seed, batch=sum(cuts))
    mean, variance = mean + offset, log_variance.exp()
    merged: ChannelMoments | None = None
    for means, variances in zip(mean.split(cuts), variance.split(cuts), strict=True):
        part = ChannelMoments.of(means, variances)
        merged = part if merged is None else merged.merge(part)
    assert merged is not None
    by_channel = mean.movedim(1, 0).flatten(1)
    expected = by_channel.var(1, correction=0) + variance.movedim(1, 0).flatten(1).mean(1)
    # A mean of size 1e6 is known to 1e-16 of itself, which moves the variance by its square only.
    torch.testing.assert_close(merged.mean, by_channel.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.variance, expected, rtol=1e-9 if offset > 1 else 1e-12, atol=0)
