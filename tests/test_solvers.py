"""What each solver promises: its order, exactness, and what happens at both ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentdiff import BrownianNoise, CounterNoise, Denoised, Denoiser, NoiseSchedule, Point, Sampler, solvers
from latentdiff.solvers import SOLVERS, Solver, SolverName
from latentdiff.solvers._base import ancestral
from latentdiff.solvers._weights import exponential_moments, lagrange_weights
from latentdiff.testing import GaussianDenoiser, assert_order, convergence, sample_moments
from wide import EIGHT, MODES, WIDE

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "zero terminal SNR": NoiseSchedule.scaled_linear().zero_terminal_snr(),
    "flow": NoiseSchedule.flow(),
    "edm": NoiseSchedule.edm(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_solver = pytest.mark.parametrize("name", SOLVERS)


def quiet(name: SolverName) -> Solver | None:
    """The version of a solver that draws no noise, if there is one."""
    solver = SOLVERS[name]()
    if solver.stochastic and hasattr(solver, "eta"):
        return replace(solver, eta=0.0)  # type: ignore[type-var]
    return None if solver.stochastic else solver


@every_solver
def test_the_order_of_a_solver_is_what_it_states(name: SolverName) -> None:
    """To the probability flow, on normal data of eight spreads and on three modes, from noise of 200 to noise of 0.14.

    0.2 of the stated order: what is left of the next one at 160 and 320 steps.
    """
    solver = quiet(name)
    if solver is None or name == "dpm_adaptive":
        return
    for data in (EIGHT, MODES):
        assert_order(solver, data, solver.order, tolerance=0.2, steps=(160, 320), log_snr=(-10.6, 4.0))


@every_solver
def test_the_weak_order_of_a_solver_is_what_it_states(name: SolverName) -> None:
    """Mean and variance on normal data, computed without chance."""
    solver = SOLVERS[name]()
    if solver.stochastic and name != "lcm":
        assert_order(
            solver, replace(EIGHT, std=torch.tensor(0.5), mean=torch.tensor(0.3)), tolerance=0.2, steps=(80, 160)
        )


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_both_kinds_of_the_two_step_sde_solver_are_of_second_order(kind: Any) -> None:
    assert_order(solvers.DPMpp2MSDE(kind=kind), tolerance=0.2, steps=(80, 160))


@pytest.mark.parametrize("solver", [solvers.UniPC(predictor_order=p) for p in (1, 2, 3)], ids=repr)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_is_one_order_above_its_predictor(solver: solvers.UniPC, variant: Any) -> None:
    """The corrector's start-up keeps the fourth order at three where it shows; it is seen between 20 and 80 steps."""
    solver = replace(solver, variant=variant)
    steps = (40, 80) if solver.predictor_order == 3 else (160, 320)
    found = convergence(solver, MODES, steps=steps, log_snr=(-10.6, 3.0)).order
    assert found > solver.order - 0.3


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_linear_multistep_methods_have_the_order_asked_for(order: int) -> None:
    for solver in (solvers.LMS(order=order), solvers.DEIS(order=order)):
        found = convergence(solver, MODES, steps=(80, 160), log_snr=(-10.6, 4.0)).order
        assert found == pytest.approx(order, abs=0.35)


def test_published_three_step_weights_are_of_second_order_and_better_in_short_walks_on_karras_times() -> None:
    published, exact = solvers.DPMpp3M(published=True), solvers.DPMpp3M()
    assert convergence(published, EIGHT, steps=(160, 320), log_snr=(-10.6, 7.0)).order < 2.4
    x, errors = torch.randn(50, 8, dtype=torch.float64), []
    for steps in (20, 160):
        times = Sampler("euler", steps, "karras").timesteps(WIDE)[:-1].tolist()
        want = EIGHT.flow_map(x * WIDE.sigma(times[0]), times[0], times[-1])
        found = [Sampler(solver, times=times).sample(EIGHT, x) for solver in (published, exact)]
        errors.append([(one - want).square().mean().item() for one in found])
    assert errors[0][0] < errors[0][1]
    assert errors[1][0] > errors[1][1]


@every_solver
@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_walks_end_finite_from_pure_noise_to_the_clean_end(
    name: SolverName, schedule: NoiseSchedule, steps: int
) -> None:
    data = GaussianDenoiser(mean=0.3, std=0.5, schedule=schedule)
    noise = torch.randn(4, 2, 3, dtype=torch.float64)
    sample = Sampler(name, steps).sample(data, noise, generator=CounterNoise(0))
    assert sample.isfinite().all()
    assert sample.shape == noise.shape


@every_solver
def test_a_thousand_steps_are_as_good_as_one(name: SolverName) -> None:
    """Every whole time of the schedule; what remains is the mean left at T - 1 (0.0019) and rounding."""
    if name in ("lcm", "dpm_adaptive"):
        return
    data = GaussianDenoiser(mean=0.3, std=0.5, schedule=SCHEDULES["linear"])
    mean, variance = sample_moments(Sampler(name, 1000, "trailing"), data)
    assert mean.item() == pytest.approx(0.3, abs=0.004)
    assert variance.item() == pytest.approx(0.25, abs=0.004)


@every_schedule
@given(eta=st.floats(0, 1), t=st.floats(0.5, 999), share=st.floats(0, 0.999))
def test_fresh_and_kept_noise_make_up_the_noise_there_is(
    schedule: NoiseSchedule, eta: float, t: float, share: float
) -> None:
    now, to = schedule.point(t), schedule.point(share * t)
    down, fresh = ancestral(now, to, eta)
    assert down.sigma**2 + fresh**2 == pytest.approx(to.sigma**2, rel=1e-12)
    assert 0 <= fresh <= to.sigma
    posterior = schedule.posterior(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1), now.t, to.t)
    assert fresh**2 == pytest.approx(eta**2 * posterior.variance.item(), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (solvers.EulerAncestral(eta=0.0), solvers.Euler()),
        (solvers.DDIM(), solvers.Euler()),
        (solvers.DPM2Ancestral(eta=0.0), solvers.DPM2()),
        (solvers.DPMpp2SAncestral(eta=0.0), solvers.DPMpp2S()),
        (solvers.DPMpp2MSDE(eta=0.0), solvers.DPMpp2M()),
        (solvers.DPMpp3MSDE(eta=0.0), solvers.DPMpp3M(published=True)),
        (solvers.EDM(), solvers.Heun()),
        (solvers.EulerAncestral(eta=0.6), solvers.DDIM(eta=0.6)),
    ],
)
def test_solvers_that_are_one_give_the_same_bits(one: Solver, other: Solver) -> None:
    noise = torch.randn(4, 2, 3)
    got, want = (Sampler(s, 7, "trailing").sample(data(), noise, generator=CounterNoise(1)) for s in (one, other))
    assert torch.equal(got, want)


def data(schedule: NoiseSchedule | None = None, **options: bool) -> GaussianDenoiser:
    return GaussianDenoiser(mean=0.3, std=0.5, schedule=schedule or NoiseSchedule.cosine(), **options)


def test_the_sde_solver_without_noise_is_the_one_step_solver() -> None:
    noise = torch.randn(4, 2, 3, dtype=torch.float64)
    got, want = (Sampler(s, 7).sample(data(), noise) for s in (solvers.DPMppSDE(eta=0.0), solvers.DPMpp2S()))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@every_schedule
def test_ancestral_euler_is_ddpm_with_the_small_variance(schedule: NoiseSchedule) -> None:
    noise = torch.randn(4, 2, 3, dtype=torch.float64)
    pair = (solvers.EulerAncestral(), solvers.DDPM(variance="fixed_small"))
    got, want = (Sampler(s, 9).sample(data(schedule), noise, generator=CounterNoise(1)) for s in pair)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_timesteps", [3, 20])
def test_ddpm_with_the_exact_variance_is_exact_in_any_number_of_steps(num_timesteps: int) -> None:
    """p(x_s | x_t) of normal data is normal: the chain's marginals are the true ones. (The last step adds no noise.)"""
    schedule = NoiseSchedule.linear(num_timesteps)
    times = [float(t) for t in range(num_timesteps - 1, -1, -1)]
    mean, variance = sample_moments(Sampler("ddpm", times=times), data(schedule, knows_variance=True))
    alpha, sigma = schedule.point(0.0)[1:]
    assert mean.item() == pytest.approx(alpha * 0.3, rel=1e-9)
    assert variance.item() == pytest.approx(alpha**2 * 0.25 + sigma**2, rel=1e-9)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("times", [None, (800.0, 431.5, 77.25, -1.0)])
def test_a_variance_that_the_denoiser_knows_serves_steps_of_any_length(variance: Any, times: Any) -> None:
    schedule = SCHEDULES["linear"]

    class Knowing:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Any, condition: object = None) -> Denoised:
            low, high = schedule.reverse_log_variances(torch.full((len(x_t),), float(t), dtype=torch.float64))
            return replace(data(schedule)(x_t, t), log_variance=low if variance == "fixed_small" else high)

    noise = torch.randn(4, 2, 3, dtype=torch.float64)
    sampler = Sampler("ddpm", 15) if times is None else Sampler("ddpm", times=times)
    got = sampler.sample(Knowing(), noise, generator=CounterNoise(4))
    fixed = replace(sampler, solver=solvers.DDPM(variance=variance), **({"spacing": None} if times else {}))
    torch.testing.assert_close(got, fixed.sample(Knowing(), noise, generator=CounterNoise(4)), rtol=1e-8, atol=1e-8)


@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_lcm_with_a_consistency_model_draws_from_the_data_in_any_number_of_steps(
    schedule: NoiseSchedule, steps: int
) -> None:
    exact = data(schedule)

    class Consistent(GaussianDenoiser):
        def __call__(self, x_t: Tensor, t: Any, condition: object = None) -> Denoised:
            return Denoised(exact.flow_map(x_t, t, -1.0), torch.zeros_like(x_t))

    sampler = Sampler(solvers.LCM(timestep_scaling=None), steps)
    mean, variance = sample_moments(sampler, Consistent(mean=0.3, std=0.5, schedule=schedule))
    assert mean.item() == pytest.approx(0.3, rel=1e-9)
    assert variance.item() == pytest.approx(0.25, rel=1e-9)


# The solver with steps of its own


@pytest.mark.parametrize("schedule", [SCHEDULES["linear"], SCHEDULES["flow"], SCHEDULES["edm"]])
def test_the_adaptive_solver_keeps_to_its_tolerance(schedule: NoiseSchedule) -> None:
    """From log SNR -6 to 6; a 16th of the tolerance gives less than a fourth of the error."""
    times = [schedule.timestep(-6.0), schedule.timestep(6.0)]
    x, found = torch.randn(9, 4, dtype=torch.float64), []
    for tolerance in (1e-2, 1e-2 / 16, 1e-2 / 256):
        solver = solvers.DPMAdaptive(rtol=tolerance, atol=tolerance)
        start = x * schedule.sigma(times[0]) if schedule.frame == "variance_exploding" else x
        exact = data(schedule).flow_map(start, *times)
        error = Sampler(solver, times=times).sample(data(schedule), x) - exact
        found.append(error.square().mean().sqrt().item())
        assert found[-1] < 4 * tolerance  # of a step; a walk has some dozens
    assert found[2] < found[1] / 4 < found[0] / 16


def test_each_sample_of_the_adaptive_solver_makes_its_own_steps() -> None:
    calls: list[Tensor] = []

    class Watching(GaussianDenoiser):
        def __call__(self, x_t: Tensor, t: Any, condition: object = None) -> Denoised:
            calls.append(torch.as_tensor(t))
            return super().__call__(x_t, t, condition)

    noise = torch.tensor([[0.01, -0.02], [3.0, -4.0], [0.5, 0.4]], dtype=torch.float64)
    watching = Watching(mean=0.3, std=0.05, schedule=SCHEDULES["linear"])
    whole = Sampler("dpm_adaptive", 2).sample(watching, noise)
    assert any(t.ndim == 1 and t.unique().numel() == 3 for t in calls)
    alone = torch.cat([Sampler("dpm_adaptive", 2).sample(watching, row[None]) for row in noise])
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)


# Weights and moments


@given(h=st.floats(-30, 30), count=st.integers(1, 4))
def test_moments_of_the_exponential_are_its_integrals(h: float, count: int) -> None:
    got = exponential_moments(h, count)
    for m, moment in enumerate(got):
        with mpmath.workdps(30):
            want = mpmath.quad(lambda u, m=m: mpmath.exp(-mpmath.mpf(h) * (1 - u)) * u**m, [0, 0.5, 1])
        assert moment == pytest.approx(float(want), rel=1e-11)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 5))
def test_weights_integrate_polynomials_exactly(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nodes = -torch.arange(count).double() - 0.5 * torch.rand(count, generator=generator).double()
    moments = torch.rand(count, generator=generator).double()
    weights = torch.tensor(lagrange_weights(nodes.tolist(), moments.tolist()), dtype=torch.float64)
    for m in range(count):
        assert (weights * nodes**m).sum().item() == pytest.approx(moments[m].item(), rel=1e-9, abs=1e-9)


# One path of noise


@pytest.mark.parametrize("name", [n for n in SOLVERS if SOLVERS[n]().stochastic and n != "lcm"])
def test_with_brownian_noise_a_finer_grid_is_the_same_sample(name: SolverName) -> None:
    """Strong convergence: halving the steps at least halves, times 1.5, the way to the sample of four times as many."""
    noise, walks = torch.randn(20, 6, dtype=torch.float64), []
    schedule = SCHEDULES["linear"]
    for steps in (20, 40, 160):
        times = schedule.timestep(torch.linspace(-8, 4, steps + 1, dtype=torch.float64)).tolist()
        walks.append(Sampler(name, times=times).sample(data(schedule), noise, generator=BrownianNoise(7)))
    coarse, fine = ((walk - walks[-1]).square().mean().sqrt().item() for walk in walks[:2])
    assert fine < coarse / 1.5
    assert coarse < 0.15
    other = Sampler(name, times=times).sample(data(schedule), noise, generator=BrownianNoise(8))
    assert (other - walks[-1]).square().mean().sqrt() > 0.3


@given(seed=st.integers(0, 2**32), low=st.floats(-20, 20), length=st.floats(0.01, 10))
def test_a_brownian_path_has_independent_increments_of_the_right_size(seed: int, low: float, length: float) -> None:
    path = BrownianNoise(seed, first_sample=3)
    u, v = 2.0**low, 2.0 ** (low + length)
    a, b = (path.path((40, 50), time, device=torch.device("cpu")) for time in (u, v))
    n = a.numel() ** 0.5
    assert (a / u**0.5).square().mean().item() == pytest.approx(1, abs=5 * 2**0.5 / n)
    step = (b - a) / (v - u) ** 0.5
    assert step.square().mean().item() == pytest.approx(1, abs=5 * 2**0.5 / n + 0.01)  # a straight piece at the leaf
    assert abs((step * a / u**0.5).mean().item()) < 5 / n
    part = BrownianNoise(seed, first_sample=13).path((7, 50), u, device=torch.device("cpu"))
    assert torch.equal(part, a[10:17])


def test_a_path_begins_at_zero_and_is_continuous() -> None:
    path = BrownianNoise(1)
    assert path.path((2, 3), 0.0, device=torch.device("cpu")).equal(torch.zeros(2, 3, dtype=torch.float64))
    a, b = (path.path((20, 30), u, device=torch.device("cpu")) for u in (1.0 - 1e-9, 1.0 + 1e-9))
    assert (a - b).abs().max() < 1e-3


# Bad options


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: solvers.DDIM(eta=1.5), r"eta must be in \[0, 1\]"),
        (lambda: solvers.DDPM(variance="learned"), "variance must be one of"),  # type: ignore[arg-type]
        (lambda: solvers.EulerAncestral(eta=-0.1), "eta must be at least 0, got -0.1"),
        (lambda: solvers.DPMpp2MSDE(eta=math.nan), "eta must be at least 0"),
        (lambda: solvers.DPMpp2MSDE(kind="best"), "kind must be one of 'midpoint'"),  # type: ignore[arg-type]
        (lambda: solvers.EDM(churn=-1.0), "churn must be at least 0"),
        (lambda: solvers.LMS(order=5), "order must be 1, 2, 3 or 4, got 5"),
        (lambda: solvers.DEIS(order=0), "order must be 1, 2, 3 or 4, got 0"),
        (lambda: solvers.UniPC(predictor_order=5), "predictor_order must be 1, 2, 3 or 4"),
        (lambda: solvers.UniPC(variant="bh3"), "variant must be one of 'bh1'"),  # type: ignore[arg-type]
        (lambda: solvers.DPMAdaptive(rtol=0.0), "rtol must be positive"),
        (lambda: solvers.LCM(timestep_scaling=0.0), "timestep_scaling must be positive or None"),
    ],
)
def test_bad_options_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_points_know_their_noise_level() -> None:
    assert Point(0.0, 0.6, 0.8).noise_level == pytest.approx(4 / 3)
    assert Point(0.0, 0.0, 1.0).noise_level == math.inf
    assert Point(0.0, 1.0, 0.0).half_log_snr == math.inf


def test_the_adaptive_solver_stops_where_it_cannot_go_on() -> None:
    schedule = SCHEDULES["linear"]

    class Broken(GaussianDenoiser):
        def __call__(self, x_t: Tensor, t: Any, condition: object = None) -> Denoised:
            return Denoised(x_t * math.nan, x_t * math.nan)

    with pytest.raises(RuntimeError, match="denoiser must answer with finite numbers"):
        Sampler("dpm_adaptive", 3).sample(Broken(schedule=schedule), torch.randn(2, 3))
    solver = solvers.DPMAdaptive(rtol=1e-6, atol=1e-6, max_steps=5)
    with pytest.raises(RuntimeError, match="rtol and atol must be within reach"):
        Sampler(solver, 3).sample(data(schedule), torch.randn(2, 3))


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(7), NoiseSchedule.flow(3)])
def test_steps_shorter_than_one_time_keep_a_learned_variance_finite(schedule: NoiseSchedule) -> None:
    def network(x: Tensor, t: Tensor, condition: object) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], 1)

    denoiser = Denoiser(network, schedule, "v_prediction", "learned_range")
    drawn = Sampler("ddpm", 20, "trailing").sample(denoiser, torch.randn(4, 2, 3))
    assert drawn.isfinite().all()
