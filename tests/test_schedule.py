from __future__ import annotations

import math
import pickle
from itertools import pairwise

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff import NoiseSchedule

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "linear, 10 steps": NoiseSchedule.linear(10),
    "one step": NoiseSchedule.linear(1),
    "scaled linear": NoiseSchedule.scaled_linear(),
    "sqrt": NoiseSchedule.sqrt(200, 1e-4, 0.002),
    "sigmoid": NoiseSchedule.sigmoid(),
    "cosine": NoiseSchedule.cosine(),
    "zero terminal SNR": NoiseSchedule.scaled_linear().zero_terminal_snr(),
    "flow": NoiseSchedule.flow(),
    "shifted flow": NoiseSchedule.flow(shift=3.0),
    "edm": NoiseSchedule.edm(),
    "shifted linear": NoiseSchedule.linear().shifted(0.5),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def times_of(schedule: NoiseSchedule, seed: int, count: int = 64) -> torch.Tensor:
    u = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.cat([u * schedule.num_timesteps - 1, torch.tensor([-1.0, 0.0, schedule.num_timesteps - 1])])


def test_published_betas_are_exact() -> None:
    ddpm, ldm = NoiseSchedule.linear().betas, NoiseSchedule.scaled_linear().betas
    assert torch.equal(ddpm, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    assert torch.equal(ldm, torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square())
    assert ddpm.dtype == torch.float64


def test_alphas_cumprod_of_the_linear_schedule_against_exact_arithmetic() -> None:
    with mpmath.workdps(40):
        product, start, stride = mpmath.mpf(1), mpmath.mpf("1e-4"), (mpmath.mpf("0.02") - mpmath.mpf("1e-4")) / 999
        exact = []
        for i in range(1000):
            product *= 1 - (start + i * stride)
            exact.append((float(product), float(mpmath.sqrt(1 - product))))
    schedule, t = NoiseSchedule.linear(), torch.arange(1000)
    want = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, want[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.alpha(t), want[:, 0].sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.sigma(t), want[:, 1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_timesteps", [7, 1000])
def test_cosine_follows_its_formula(num_timesteps: int) -> None:
    f = [math.cos((i / num_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(num_timesteps + 1)]
    want = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(f)], dtype=torch.float64)
    torch.testing.assert_close(NoiseSchedule.cosine(num_timesteps).betas, want, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.scaled_linear, NoiseSchedule.sqrt_linear])
@pytest.mark.parametrize("num_timesteps", [1, 2, 10, 333, 4000])
def test_noise_at_the_end_does_not_depend_on_the_number_of_steps(make: object, num_timesteps: int) -> None:
    assert callable(make)
    ends = [make(n).alphas_cumprod[-1].item() for n in (1000, num_timesteps)]
    assert ends[1] == pytest.approx(ends[0], rel=1e-10)


@every_schedule
@given(seed=st.integers(0, 2**32))
def test_time_and_log_snr_are_inverse_and_monotone(schedule: NoiseSchedule, seed: int) -> None:
    t = times_of(schedule, seed).sort().values
    log_snr = schedule.log_snr(t)
    # float64 resolves the log of a ratio near 1e-6 to about 1e-10 of a step
    torch.testing.assert_close(schedule.timestep(log_snr), t, rtol=1e-9, atol=1e-9)
    assert (log_snr.diff() <= 0).all()
    assert log_snr[0] == math.inf


@every_schedule
@given(seed=st.integers(0, 2**32))
def test_each_frame_keeps_its_rule(schedule: NoiseSchedule, seed: int) -> None:
    t = times_of(schedule, seed)
    alpha, sigma = schedule.scales(t)
    rule = {
        "variance_preserving": alpha.square() + sigma.square(),
        "variance_exploding": alpha,
        "flow": alpha + sigma,
    }[schedule.frame]
    torch.testing.assert_close(rule, torch.ones_like(rule), rtol=1e-14, atol=0)
    ratio = torch.exp(schedule.log_snr(t) / 2)
    torch.testing.assert_close(
        ratio * sigma, torch.where(sigma > 0, alpha, torch.nan), rtol=1e-10, atol=1e-300, equal_nan=True
    )


@every_schedule
def test_the_clean_end_is_clean(schedule: NoiseSchedule) -> None:
    assert schedule.point(-1.0)[1:] == (1.0, 0.0)


@given(shift=st.floats(0.2, 5), steps=st.integers(2, 50))
def test_flow_is_the_straight_path_at_every_time(shift: float, steps: int) -> None:
    t = torch.linspace(-1, steps - 1, 17, dtype=torch.float64)
    s = (t + 1) / steps
    s = shift * s / (1 + (shift - 1) * s)
    torch.testing.assert_close(NoiseSchedule.flow(steps, shift).sigma(t), s, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(NoiseSchedule.flow(steps).shifted(shift).alpha(t), 1 - s, rtol=1e-12, atol=1e-15)


@every_schedule
@given(shift=st.floats(0.5, 2))
def test_shifting_multiplies_the_noise_level_once(schedule: NoiseSchedule, shift: float) -> None:
    t = torch.arange(schedule.num_timesteps)
    moved = schedule.log_snr(t) - 2 * math.log(shift)
    torch.testing.assert_close(schedule.shifted(shift).log_snr(t), moved, rtol=1e-7, atol=1e-9)


def test_zero_terminal_snr_keeps_the_start_and_ends_in_noise() -> None:
    before = NoiseSchedule.scaled_linear()
    after = before.zero_terminal_snr()
    assert after.alpha(999.0) == 0
    assert after.sigma(999.0) == 1
    assert after.alpha(0.0) == pytest.approx(before.alpha(0.0), rel=1e-12)
    torch.testing.assert_close(after.zero_terminal_snr().betas, after.betas)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_schedule
def test_half_precision_noise_equals_the_exact_one_to_rounding(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    t = torch.arange(schedule.num_timesteps)
    zero, one = torch.zeros(len(t), 1, dtype=dtype), torch.ones(len(t), 1, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noisy = schedule.add_noise(zero, one, t)
    assert torch.equal(noisy[:, 0], schedule.sigma(t).float().to(dtype))


@every_schedule
@given(seed=st.integers(0, 2**32), stride=st.floats(0.05, 1))
def test_posterior_and_marginals_agree(schedule: NoiseSchedule, seed: int, stride: float) -> None:
    """Drawing x_t and then x_s from the posterior gives the marginal of x_s: mean alpha_s x_0, variance sigma_s^2."""
    t = times_of(schedule, seed).clamp(min=0)
    s = t - stride * (t + 1)
    x_0 = torch.randn(len(t), 2, dtype=torch.float64)
    alpha_t, sigma_t = schedule.scales(t)
    at_mean = schedule.posterior(x_0, alpha_t[:, None] * x_0, t, s)
    torch.testing.assert_close(at_mean.mean, schedule.alpha(s)[:, None] * x_0, rtol=1e-9, atol=1e-9)
    slope = schedule.posterior(0 * x_0, torch.ones_like(x_0), t, s).mean[:, :1]
    spread = slope.square() * sigma_t[:, None].square() + at_mean.variance
    torch.testing.assert_close(spread, schedule.sigma(s)[:, None].square(), rtol=1e-9, atol=1e-12)


def test_posterior_of_one_step_is_that_of_ddpm() -> None:
    schedule, t = NoiseSchedule.linear(), torch.tensor([1, 500, 999])
    betas, bar = schedule.betas, schedule.alphas_cumprod
    x_0, x_t = torch.randn(2, 3, 5, dtype=torch.float64)
    got = schedule.posterior(x_0, x_t, t)
    variance = betas[t] * (1 - bar[t - 1]) / (1 - bar[t])
    mean = (betas[t] * bar[t - 1].sqrt() / (1 - bar[t]))[:, None] * x_0
    mean = mean + ((1 - betas[t]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t]))[:, None] * x_t
    torch.testing.assert_close(got.variance[:, 0], variance, rtol=1e-10, atol=0)
    torch.testing.assert_close(got.mean, mean, rtol=1e-10, atol=1e-12)


@every_schedule
def test_schedules_are_values(schedule: NoiseSchedule) -> None:
    schedule.alpha(torch.tensor([0]))
    copy = pickle.loads(pickle.dumps(schedule))  # noqa: S301
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert NoiseSchedule.from_config(schedule.config) == schedule
    schedule.betas[:] = 7
    assert copy.betas.equal(schedule.betas)


def test_tables_there_and_back() -> None:
    schedule = NoiseSchedule.cosine(50)
    again = NoiseSchedule.from_alphas_cumprod(schedule.alphas_cumprod)
    torch.testing.assert_close(again.betas, schedule.betas, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NoiseSchedule.from_betas([0.1, 1.5]), r"betas must be in \(0, 1\]"),
        (lambda: NoiseSchedule.from_betas([1.0, 0.5]), "only the last of the betas"),
        (lambda: NoiseSchedule.from_betas(torch.rand(2, 3)), r"betas must have shape \[num_timesteps\]"),
        (lambda: NoiseSchedule.from_alphas_cumprod([0.5, 0.6]), "alphas_cumprod must fall strictly"),
        (lambda: NoiseSchedule.linear(0), "num_timesteps must be at least 1"),
        (lambda: NoiseSchedule.flow(shift=0.0), "shift must be positive"),
        (lambda: NoiseSchedule.cosine(max_beta=2.0), "max_beta must be in"),
        (lambda: NoiseSchedule.edm(1.0, 0.5), "sigma_max > sigma_min"),
        (lambda: NoiseSchedule.edm().zero_terminal_snr(), "has no zero terminal SNR"),
        (lambda: NoiseSchedule.linear().alpha(torch.tensor([1000])), r"t must be in \[-1, 999\]"),
        (lambda: NoiseSchedule.linear().alpha(-1.5), r"t must be in \[-1, 999\]"),
        (lambda: NoiseSchedule.linear().alpha(math.nan), r"t must be in \[-1, 999\]"),
    ],
)
def test_bad_schedules_are_refused(make: object, match: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=match):
        make()
