from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff import Denoiser, NoiseSchedule, denoised_from_prediction, prediction_target
from latentdiff._prediction import PREDICTIONS
from latentdiff._typing import Prediction

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
    assert denoised_from_prediction("sample", x, x, alpha, sigma).noise.equal(torch.zeros(3, 5))


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
    torch.testing.assert_close(t, torch.tensor(level).log().expand(3) / 4)
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
