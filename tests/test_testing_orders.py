"""Orders of convergence: measured on what is known, and told from wrong ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentdiff as ld
from latentdiff import Denoised, NoiseSchedule, Point, Sampler
from latentdiff.solvers import DDIM, SOLVERS, Euler, Evaluation, Heun, Solver, Stepped
from latentdiff.testing import (
    Convergence,
    DiscretizedGaussianDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    assert_order,
    convergence,
    convergence_order,
    sample_moments,
    weak_convergence,
    weak_order,
)

COSINE = NoiseSchedule.cosine()
NORMAL = GaussianDenoiser(mean=0.3, std=0.5, schedule=COSINE)
TWO_DIMENSIONS = MixtureDenoiser(
    weights=torch.ones(2), means=torch.tensor([[-1.0, 0.3], [0.7, 0.9]]), stds=torch.tensor([0.4, 0.6]), schedule=COSINE
)


@dataclass(frozen=True, kw_only=True)
class Halfway(Solver):
    """Heun's rule with a wrong weight of the second slope: of the first order, though it says the second."""

    order: ClassVar[int] = 2

    def step(self, denoise: Evaluation, x: torch.Tensor, now: Point, to: Point, state: object) -> Stepped:
        denoised = denoise(x, now)
        predicted = to.alpha * denoised.sample + to.sigma * denoised.noise
        if now.alpha == 0 or to.sigma == 0:
            return Stepped(predicted, denoised)
        change = denoise(predicted, to).noise - denoised.noise
        return Stepped(predicted + 0.4 * to.alpha * (to.noise_level - now.noise_level) * change, denoised)


@pytest.mark.parametrize("name", ["heun", "lms", "dpmpp_3m", "dpmpp_sde"])  # `check_solver` measures all of them
def test_solvers_have_the_orders_they_state(name: ld.solvers.SolverName) -> None:
    assert_order(name)


@pytest.mark.parametrize("schedule", [NoiseSchedule.scaled_linear(), NoiseSchedule.edm(), NoiseSchedule.flow()])
def test_the_order_is_that_of_the_solver_in_every_frame(schedule: NoiseSchedule) -> None:
    for solver in (Euler(), Heun()):
        measured = convergence_order(solver, GaussianDenoiser(mean=0.3, std=0.5, schedule=schedule))
        assert measured == pytest.approx(solver.order, abs=0.1)


def test_a_solver_of_another_order_is_found_out_with_the_table() -> None:
    with pytest.raises(AssertionError, match=r"Halfway\(\) must have order 2 \+- 0.4, measured [01].\d\d:") as caught:
        assert_order(Halfway())
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == ["steps", "32", "64", "128"]
    with pytest.raises(AssertionError, match=r"Heun.* must have order 1"):
        assert_order(Heun(), order=1)
    with pytest.raises(AssertionError, match="must have weak order 2"):
        assert_order(DDIM(eta=1.0), order=2)


@pytest.mark.parametrize("data", [TWO_DIMENSIONS, DiscretizedGaussianDenoiser(levels=4, schedule=COSINE)])
def test_the_order_is_measured_where_the_flow_is_not_known(data: MixtureDenoiser) -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    # log SNR 1: before grey levels are told apart, which no few steps can follow
    measured = convergence(Heun(), data, x=x, log_snr=(-8.0, 1.0), steps=(16, 32, 64))
    assert measured.order == pytest.approx(2, abs=0.2)


def test_a_denoiser_of_ones_own_is_measured_too() -> None:
    @dataclass(frozen=True)
    class Own:
        schedule: NoiseSchedule = COSINE

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor | float, condition: object = None) -> Denoised:
            return NORMAL(x_t, t)

    assert convergence(Euler(), Own()).errors == pytest.approx(convergence(Euler(), NORMAL).errors, rel=1e-4)


def test_the_walk_to_the_clean_end_has_the_error_of_its_last_jump() -> None:
    """Second order on the way, but linspace ends in a jump to sigma = 0 that shrinks slowly."""
    schedule = NoiseSchedule.scaled_linear()
    data = GaussianDenoiser(mean=0.3, std=0.5, schedule=schedule)
    whole = convergence("dpmpp_2m", data, spacing="linspace")
    assert whole.errors[-1] > 20 * convergence("dpmpp_2m", data).errors[-1]
    times = Sampler("dpmpp_2m", 32, "linspace").timesteps(schedule)
    assert times[0] == 999
    x = torch.special.ndtri((torch.arange(16, dtype=torch.float64) + 0.5) / 16)[:, None]
    want = data.flow_map(x, 999.0, -1.0)
    error = Sampler("dpmpp_2m", 32, "linspace").sample(data, x) - want
    assert whole.errors[0] == pytest.approx((error.square().mean() / want.square().mean()).sqrt().item(), rel=1e-12)


def test_exact_steps_have_errors_of_rounding_and_no_order() -> None:
    """The sample of data in a point is known at once: one step is as good as a hundred."""
    point = GaussianDenoiser(mean=0.3, std=0.0, schedule=COSINE)
    assert convergence_order(DDIM(), point) == math.inf


def test_the_slope_is_that_of_a_line_through_the_logarithms() -> None:
    found = Convergence((10, 20, 80), (3e-1, 3e-1 / 2**2.5, 3e-1 / 8**2.5))
    assert found.order == pytest.approx(2.5)
    assert str(found).splitlines() == [
        " steps      error  slope",
        "    10  3.000e-01",
        "    20  5.303e-02   2.50",
        "    80  1.657e-03   2.50",
    ]


# Weak order


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@given(steps=st.integers(1, 20))
def test_moments_are_those_of_the_recurrence(eta: float, steps: int) -> None:
    """DDIM on centred data of variance .25, written down step by step (Song et al. 2021, arXiv 2010.02502, eq. 12)."""
    schedule = NoiseSchedule.linear()
    sampler = Sampler(DDIM(eta=eta), steps, "trailing")
    bars = [schedule.alpha(t) ** 2 for t in sampler.timesteps(schedule).tolist()]
    want = bars[0] * 0.25 + 1 - bars[0]
    for a, b in pairwise(bars):
        spread, fresh = a * 0.25 + 1 - a, eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        slope = b**0.5 * a**0.5 * 0.25 / spread + (1 - b - fresh) ** 0.5 * (1 - a) ** 0.5 / spread
        want = slope**2 * want + fresh
    mean, variance = sample_moments(sampler, GaussianDenoiser(std=0.5, schedule=schedule))
    assert mean.item() == 0
    assert variance.item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("name", ["dpmpp_sde", "ddpm", "edm"])
def test_moments_are_those_of_many_samples(name: ld.solvers.SolverName) -> None:
    """Several draws a step, correlated ones among them, within four standard errors."""
    solver = ld.solvers.EDM(churn=40.0) if name == "edm" else SOLVERS[name]()
    data = GaussianDenoiser(mean=0.3, std=0.5, schedule=NoiseSchedule.edm())
    sampler = Sampler(solver, 5)
    mean, variance = sample_moments(sampler, data)
    first = data.schedule.point(999.0)
    noise = 0.3 / first.sigma + (0.25 / first.sigma**2 + 1) ** 0.5 * torch.randn(40000, 1, dtype=torch.float64)
    found = sampler.sample(data, noise, generator=torch.Generator().manual_seed(1))
    assert found.mean().item() == pytest.approx(mean.item(), abs=4 * variance.item() ** 0.5 / 200)
    assert found.var().item() == pytest.approx(variance.item(), rel=4 * 2**0.5 / 200)


def test_the_exact_reverse_step_has_no_weak_error() -> None:
    """Steps of one time: ancestral sampling with the variance it is told is exact on normal data."""
    schedule = NoiseSchedule.cosine(16)
    data = GaussianDenoiser(mean=0.3, std=0.5, knows_variance=True, schedule=schedule)
    # the step to the clean end adds no noise: it is the decoder's
    mean, variance = sample_moments(Sampler("ddpm", times=[float(t) for t in range(15, -1, -1)]), data)
    _, alpha, sigma = schedule.point(0.0)
    assert mean.item() == pytest.approx(0.3 * alpha, rel=1e-9)
    assert variance.item() == pytest.approx(0.25 * alpha**2 + sigma**2, rel=1e-9)


def test_weak_orders_are_measured() -> None:
    assert weak_order(DDIM(eta=1.0)) == pytest.approx(1, abs=0.2)
    assert weak_order("dpmpp_sde") == pytest.approx(2, abs=0.2)
    assert weak_convergence("ddpm", spacing="trailing").steps == (32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Clipping(Solver):
    """Estimates in [-1, 1]: not affine."""

    order: ClassVar[int] = 1

    def step(self, denoise: Evaluation, x: torch.Tensor, now: Point, to: Point, state: object) -> Stepped:
        denoised = denoise(x, now)
        return Stepped(to.alpha * denoised.sample.clamp(-1, 1) + to.sigma * denoised.noise, denoised)


@dataclass(frozen=True, kw_only=True)
class Nameless(Euler):
    """Draws noise without a word about its order."""

    weak_order: ClassVar[int | None] = None

    @property
    def stochastic(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: convergence("ddpm", NORMAL), ValueError, "solver must draw no noise, got DDPM"),
        (lambda: convergence("ddim", NORMAL, steps=(10,)), ValueError, "steps must be two or more and rise"),
        (lambda: weak_convergence("ddim", steps=(20, 10)), ValueError, "steps must be two or more and rise"),
        (lambda: convergence("ddim", NORMAL, log_snr=(2.0, -2.0)), ValueError, "log_snr must rise from more noise"),
        (lambda: convergence("ddim", NORMAL, log_snr=(2.0, math.inf)), ValueError, "log_snr must rise from more noise"),
        (lambda: weak_convergence("ddpm", TWO_DIMENSIONS), TypeError, "denoiser must be a GaussianDenoiser"),
        (lambda: assert_order("ddpm", TWO_DIMENSIONS), TypeError, "denoiser must be a GaussianDenoiser"),
        (lambda: weak_convergence(Clipping(), GaussianDenoiser(std=2.0, schedule=COSINE)), ValueError, "affine"),
        (lambda: assert_order(Nameless()), ValueError, "order must be given for a solver that states none"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: object, error: type[Exception], match: str) -> None:
    assert callable(call)
    with pytest.raises(error, match=match):
        call()
