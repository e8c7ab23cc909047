from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentdiff import CounterNoise, Denoise, Denoised, Denoiser, NoiseSchedule
from latentdiff._denoiser import VARIANCES, Variance
from latentdiff._typing import Generator, Latents, Times
from latentdiff.likelihood import Bound, rate_distortion, variational_bound
from latentdiff.testing import DiscretizedGaussianDenoiser, GaussianDenoiser, MixtureDenoiser
from latentdiff.testing._oracle import Oracle
from networks import normal

FRAMES = {
    "linear": NoiseSchedule.linear(50),
    "cosine": NoiseSchedule.cosine(20),
    "flow": NoiseSchedule.flow(30),
    "edm": NoiseSchedule.edm(num_timesteps=40),
}
every_frame = pytest.mark.parametrize("schedule", FRAMES.values(), ids=FRAMES)
MEAN, STD = 0.3, 0.5
TWO_POINTS = torch.tensor([1.0, -1.0], dtype=torch.float64)
"""Noise in these two rows has the moments of normal noise up to the third: means of quadratic terms are exact."""


class Rows:
    """A source of noise that gives each sample of a batch one number, the same at all times: the nodes of a rule."""

    def __init__(self, nodes: Tensor) -> None:
        self.nodes = nodes

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.nodes.reshape(-1, *(1,) * (len(shape) - 1)).expand(*shape).to(dtype)


def hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Points and weights of a standard normal mean (Gauss and Hermite)."""
    points, weights = (torch.as_tensor(one) for one in np.polynomial.hermite_e.hermegauss(nodes))
    return points, weights / weights.sum()


def expected(denoiser: Denoise, sample: Tensor, nodes: int = 2, levels: int | None = None) -> Tensor:
    """The expectation of a bound over the noise, `[batch]`, for samples of one value."""
    points, weights = hermite(nodes)
    bound = variational_bound(
        denoiser,
        sample.repeat_interleave(nodes, 0),
        decoder="continuous" if levels is None else "discretized",
        levels=levels or 256,
        generator=Rows(points.repeat(len(sample))),
    )
    return bound.total.reshape(len(sample), nodes) @ weights


def learned(oracle: Oracle, variance: Variance | None) -> Denoise:
    """A perfect network with a given idea of the variance."""
    return Denoiser(oracle.network("v_prediction"), oracle.schedule, "v_prediction", variance)


def bits(oracle: Oracle, sample: Tensor) -> Tensor:
    """The truth in bits per dimension."""
    return -oracle.log_prob(sample) / math.log(2) / sample[0].numel()


# Closed forms: normal data


def edm(num_timesteps: int) -> NoiseSchedule:
    return NoiseSchedule.edm(num_timesteps=num_timesteps)


def prior_gap(schedule: NoiseSchedule, sample: Tensor) -> Tensor:
    """E[log q(x_T) - log p(x_T)] over q(x_T | x_0) in bits: what starting from the prior costs."""
    _, alpha, sigma = schedule.point(schedule.num_timesteps - 1.0)
    start, zero = sigma if schedule.frame == "variance_exploding" else 1.0, torch.zeros_like(sample)
    prior = torch.distributions.Normal(zero, zero + start)
    marginal = torch.distributions.Normal(zero + alpha * MEAN, zero + math.hypot(alpha * STD, sigma))
    ends = alpha * sample + sigma * TWO_POINTS
    return (marginal.log_prob(ends) - prior.log_prob(ends)).mean(1) / math.log(2)


@pytest.mark.parametrize(
    "schedule",
    [make(count) for count in (2, 10, 100) for make in (NoiseSchedule.linear, NoiseSchedule.flow, edm)]
    + [NoiseSchedule.linear(1), NoiseSchedule.flow(1)],
    ids=repr,
)
def test_with_the_exact_variance_the_bound_misses_the_truth_by_the_prior_alone(schedule: NoiseSchedule) -> None:
    oracle = GaussianDenoiser(mean=MEAN, std=STD, schedule=schedule, knows_variance=True)
    sample = torch.tensor([[-0.9], [0.1], [0.3], [1.7]], dtype=torch.float64)
    gap = expected(oracle, sample) - bits(oracle, sample)
    # one of T terms is a ratio of nearly equal variances, right to 1e-16 / (1 - r)
    torch.testing.assert_close(gap, prior_gap(schedule, sample), rtol=0, atol=1e-9)
    if schedule.frame == "flow":
        assert gap.abs().max() < 1e-9


def test_the_large_variance_is_exact_for_normal_data_of_unit_size() -> None:
    for schedule in (NoiseSchedule.linear(10), NoiseSchedule.cosine(100)):
        oracle = GaussianDenoiser(mean=0.0, std=1.0, schedule=schedule)
        sample = normal((5, 1))
        for denoiser in (oracle, learned(oracle, "fixed_large")):
            torch.testing.assert_close(expected(denoiser, sample), bits(oracle, sample), rtol=0, atol=1e-9)


def test_with_the_large_variance_the_bound_tends_to_the_truth_like_one_over_the_number_of_steps() -> None:
    sample = torch.tensor([[MEAN - STD], [MEAN + STD]], dtype=torch.float64)  # the moments of the data
    gaps: dict[Variance, list[float]] = {"fixed_small": [], "fixed_large": []}
    for num_timesteps in (10, 100, 400):
        oracle = GaussianDenoiser(mean=MEAN, std=STD, schedule=NoiseSchedule.linear(num_timesteps))
        for variance, found in gaps.items():
            found.append((expected(learned(oracle, variance), sample) - bits(oracle, sample)).mean().item())
    assert all(gap > 0 for found in gaps.values() for gap in found)
    first, second, third = gaps["fixed_large"]
    assert second / first == pytest.approx(1 / 10, rel=0.2)
    assert third / second == pytest.approx(1 / 4, rel=0.05)
    # the small variance stays a bad decoder, whatever T: its last steps each miss by a constant
    assert gaps["fixed_small"][2] > 0.7 > 100 * third


@every_frame
def test_the_curve_of_a_perfect_model_is_the_rate_distortion_function_of_its_data(schedule: NoiseSchedule) -> None:
    """Shannon: R(D) = log2(std^2 / D) / 2 bits for normal data; here the information in x_t on the sample."""
    oracle = GaussianDenoiser(mean=MEAN, std=STD, schedule=schedule, knows_variance=True)
    sample = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)[:, None].expand(4, 3) * STD + MEAN
    curve = rate_distortion(oracle, sample, generator=Rows(TWO_POINTS.repeat(2)))
    alpha, sigma = schedule.scales(torch.arange(schedule.num_timesteps))
    remaining = STD * sigma / ((alpha * STD) ** 2 + sigma**2).sqrt()
    torch.testing.assert_close(curve.distortion, remaining, rtol=1e-10, atol=0)
    information = 0.5 * torch.log2(STD**2 / curve.distortion.square())
    from_prior = prior_gap(schedule, sample[[0, 2], :1]).mean()
    torch.testing.assert_close(curve.rate, information + from_prior, rtol=0, atol=1e-9)
    assert (curve.rate.diff() <= 0).all()
    assert (curve.distortion.diff() > 0).all()


# Closed forms: several modes, grey levels. What is bounded is the mean over the data: for one sample the model of few
# steps, which is not the data's distribution, may well be the more confident one.


@every_frame
@pytest.mark.parametrize("variance", [None, "fixed_small", "fixed_large"])
def test_no_bound_is_below_the_entropy_of_a_mixture(schedule: NoiseSchedule, variance: Variance | None) -> None:
    weights, means, stds = torch.tensor([[0.5, 0.3, 0.2], [-1.0, 0.2, 1.5], [0.3, 0.5, 0.4]], dtype=torch.float64)
    oracle = MixtureDenoiser(weights=weights, means=means, stds=stds, schedule=schedule)
    points, shares = hermite(24)
    sample = (means[:, None] + stds[:, None] * points).reshape(-1, 1)
    gap = expected(learned(oracle, variance), sample, nodes=24) - bits(oracle, sample)
    assert (weights[:, None] * shares).flatten() @ gap > 0


class BestVariance:
    """A discretised oracle with the variance of x_(t-1) given x_t, as a network learns it from the bound."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.schedule = oracle.schedule

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            [slope] = torch.autograd.grad(self.oracle(x, t).sample.sum(), x)
        one, zero = torch.ones_like(x_t), torch.zeros_like(x_t)
        alpha, sigma = self.schedule.scales(torch.as_tensor(t))
        remaining = (slope * sigma**2 / alpha).clamp(min=0)  # Var[x_0 | x_t], by Tweedie's formula
        step = self.schedule.posterior(one, zero, t)
        variance = step.variance + step.mean.square() * remaining
        denoised = self.oracle(x_t, t)
        return Denoised(denoised.sample, denoised.noise, variance.clamp(min=1e-9).log())


def test_the_bound_on_grey_levels_is_above_the_truth_and_falls_with_more_steps() -> None:
    found: dict[str, list[float]] = {"fixed_small": [], "fixed_large": [], "best": []}
    for num_timesteps in (5, 20, 80):
        schedule = NoiseSchedule.edm(0.02, 20.0, num_timesteps)  # the first and the last noise stay what they are
        oracle = DiscretizedGaussianDenoiser(mean=MEAN, std=STD, levels=16, schedule=schedule)
        sample, masses = oracle.values[:, None], oracle.log_masses.exp()
        small, large = learned(oracle, "fixed_small"), learned(oracle, "fixed_large")
        for (_, gaps), denoiser in zip(found.items(), (small, large, BestVariance(oracle)), strict=True):
            gaps.append((masses @ (expected(denoiser, sample, 40, levels=16) - bits(oracle, sample))).item())
    assert all(gaps == sorted(gaps, reverse=True) for gaps in found.values())
    assert all(gaps[-1] > 0 for gaps in found.values())


# The terms


@every_frame
@pytest.mark.parametrize("variance", VARIANCES)
def test_every_variance_gives_finite_terms_that_add_up(schedule: NoiseSchedule, variance: Variance) -> None:
    channels = 6 if variance.startswith("learned") else 3
    answer = normal((4, channels, 2), 1).clamp(-1, 1)
    denoiser = Denoiser(lambda x, t, c: answer.to(x), schedule, "v_prediction", variance)
    sample = (normal((4, 3, 2)).clamp(-1, 1) * 7.5 + 7.5).round() / 7.5 - 1
    bound = variational_bound(denoiser, sample, levels=16)
    assert bound.per_timestep.shape == (4, schedule.num_timesteps)
    for term in (bound.total, bound.prior, bound.per_timestep, bound.decoder):
        assert term.isfinite().all()
        assert term.dtype == torch.float64
        assert (term >= 0).all()
    assert (bound.per_timestep[:, 0] == 0).all()
    assert (bound.per_timestep[:, 1:] > 0).all()
    assert torch.equal(bound.total, bound.prior + bound.per_timestep.sum(1) + bound.decoder)


@given(seed=st.integers(0, 2**32), shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(max_examples=10)
def test_a_sample_of_any_rank_costs_the_mean_of_its_values(seed: int, shape: list[int]) -> None:
    oracle = GaussianDenoiser(mean=MEAN, std=STD, schedule=NoiseSchedule.linear(5))
    sample = oracle.draw((3, *shape), torch.Generator().manual_seed(seed))
    noise = Rows(normal((3,), seed))
    whole = variational_bound(oracle, sample, decoder="continuous", generator=noise)
    size = math.prod(shape)
    values = sample.reshape(3, size)
    each = [variational_bound(oracle, one[:, None], decoder="continuous", generator=noise) for one in values.unbind(1)]
    for name in Bound.__dataclass_fields__:
        mean = torch.stack([getattr(one, name) for one in each]).mean(0)
        torch.testing.assert_close(getattr(whole, name), mean, rtol=1e-12, atol=1e-14)


def test_curve_and_bound_are_one_account() -> None:
    oracle = DiscretizedGaussianDenoiser(mean=MEAN, std=STD, levels=16, schedule=NoiseSchedule.linear(20))
    sample, noise = oracle.draw((3, 2, 5)), CounterNoise(5)
    bound, curve = (
        variational_bound(oracle, sample, levels=16, generator=noise),
        rate_distortion(oracle, sample, generator=noise),
    )
    assert curve.rate.shape == curve.distortion.shape == (20,)
    steps = bound.per_timestep.mean(0)
    above = steps.flip(0).cumsum(0).flip(0) - steps
    torch.testing.assert_close(curve.rate, bound.prior.mean() + above, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(curve.rate[0] + bound.decoder.mean(), bound.total.mean(), rtol=1e-12, atol=0)


# Noise, dtypes, gradients


class Listening:
    """A denoiser that remembers what it was given."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.schedule = oracle.schedule
        self.seen: list[tuple[Tensor, Times, object]] = []

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        self.seen.append((x_t, t, condition))
        return self.oracle(x_t, t)


@pytest.mark.parametrize("generator", [None, torch.Generator(), CounterNoise(3)], ids=["global", "own", "counted"])
def test_each_time_has_noise_of_its_own_and_the_condition_is_passed_on(generator: Generator) -> None:
    listening = Listening(GaussianDenoiser(schedule=NoiseSchedule.linear(40)))
    condition = object()
    variational_bound(listening, torch.zeros(2, 500), condition, decoder="continuous", generator=generator)
    assert all(got is condition for _, _, got in listening.seen)
    t = torch.tensor([float(t) for _, t, _ in listening.seen])
    assert sorted(t.tolist()) == list(range(40))
    noise = torch.stack([x_t.flatten() / listening.schedule.sigma(float(t)) for x_t, t, _ in listening.seen])
    correlation = torch.corrcoef(noise) - torch.eye(40)
    assert correlation.abs().max() < 0.16  # of 1000 values each: five standard deviations


def test_a_seed_is_a_result_and_another_seed_another() -> None:
    oracle = GaussianDenoiser(schedule=NoiseSchedule.linear(10))
    one, same, other = (
        variational_bound(oracle, torch.zeros(2, 3), decoder="continuous", generator=torch.Generator().manual_seed(i))
        for i in (1, 1, 2)
    )
    assert torch.equal(one.total, same.total)
    assert not torch.allclose(one.total, other.total)
    assert torch.equal(one.prior, other.prior)


def test_with_counted_noise_a_sample_does_not_depend_on_its_batch() -> None:
    oracle = GaussianDenoiser(schedule=NoiseSchedule.linear(10))
    sample = oracle.draw((5, 3))
    together = variational_bound(oracle, sample, decoder="continuous", generator=CounterNoise(1))
    rest = variational_bound(oracle, sample[2:], decoder="continuous", generator=CounterNoise(1, first_sample=2))
    torch.testing.assert_close(together.total[2:], rest.total, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_a_denoiser_is_asked_in_single_precision_at_least_and_without_gradient(
    dtype: torch.dtype, wide: torch.dtype
) -> None:
    listening = Listening(GaussianDenoiser(schedule=NoiseSchedule.linear(4)))
    sample = torch.tensor([[-1.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
    bound = variational_bound(listening, sample, levels=3)
    curve = rate_distortion(listening, sample)
    assert {x_t.dtype for x_t, _, _ in listening.seen} == {wide}
    assert not bound.total.requires_grad
    assert not curve.rate.requires_grad


def test_single_precision_is_enough() -> None:
    oracle = GaussianDenoiser(mean=MEAN, std=STD, schedule=NoiseSchedule.linear(200), knows_variance=True)
    sample = oracle.draw((2, 3)).float()
    got, want = (
        variational_bound(oracle, x, decoder="continuous", generator=CounterNoise(0)) for x in (sample, sample.double())
    )
    # x_t is rounded by 6e-8, and the error of the estimate at t = 1 weighed by the SNR, 2e3
    torch.testing.assert_close(got.total, want.total, rtol=0, atol=1e-4)


# Errors


def test_what_does_not_lie_on_the_levels_is_refused_by_the_discretised_decoder() -> None:
    oracle = GaussianDenoiser(schedule=NoiseSchedule.linear(4))
    for sample in (torch.zeros(2, 3), torch.full((2, 3), 1.2), torch.tensor([[torch.nan, 1.0]])):
        with pytest.raises(ValueError, match=r"sample must lie on 256 grey levels.*use decoder='continuous'"):
            variational_bound(oracle, sample)
    assert variational_bound(oracle, torch.zeros(2, 3), levels=3).total.isfinite().all()


def test_a_single_level_is_refused() -> None:
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        variational_bound(GaussianDenoiser(schedule=NoiseSchedule.linear(4)), torch.ones(2, 3), levels=1)


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder must be one of 'discretized', 'continuous', got 'tanh'"):
        variational_bound(
            GaussianDenoiser(schedule=NoiseSchedule.linear(4)),
            torch.ones(2, 3),
            decoder="tanh",  # type: ignore[arg-type]
        )


def test_integers_are_refused() -> None:
    oracle, sample = GaussianDenoiser(schedule=NoiseSchedule.linear(4)), torch.ones(2, 3, dtype=torch.uint8)
    for function in (variational_bound, rate_distortion):
        with pytest.raises(TypeError, match=r"sample must be floating, got torch.uint8"):
            function(oracle, sample)
