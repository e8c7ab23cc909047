from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentdiff import Denoiser, NoiseSchedule, convert_prediction, denoised_from_prediction, prediction_target
from latentdiff._prediction import PREDICTIONS, target_weights
from latentdiff._typing import Prediction
from latentdiff.testing import strategies as lds

PAIRS = [(source, target) for source in PREDICTIONS for target in PREDICTIONS if source != target]
REGULAR: tuple[Prediction, ...] = ("v_prediction", "flow", "edm")
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
"""Rounding of each dtype, relative."""

every_pair = pytest.mark.parametrize(("source", "target"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
every_dtype = pytest.mark.parametrize("dtype", UNIT)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


@every_prediction
@given(seed=st.integers(0, 2**32), alpha=st.floats(0.01, 3), sigma=st.floats(0.01, 90), sigma_data=st.floats(0.3, 2))
def test_a_perfect_network_is_decoded_into_sample_and_noise(
    prediction: Prediction, seed: int, alpha: float, sigma: float, sigma_data: float
) -> None:
    sample, noise = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x_t = alpha * sample + sigma * noise
    output = prediction_target(prediction, sample, noise, alpha, sigma, sigma_data)
    got = denoised_from_prediction(prediction, output, x_t, alpha, sigma, sigma_data)
    worst = 1e-13 * max(sigma / alpha, alpha / sigma, 1)  # the condition of x_t against either of its parts
    torch.testing.assert_close(got.sample, sample, rtol=0, atol=worst * 10)
    torch.testing.assert_close(got.noise, noise, rtol=0, atol=worst * 10)


@every_prediction
@given(seed=st.integers(0, 2**32))
def test_any_output_splits_the_input_consistently(prediction: Prediction, seed: int) -> None:
    x_t, output = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    alpha, sigma = torch.rand(2, 4, dtype=torch.float64) + 0.1
    got = denoised_from_prediction(prediction, output, x_t, alpha, sigma)
    again = alpha[:, None, None] * got.sample + sigma[:, None, None] * got.noise
    torch.testing.assert_close(again, x_t, rtol=1e-12, atol=1e-12)
    target = prediction_target(prediction, got.sample, got.noise, alpha, sigma)
    torch.testing.assert_close(target, output, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prediction", ["v_prediction", "flow", "edm"])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0)])
def test_v_flow_and_edm_are_regular_at_both_ends(prediction: Prediction, alpha: float, sigma: float) -> None:
    sample, noise = torch.randn(2, 3, 5, dtype=torch.float64)
    output = prediction_target(prediction, sample, noise, alpha, sigma)
    got = denoised_from_prediction(prediction, output, alpha * sample + sigma * noise, alpha, sigma)
    torch.testing.assert_close(got.sample, sample)
    torch.testing.assert_close(got.noise, noise)


@pytest.mark.parametrize("sigma", [0.0, torch.zeros(3)])
def test_a_predicted_sample_says_nothing_about_noise_where_there_is_none(sigma: float | torch.Tensor) -> None:
    x = torch.randn(3, 5)
    alpha = torch.ones(3) if isinstance(sigma, torch.Tensor) else 1.0
    guess = x + torch.randn(3, 5)
    assert denoised_from_prediction("sample", guess, x, alpha, sigma).noise.equal(torch.zeros(3, 5))
    assert denoised_from_prediction("sample", guess, x, alpha, sigma).sample.equal(guess)


def test_predictions_are_those_of_the_papers() -> None:
    sample, noise = torch.randn(2, 3, 5, dtype=torch.float64)
    alpha, sigma, data = 0.6, 0.8, 0.5
    torch.testing.assert_close(prediction_target("v_prediction", sample, noise, 0.6, 0.8), 0.6 * noise - 0.8 * sample)
    torch.testing.assert_close(prediction_target("flow", sample, noise, 0.6, 0.8), noise - sample)
    level, y = sigma / alpha, sample + sigma / alpha * noise
    c_skip, c_out = data**2 / (level**2 + data**2), level * data / (level**2 + data**2) ** 0.5
    torch.testing.assert_close(
        prediction_target("edm", sample, noise, alpha, sigma, data), (sample - c_skip * y) / c_out
    )


def amplification(source: Prediction, target: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """How much an error of the output and of x_t grows on the way: |D'| / |D| and |q p' - p q'| / |D|."""
    (p, q), (to_p, to_q) = (target_weights(one, alpha, sigma) for one in (source, target))
    d, to_d = alpha * q - sigma * p, alpha * to_q - sigma * to_p
    return abs(to_d / d), abs((q * to_p - p * to_q) / d)


@every_pair
@every_dtype
@settings(max_examples=8)  # of 60 combinations
@given(seed=lds.seeds(), schedule=lds.schedules(), share=st.floats(0, 1))
def test_predictions_there_and_back_lose_what_the_condition_number_says(
    source: Prediction, target: Prediction, dtype: torch.dtype, seed: int, schedule: NoiseSchedule, share: float
) -> None:
    """Error of the way there: u (|D'| |y| + |q p' - p q'| |x_t|) / |D|, and of the way back the like of it."""
    _, alpha, sigma = schedule.point(share * (schedule.num_timesteps - 1))
    if alpha < 1e-6:  # epsilon and pure noise have a test of their own
        return
    sample, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x_t = (alpha * sample + sigma * noise).to(dtype)
    y = prediction_target(source, sample, noise, alpha, sigma).to(dtype)
    there = convert_prediction(y, x_t, alpha, sigma, source=source, target=target)
    back = convert_prediction(there, x_t, alpha, sigma, source=target, target=source)
    assert there.dtype == back.dtype == dtype
    size = [one.double().abs() for one in (y, there, x_t)]
    gain, cross = amplification(source, target, alpha, sigma)
    gain_back, cross_back = amplification(target, source, alpha, sigma)
    there_error = gain * size[0] + cross * size[2]
    back_error = gain_back * (there_error + size[1]) + cross_back * size[2]
    exact = convert_prediction(y.double(), x_t.double(), alpha, sigma, source=source, target=target)
    # 8 stands for the few roundings of weights, products and sums
    assert ((there.double() - exact).abs() <= 8 * UNIT[dtype] * there_error + 1e-300).all()
    assert ((back.double() - y.double()).abs() <= 8 * UNIT[dtype] * back_error + 1e-300).all()


@every_pair
@given(log_snr=st.floats(-40, 40))
def test_v_flow_and_edm_are_converted_without_loss(source: Prediction, target: Prediction, log_snr: float) -> None:
    alpha, sigma = (1 / (1 + math.exp(-log_snr))) ** 0.5, (1 / (1 + math.exp(log_snr))) ** 0.5
    if source in REGULAR and target in REGULAR:
        assert max(amplification(source, target, alpha, sigma)) <= 2**0.5 + 1e-12
    if (source, target) == ("epsilon", "sample"):
        assert amplification(source, target, alpha, sigma)[0] == pytest.approx(math.exp(-log_snr / 2))


def test_the_noise_of_ddpm_becomes_a_sample_with_157_times_its_error() -> None:
    """The number of the docstring; and rounding does come near it, so that the bound above is no idle one."""
    _, alpha, sigma = NoiseSchedule.linear().point(999.0)
    assert amplification("epsilon", "sample", alpha, sigma)[0] == pytest.approx(157.4, abs=0.1)
    sample, noise = torch.randn(2, 1000, 3, dtype=torch.float64)
    x_t = alpha * sample + sigma * noise
    got = denoised_from_prediction("epsilon", noise.float(), x_t.float(), alpha, sigma).sample
    worst = (got.double() - sample).abs().max().item()
    assert 157 * UNIT[torch.float32] < worst < 8 * 157 * UNIT[torch.float32] * noise.abs().max().item()


@pytest.mark.parametrize("source", REGULAR)
@every_prediction
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0)])
def test_conversions_hold_at_both_ends(source: Prediction, prediction: Prediction, alpha: float, sigma: float) -> None:
    sample, noise = torch.randn(2, 3, 5, dtype=torch.float64)
    x_t, output = alpha * sample + sigma * noise, prediction_target(source, sample, noise, alpha, sigma)
    want = prediction_target(prediction, sample, noise, alpha, sigma)
    for scales in ((alpha, sigma), (torch.full((3,), alpha), torch.full((3,), sigma)), (alpha, torch.tensor(sigma))):
        got = convert_prediction(output, x_t, *scales, source=source, target=prediction)
        torch.testing.assert_close(got, want)


@every_prediction
def test_a_clean_sample_has_noise_of_expectation_0(prediction: Prediction) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    got = convert_prediction(x, x, 1.0, 0.0, source="sample", target=prediction)
    torch.testing.assert_close(got, prediction_target(prediction, x, torch.zeros_like(x), 1.0, 0.0))


@pytest.mark.parametrize("target", [one for one in PREDICTIONS if one != "epsilon"])
@pytest.mark.parametrize("alpha", [0.0, torch.zeros(3)])
def test_the_noise_says_nothing_where_there_is_no_sample(target: Prediction, alpha: float | torch.Tensor) -> None:
    x = torch.randn(3, 5)
    sigma = torch.ones(3) if isinstance(alpha, torch.Tensor) else 1.0
    assert not convert_prediction(x, x, alpha, sigma, source="epsilon", target=target).isfinite().any()
    assert convert_prediction(x, x, alpha, sigma, source="epsilon", target="epsilon") is x


@every_pair
@given(seed=lds.seeds())
def test_half_precision_is_converted_in_float32_and_rounded_once(
    source: Prediction, target: Prediction, seed: int
) -> None:
    output, x_t = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()
    alpha, sigma = NoiseSchedule.cosine().scales(torch.tensor([0, 10, 300, 900]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = convert_prediction(output, x_t, alpha, sigma, source=source, target=target)
    want = convert_prediction(output.float(), x_t.float(), alpha, sigma, source=source, target=target)
    assert got.equal(want.bfloat16())


@pytest.mark.parametrize("name", ["source", "target"])
def test_predictions_that_do_not_exist_are_refused(name: str) -> None:
    x, given = torch.randn(3, 5), {"source": "epsilon", "target": "sample", name: "x0"}
    with pytest.raises(ValueError, match=f"{name} must be one of 'epsilon', .* got 'x0'"):
        convert_prediction(x, x, 0.6, 0.8, **given)  # type: ignore[arg-type]


def test_edm_scales_the_input_and_its_time_but_not_the_condition() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, object]] = []

    def network(x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        seen.append((x, t, condition))
        return torch.zeros_like(x)

    schedule, condition = NoiseSchedule.edm(), object()
    level = schedule.sigma(500.0)
    Denoiser(network, schedule, "edm", sigma_data=0.5)(torch.ones(3, 2), 500.0, condition)
    x, t, passed = seen[0]
    torch.testing.assert_close(x, torch.full((3, 2), (level**2 + 0.25) ** -0.5))
    torch.testing.assert_close(t.double(), torch.tensor(level, dtype=torch.float64).log().expand(3) / 4)
    assert passed is condition


def test_one_time_for_all_equals_a_time_for_each() -> None:
    denoiser = Denoiser(lambda x, t, _: x * t[:, None] / 1000, NoiseSchedule.linear(), "v_prediction")
    x = torch.randn(3, 5, dtype=torch.float64)
    want = denoiser(x, 250.5)
    for t in (torch.tensor(250.5), torch.full((3,), 250.5)):
        got = denoiser(x, t)
        torch.testing.assert_close(got.sample, want.sample, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.noise, want.noise, rtol=1e-6, atol=1e-6)


def test_the_network_gets_its_own_dtype_and_the_caller_gets_theirs() -> None:
    layer = torch.nn.Linear(5, 5).bfloat16()

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
            assert x.dtype == torch.bfloat16
            out: torch.Tensor = self.layer(x)
            return out

    got = Denoiser(Network(), NoiseSchedule.linear())(torch.randn(3, 5), 10.0)
    assert got.sample.dtype == got.noise.dtype == torch.float32


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(), NoiseSchedule.linear().zero_terminal_snr()])
def test_epsilon_is_refused_where_the_schedule_ends_in_pure_noise(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match="prediction must not be 'epsilon'"):
        Denoiser(lambda x, t, c: x, schedule)


def test_a_network_that_answers_in_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"network must answer in the shape of its input \[3, 5\], got \[3, 4\]"):
        Denoiser(lambda x, t, c: x[:, :4], NoiseSchedule.linear())(torch.randn(3, 5), 1.0)


@pytest.mark.parametrize("t", [999.0, torch.full((3,), 999), torch.full((3,), 998.6, dtype=torch.float64)])
def test_a_half_precision_network_is_told_the_time_unrounded(t: float | torch.Tensor) -> None:
    """999 is 1000 in bfloat16: time is none of the network's dtype."""
    seen: list[torch.Tensor] = []

    class Network(torch.nn.Linear):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:  # type: ignore[override]
            seen.append(t)
            return x

    with torch.autocast("cpu", dtype=torch.bfloat16):
        Denoiser(Network(5, 5).bfloat16(), NoiseSchedule.linear())(torch.randn(3, 5), t)
    assert seen[0].tolist() == torch.as_tensor(t).expand(3).tolist()
