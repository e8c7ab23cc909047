from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff import NoiseSchedule, denoised_from_prediction
from latentdiff.testing import check_schedule
from latentdiff.testing import strategies as lds
from models import small_model

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


Curve = Callable[[int], mpmath.mpf]


def even(start: str, end: str) -> Curve:
    return lambda i: mpmath.mpf(start) + i * (mpmath.mpf(end) - mpmath.mpf(start)) / 999


def even_in_root(start: str, end: str) -> Curve:
    def beta(i: int) -> mpmath.mpf:
        low, high = mpmath.sqrt(start), mpmath.sqrt(end)
        return (low + i * (high - low) / 999) ** 2

    return beta


FORMULAS: dict[str, tuple[NoiseSchedule, Curve]] = {
    "linear": (NoiseSchedule.linear(), even("1e-4", "0.02")),
    "scaled_linear": (NoiseSchedule.scaled_linear(), even_in_root("0.00085", "0.012")),
    "sqrt_linear": (NoiseSchedule.sqrt_linear(), even_in_root("1e-4", "0.02")),
    "sqrt": (NoiseSchedule.sqrt(), lambda i: mpmath.sqrt(even("1e-4", "0.02")(i))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_betas_follow_the_formula_of_their_name(name: str) -> None:
    """At both ends and in the middle, in 40 digits: names mean different things in different places."""
    schedule, beta = FORMULAS[name]
    with mpmath.workdps(40):
        for i in (0, 499, 500, 999):
            assert schedule.betas[i].item() == pytest.approx(float(beta(i)), rel=1e-14)


def test_names_that_are_easily_confused_are_different_schedules() -> None:
    def difference(one: NoiseSchedule, two: NoiseSchedule) -> float:
        return (one.alphas_cumprod - two.alphas_cumprod).abs().max().item()

    linear = NoiseSchedule.linear()
    assert difference(linear, NoiseSchedule.sqrt_linear()) == pytest.approx(0.357, abs=0.001)
    assert difference(linear, NoiseSchedule.sigmoid()) > 0.1
    assert difference(linear, NoiseSchedule.cosine()) > 0.1


def bars_of(curve: Curve, steps: int, max_beta: str) -> list[mpmath.mpf]:
    """Alpha-bar from the clean end on, of betas bounded by `max_beta`."""
    bars = [mpmath.mpf(1)]
    for i in range(1, steps + 1):
        bars.append(bars[-1] * (1 - min(1 - curve(i) / curve(i - 1), mpmath.mpf(max_beta))))
    return bars


def test_cosine_against_exact_arithmetic() -> None:
    """Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17: from alpha-bar 1, the last beta bounded by .999."""
    with mpmath.workdps(40):
        s = mpmath.mpf("0.008")
        bars = bars_of(lambda i: mpmath.cos((mpmath.mpf(i) / 1000 + s) / (1 + s) * mpmath.pi / 2) ** 2, 1000, "0.999")
        want = torch.tensor([float(bar) for bar in bars[1:]], dtype=torch.float64)
        noise = [float(mpmath.sqrt(1 - bars[i])) for i in (1, 500, 1000)]
    schedule = NoiseSchedule.cosine()
    torch.testing.assert_close(schedule.alphas_cumprod, want, rtol=1e-9, atol=0)  # near T - 1 a difference of 1e-6 of 1
    assert [schedule.sigma(t) for t in (0.0, 499.0, 999.0)] == pytest.approx(noise, rel=1e-11)
    assert schedule.betas.max() == 0.999
    assert schedule.terminal_snr == pytest.approx(2.4e-9, rel=0.02)


def test_sigmoid_is_that_of_its_paper() -> None:
    """Jabri et al. 2022, arXiv 2212.11972, alg. 1: (v_end - sigmoid(...)) / (v_end - v_start), from 1 to 0."""
    with mpmath.workdps(40):

        def sigmoid(x: mpmath.mpf) -> mpmath.mpf:
            return 1 / (1 + mpmath.exp(-x))

        low, high, tau = mpmath.mpf(-3), mpmath.mpf(3), mpmath.mpf("0.9")
        first, last = sigmoid(low / tau), sigmoid(high / tau)
        bars = bars_of(
            lambda i: (last - sigmoid((mpmath.mpf(i) / 1000 * (high - low) + low) / tau)) / (last - first),
            1000,
            "0.999",
        )
        want = torch.tensor([float(bar) for bar in bars[1:]], dtype=torch.float64)
    torch.testing.assert_close(NoiseSchedule.sigmoid(tau=0.9).alphas_cumprod, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        (NoiseSchedule.linear(), 4.036e-5),
        (NoiseSchedule.scaled_linear(), 4.682e-3),
        (NoiseSchedule.edm(), 80.0**-2),
        (NoiseSchedule.flow(), 0.0),
        (NoiseSchedule.linear().zero_terminal_snr(), 0.0),
    ],
)
def test_the_signal_left_at_the_end_is_a_number(schedule: NoiseSchedule, want: float) -> None:
    assert schedule.terminal_snr == pytest.approx(want, rel=1e-3, abs=0)


def test_a_schedule_of_pure_noise_at_the_end_keeps_falling() -> None:
    """Also DDPM's, whose levels are not monotone where 2 ** -24 stands for the last alpha-bar."""
    levels = NoiseSchedule.linear().zero_terminal_snr().log_snr(torch.arange(1000))
    assert (levels.diff() < 0).all()
    assert levels[-1] == -math.inf


def test_noise_from_a_sample_is_exact_next_to_the_clean_end() -> None:
    """1 - alpha-bar in float32 is wrong in its fourth digit there."""
    schedule = NoiseSchedule.linear()
    x_0, noise = torch.randn(2, 4, 3, dtype=torch.float64)
    x_t = schedule.add_noise(x_0, noise, 0)
    got = denoised_from_prediction("sample", x_0, x_t, *schedule.point(0.0)[1:]).noise
    torch.testing.assert_close(got, noise, rtol=0, atol=1e-13)


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


@pytest.mark.parametrize(
    "make", [NoiseSchedule.linear, NoiseSchedule.scaled_linear, NoiseSchedule.sqrt_linear, NoiseSchedule.sqrt]
)
@pytest.mark.parametrize("num_timesteps", [1, 2, 10, 333, 4000])
def test_noise_at_the_end_does_not_depend_on_the_number_of_steps(make: object, num_timesteps: int) -> None:
    assert callable(make)
    ends = [make(n).terminal_snr for n in (1000, num_timesteps)]
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
def test_schedules_keep_their_promises(schedule: NoiseSchedule) -> None:
    check_schedule(schedule)


@given(schedule=lds.schedules())
def test_all_schedules_keep_their_promises(schedule: NoiseSchedule) -> None:
    check_schedule(schedule)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(1).zero_terminal_snr(), NoiseSchedule.from_betas([1.0])])
def test_one_step_may_lead_from_clean_to_pure_noise(schedule: NoiseSchedule) -> None:
    check_schedule(schedule)
    assert schedule.point(0.0)[1:] == (0.0, 1.0)
    t = torch.linspace(-1, 0, 9, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(t) / (schedule.sigma(t) + schedule.alpha(t)), t + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_schedule
def test_autocast_and_half_precision_never_touch_the_tables(schedule: NoiseSchedule, dtype: torch.dtype) -> None:
    fresh, t = NoiseSchedule.from_config(schedule.config), torch.arange(schedule.num_timesteps)
    want = schedule.log_snr(t), *schedule.scales(t), schedule.betas, schedule.alphas_cumprod
    x = torch.randn(len(t), 2, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        noisy = fresh.add_noise(x, x, t)
        fresh.posterior(x, noisy, t)
        fresh.transition(x, t - 1, t)
        got = fresh.log_snr(t), *fresh.scales(t), fresh.betas, fresh.alphas_cumprod
    assert all(one.equal(two) for one, two in zip(got, want, strict=True))
    assert all(one.dtype == torch.float64 for one in got)


def test_a_model_in_half_precision_keeps_its_schedule() -> None:
    model = small_model()
    before = model.denoiser.schedule.scales(torch.arange(100))
    for converted in (model.half(), model.bfloat16(), model.to(torch.float16)):
        after = converted.denoiser.schedule.scales(torch.arange(100))
        assert all(a.equal(b) for a, b in zip(after, before, strict=True))


def test_half_precision_times_are_read_as_what_they_are() -> None:
    """Whole times to 256 are exact in bfloat16; the tables are looked up in float64."""
    schedule = NoiseSchedule.linear()
    t = torch.arange(257)
    assert schedule.sigma(t.bfloat16()).equal(schedule.sigma(t))


@every_schedule
def test_a_schedule_is_shared_by_threads(schedule: NoiseSchedule) -> None:
    """Tables and points are made when first asked for: by several at once."""
    t = times_of(schedule, 3)
    want = schedule.scales(t)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            fresh = NoiseSchedule.from_config(schedule.config)
            found = pool.map(lambda k, one=fresh: (one.point(t[k].item()), one.scales(t)), range(8))
            for k, (point, scales) in enumerate(found):
                assert point[1:] == pytest.approx((want[0][k].item(), want[1][k].item()), rel=1e-14, abs=0)
                assert all(a.equal(b) for a, b in zip(scales, want, strict=True))


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
    schedule.point(0.0)
    copy = pickle.loads(pickle.dumps(schedule))  # noqa: S301
    assert copy.scales(torch.tensor([0]))[1].equal(schedule.scales(torch.tensor([0]))[1])
    assert len(pickle.dumps(schedule)) < 40 * schedule.num_timesteps + 500, "what can be made again is not pickled"
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
        (lambda: NoiseSchedule.linear(beta_end=1.0), r"beta_end must be in \(0, 1\), got 1.0"),
        (lambda: NoiseSchedule.scaled_linear(beta_start=-0.1), r"beta_start must be in \(0, 1\), got -0.1"),
        (lambda: NoiseSchedule.sqrt(beta_start=math.nan), r"beta_start must be in \(0, 1\), got nan"),
        (lambda: NoiseSchedule.linear(0), "num_timesteps must be at least 1"),
        (lambda: NoiseSchedule.flow(shift=0.0), "shift must be positive"),
        (lambda: NoiseSchedule.cosine(max_beta=2.0), "max_beta must be in"),
        (lambda: NoiseSchedule.edm(1.0, 0.5), "sigma_max must be above sigma_min=1.0, got 0.5"),
        (lambda: NoiseSchedule.edm(sigma_max=math.nan), "sigma_max must be positive, got nan"),
        (lambda: NoiseSchedule.edm(num_timesteps=1), "num_timesteps must be at least 2, got 1"),
        (lambda: NoiseSchedule("variance_exploding", 2, (math.nan, 1.0)), "noise levels must be .* strictly rising"),
        (lambda: NoiseSchedule.cosine(offset=-0.1), "offset must be at least 0 and finite, got -0.1"),
        (lambda: NoiseSchedule.sigmoid(start=3.0), "start must be below end, both finite, got start=3.0 and end=3.0"),
        (lambda: NoiseSchedule.sigmoid(tau=0.0), "tau must be positive, got 0.0"),
        (lambda: NoiseSchedule.linear().timestep(math.nan), "log_snr must be a number, got NaN"),
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


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NoiseSchedule.linear(1.5), "num_timesteps must be an int, got 1.5"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.cosine(10.0), "num_timesteps must be an int, got 10.0"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.sigmoid("10"), "num_timesteps must be an int, got '10'"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.flow(10.0), "num_timesteps must be an int, got 10.0"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.flow(True), "num_timesteps must be an int, got True"),
        (lambda: NoiseSchedule.edm(num_timesteps=9.0), "num_timesteps must be an int"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.edm("1"), "sigma_min must be a number, got '1'"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.linear().shifted(None), "shift must be a number, got None"),  # type: ignore[arg-type]
        (lambda: NoiseSchedule.linear().shifted(True), "shift must be a number, got True"),
        (lambda: NoiseSchedule.linear().shifted([2]), "shift must be a number, got list"),  # type: ignore[arg-type]
    ],
)
def test_values_of_another_type_are_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    schedule = NoiseSchedule.flow(np.int64(7)).shifted(np.float32(2))  # type: ignore[arg-type]
    assert schedule == NoiseSchedule.flow(7, shift=2.0)
    assert json.loads(json.dumps(schedule.config)) == schedule.config


x, last = torch.zeros(2, 3, 5), torch.tensor([4, 6])


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (lambda s: s.posterior(x, x, 3, 5), "next_t must be at most t, got next_t=5 and t=3"),
        (lambda s: s.posterior(x, x, last, torch.tensor([4, 7])), "next_t must be at most t, got next_t=7 and t=6"),
        (lambda s: s.transition(x, 5, 3), "t must be at most next_t, got t=5 and next_t=3"),
        (lambda s: s.transition(x, last, 5.5), "t must be at most next_t, got t=6 and next_t=5.5"),
        (lambda s: s.posterior(x, x[:1], last), r"noisy must have sample's shape \[2, 3, 5\], got \[1, 3, 5\]"),
        (lambda s: s.posterior(x, x, torch.ones(3)), r"^t must have shape \[\] or \[2\], .*\[2, 3, 5\], got \[3\]"),
        (lambda s: s.posterior(x, x, 5, torch.ones(3)), r"next_t must have shape \[\] or \[2\], .* got \[3\]"),
        (lambda s: s.transition(x, torch.ones(2, 1), 9), r"^t must have shape \[\] or \[2\], .* got \[2, 1\]"),
        (lambda s: s.transition(x, 3, torch.ones(1)), r"next_t must have shape \[\] or \[2\], .* got \[1\]"),
    ],
)
@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(9), NoiseSchedule.flow(9)])
def test_steps_that_are_none_are_refused(
    schedule: NoiseSchedule, step: Callable[[NoiseSchedule], object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        step(schedule)


@every_schedule
def test_a_step_of_no_length_is_one(schedule: NoiseSchedule) -> None:
    """The bound of the order: nothing happens, and nothing is refused."""
    assert (schedule.transition(x, 0, 0).variance == 0).all()
    assert (schedule.posterior(x, x, 0, 0).variance == 0).all()
