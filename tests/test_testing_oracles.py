"""The closed forms themselves: each answer found a second way."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff import CounterNoise, Denoiser, NoiseSchedule
from latentdiff._prediction import PREDICTIONS
from latentdiff._typing import Prediction
from latentdiff.testing import (
    DiscretizedGaussianDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    Oracle,
    check_denoiser,
    integrate_flow,
)
from latentdiff.testing import strategies as lds

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "zero terminal SNR": NoiseSchedule.scaled_linear().zero_terminal_snr(),
    "edm": NoiseSchedule.edm(),
    "flow": NoiseSchedule.flow(),
}
MIXED = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([-0.8, 0.2, 1.1]).double()


def oracles(schedule: NoiseSchedule) -> dict[str, Oracle]:
    weights, means = MIXED
    return {
        "normal": GaussianDenoiser(mean=torch.tensor([0.3, -0.7]), std=torch.tensor([0.5, 0.2]), schedule=schedule),
        "mixture": MixtureDenoiser(
            weights=weights, means=means, stds=torch.tensor([0.1, 0.4, 0.2]).double(), schedule=schedule
        ),
        "points": MixtureDenoiser(weights=weights, means=means, stds=torch.zeros(3), schedule=schedule),
        "grey levels": DiscretizedGaussianDenoiser(mean=0.1, std=0.4, levels=16, schedule=schedule),
    }


KINDS = ["normal", "mixture", "points", "grey levels"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@every_kind
@every_schedule
def test_oracles_are_denoisers(kind: str, schedule: NoiseSchedule) -> None:
    check_denoiser(oracles(schedule)[kind], torch.randn(3, 2, dtype=torch.float64), tolerance=1e-9)


@every_kind
@every_schedule
@given(seed=lds.seeds(), t=st.floats(0, 999))
def test_the_score_is_the_gradient_of_the_density(kind: str, schedule: NoiseSchedule, seed: int, t: float) -> None:
    data = oracles(schedule)[kind]
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = schedule.add_noise(data.draw((4, 2), CounterNoise(seed)), noise, t).requires_grad_()
    log_density = data.log_prob(x, t)
    assert log_density.shape == (4,)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    size = 1 / schedule.sigma(t)
    torch.testing.assert_close(data.score(x.detach(), t), gradient, rtol=1e-8, atol=1e-8 * size)


@every_kind
@pytest.mark.parametrize("t", [10.0, 300.0, 700.0])
def test_densities_integrate_to_one_and_estimates_are_means(kind: str, t: float) -> None:
    """By the trapezoidal rule, which is exact to rounding for smooth functions that vanish at the ends."""
    schedule = NoiseSchedule.cosine()
    if kind == "normal":
        data: Oracle = GaussianDenoiser(mean=0.3, std=0.5, schedule=schedule)
    else:
        data = oracles(schedule)[kind]
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)[:, None]
    step = 16 / 40000
    density = data.log_prob(grid, t).exp()
    assert density.sum().item() * step == pytest.approx(1, rel=1e-9)
    # E[E[x_0 | x_t]] = E[x_0], and likewise of the noise, whose mean is 0
    denoised = data(grid, t)
    drawn = data.draw((40000, 1), CounterNoise(1))
    mean = (density * denoised.sample[:, 0]).sum().item() * step
    assert mean == pytest.approx(drawn.mean().item(), abs=4 * drawn.std().item() / 200)
    assert (density * denoised.noise[:, 0]).sum().item() * step == pytest.approx(0, abs=1e-9)


@every_kind
def test_draws_have_the_density_that_is_stated(kind: str) -> None:
    """Samples and noise: the mean of the log density is that of an integral, to four standard errors."""
    schedule = NoiseSchedule.cosine()
    data = oracles(schedule)[kind]
    if kind == "normal":
        data = GaussianDenoiser(mean=0.3, std=0.5, schedule=schedule)
    x = schedule.add_noise(data.draw((40000, 1), CounterNoise(1)), torch.randn(40000, 1, dtype=torch.float64), 300.0)
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)[:, None]
    log_density = data.log_prob(grid, 300.0)
    entropy = -(log_density.exp() * log_density).sum().item() * 16 / 40000
    found = -data.log_prob(x, 300.0)
    assert found.mean().item() == pytest.approx(entropy, abs=4 * found.std().item() / 200)


@pytest.mark.parametrize("kind", ["normal", "mixture"])
@every_schedule
@pytest.mark.parametrize(("t", "next_t"), [(999.0, 300.0), (700.0, -1.0), (100.0, 650.5), (400.0, 400.0)])
def test_flow_maps_solve_the_flow(kind: str, schedule: NoiseSchedule, t: float, next_t: float) -> None:
    """Against an integration, which knows estimates alone: also from pure noise, to the clean end, and back."""
    data = oracles(schedule)[kind]
    x = schedule.sigma(t) * torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    x = x.expand(7, 2 if kind == "normal" else 1)
    want = data.flow_map(x, t, next_t)
    torch.testing.assert_close(integrate_flow(data, x, t, next_t), want, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(data.flow_map(want, next_t, t), x, rtol=1e-8, atol=1e-8)


@every_schedule
def test_the_flow_carries_the_mass_along(schedule: NoiseSchedule) -> None:
    """log p_s(x_s) - log p_t(x_t) = -log |dx_s / dx_t|: the change of variables."""
    data = oracles(schedule)["mixture"]
    x = (schedule.sigma(600.0) * torch.linspace(-2, 2, 9, dtype=torch.float64))[:, None]
    h = 1e-5 * schedule.sigma(600.0)
    moved = data.flow_map(x, 600.0, 200.0)
    slope = (data.flow_map(x + h, 600.0, 200.0) - data.flow_map(x - h, 600.0, 200.0)) / (2 * h)
    want = data.log_prob(x, 600.0) - slope[:, 0].log()
    torch.testing.assert_close(data.log_prob(moved, 200.0), want, rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [250.5, torch.tensor(250.5), torch.tensor([3.0, 250.5, 998.0])])
def test_a_perfect_network_makes_the_oracle_again(kind: str, prediction: Prediction, t: float | torch.Tensor) -> None:
    schedule = NoiseSchedule.linear()
    data, x = oracles(schedule)[kind], torch.randn(3, 2, dtype=torch.float64)
    denoiser = Denoiser(data.network(prediction, sigma_data=0.7), schedule, prediction, sigma_data=0.7)
    want, got = data(x, t), denoiser(x, t)
    # of "sample" and "epsilon" the other is found by a division by sigma or alpha: 157 at t = 999
    torch.testing.assert_close(got.sample, want.sample, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.noise, want.noise, rtol=1e-9, atol=1e-9)


def test_labels_choose_the_component_and_the_classifier_is_bayes_rule() -> None:
    schedule, (weights, means) = NoiseSchedule.cosine(), MIXED
    stds = torch.tensor([0.1, 0.4, 0.2]).double()
    data = MixtureDenoiser(weights=3 * weights, means=means, stds=stds, schedule=schedule)
    x, labels = torch.randn(4, 2, dtype=torch.float64), torch.tensor([2, 0, 1, -1])
    got = data(x, 300.0, labels)
    for row, label in enumerate(labels.tolist()):
        alone = data if label < 0 else GaussianDenoiser(mean=means[label], std=stds[label], schedule=schedule)
        torch.testing.assert_close(got.sample[row : row + 1], alone(x[row : row + 1], 300.0).sample)
    each = torch.stack([data.log_prob(x, 300.0, torch.full((4,), k)) for k in range(3)], 1)
    want = each + weights.log() - data.log_prob(x, 300.0)[:, None]
    torch.testing.assert_close(data.log_posterior(x, 300.0), want)


def test_grey_levels_have_the_masses_of_their_bins() -> None:
    data = DiscretizedGaussianDenoiser(mean=0.1, std=0.4, levels=5, schedule=NoiseSchedule.cosine())
    edges = [-math.inf, -0.75, -0.25, 0.25, 0.75, math.inf]
    normal = scipy.stats.norm(0.1, 0.4)
    want = [normal.cdf(b) - normal.cdf(a) for a, b in pairwise(edges)]
    assert data.log_masses.exp().tolist() == pytest.approx(want, rel=1e-12)
    torch.testing.assert_close(data.log_prob(data.values[:, None]), data.log_masses)
    drawn = data.draw((20000, 1), CounterNoise(2))
    is_level = (drawn - data.values).abs() < 1e-9
    assert is_level.any(1).all()
    share = is_level.double().mean(0)
    torch.testing.assert_close(share, data.log_masses.exp(), rtol=0, atol=4 * 0.5 / 20000**0.5)


def test_far_levels_keep_the_digits_of_their_mass() -> None:
    data = DiscretizedGaussianDenoiser(mean=-0.9, std=0.1, levels=256, schedule=NoiseSchedule.cosine())
    want = scipy.stats.norm.logsf((data.values[-1].item() - 1 / 255 + 0.9) / 0.1)
    assert data.log_masses[-1].item() == pytest.approx(want, rel=1e-10)


@given(t=st.floats(0, 999), seed=lds.seeds())
def test_the_known_variance_is_that_of_the_reverse_step(t: float, seed: int) -> None:
    """Var[x_s | x_t] by the normal joint distribution of the two: c - b^2 / a."""
    schedule = NoiseSchedule.cosine()
    data = GaussianDenoiser(mean=0.3, std=0.5, knows_variance=True, schedule=schedule)
    (_, a_t, s_t), (_, a_s, s_s) = schedule.point(t), schedule.point(max(t - 1, -1.0))
    got = data(torch.randn(2, 3, dtype=torch.float64), t).log_variance
    assert got is not None
    var_t, var_s = a_t**2 * 0.25 + s_t**2, a_s**2 * 0.25 + s_s**2
    shared = a_t * a_s * 0.25 + a_t / a_s * s_s**2
    # the difference of two variances keeps fewer digits near the clean end
    assert got.exp().flatten().tolist() == pytest.approx([var_s - shared**2 / var_t] * got.numel(), abs=1e-14, rel=1e-9)


@every_kind
def test_answers_have_the_dtype_of_the_question(kind: str) -> None:
    data = oracles(NoiseSchedule.cosine())[kind]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(3, 2).to(dtype)
        denoised = data(x, 100)
        assert denoised.sample.dtype == denoised.noise.dtype == dtype
        assert data.score(x, 100).dtype == data.log_prob(x, 100).dtype == data.predict("flow", x, 100).dtype == dtype


def mixture(weights: list[float], means: list[float], stds: list[float]) -> MixtureDenoiser:
    w, m, s = (torch.tensor(part) for part in (weights, means, stds))
    return MixtureDenoiser(weights=w, means=m, stds=s, schedule=NoiseSchedule.linear())


def normal_and_levels(std: float, levels: int) -> None:
    GaussianDenoiser(std=std, schedule=NoiseSchedule.linear())
    DiscretizedGaussianDenoiser(levels=levels, schedule=NoiseSchedule.linear())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: normal_and_levels(-1.0, 5), "std must be at least 0, got -1"),
        (lambda: normal_and_levels(1.0, 1), "levels must be at least 2"),
        (lambda: mixture([1, 1], [0, 0, 0], [1, 1]), "one entry for each component"),
        (lambda: mixture([1, 0], [0, 0], [1, 1]), "weights must be positive"),
        (lambda: mixture([1, 1], [0, 0], [1, -1]), "stds must not be negative"),
        (lambda: mixture([1, 1], [0, 0], [1, 1])(torch.randn(3, 2), 1, torch.tensor([0, 1])), r"integer labels \[3\]"),
        (lambda: mixture([1, 1], [0, 0], [1, 1])(torch.randn(2, 2), 1, torch.tensor([0, 2])), r"must be in \[0, 1\]"),
        (lambda: mixture([1, 1], [0, 0], [1, 1])(torch.randn(2, 2), 1000), r"t must be in \[-1, 999\]"),
    ],
)
def test_bad_distributions_and_questions_are_refused(make: object, match: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=match):
        make()


def test_integers_are_no_samples() -> None:
    with pytest.raises(TypeError, match="x must be floating"):
        oracles(NoiseSchedule.linear())["normal"](torch.ones(2, 2, dtype=torch.int64), 3)


@pytest.mark.parametrize("kind", ["points", "grey levels"])
def test_flows_that_nobody_knows_are_not_guessed(kind: str) -> None:
    with pytest.raises(NotImplementedError, match="the flow of"):
        oracles(NoiseSchedule.linear())[kind].flow_map(torch.randn(3, 2), 10, 5)


def test_the_flow_of_several_values_is_that_of_each_where_they_are_independent() -> None:
    """One component: the mixture is normal, and its flow, integrated, that of the closed form."""
    mean, std = torch.tensor([0.3, -0.7]).double(), torch.tensor([0.5, 0.2]).double()
    schedule, x = NoiseSchedule.cosine(), torch.randn(4, 2, dtype=torch.float64)
    one = MixtureDenoiser(weights=torch.ones(1), means=mean[None], stds=std[None], schedule=schedule)
    want = GaussianDenoiser(mean=mean, std=std, schedule=schedule).flow_map(x, 999.0, -1.0)
    torch.testing.assert_close(one.flow_map(x, 999.0, -1.0), want, rtol=1e-8, atol=1e-8)
