from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentdiff import CounterNoise, Denoiser, NoiseSchedule, prediction_target
from latentdiff._prediction import PREDICTIONS
from latentdiff._typing import Generator, Prediction
from latentdiff.losses import KINDS, WEIGHTINGS, DiffusionLoss, Kind, Weighting

every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)
SCHEDULE = NoiseSchedule.scaled_linear()


def known(prediction: Prediction, sample: Tensor, offset: float = 0.0, schedule: NoiseSchedule = SCHEDULE) -> Denoiser:
    """A denoiser that knows the one sample there is, and misses it by an offset."""

    def network(x: Tensor, t: Tensor, condition: object) -> Tensor:
        alpha, sigma = (s.view(-1, 1, 1).to(x.dtype) for s in schedule.scales(times[0]))
        x = x * (sigma**2 + alpha**2) ** 0.5 if prediction == "edm" else x
        guess = sample + offset
        return prediction_target(prediction, guess, (x - alpha * guess) / sigma, alpha.flatten(), sigma.flatten())

    times: list[Tensor] = []

    class Watching(Denoiser):
        def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> object:  # type: ignore[override]
            times[:] = [torch.as_tensor(t)]
            return super().__call__(x_t, t, condition)

    return Watching(network, schedule, prediction)


@pytest.mark.parametrize("kind", KINDS)
@every_weighting
@every_prediction
@given(seed=st.integers(0, 2**32))
def test_a_denoiser_that_knows_the_sample_has_no_loss(
    prediction: Prediction, weighting: Weighting, kind: Kind, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(5, 2, 3, dtype=torch.float64, generator=generator)
    got = DiffusionLoss(weighting=weighting, kind=kind)(known(prediction, sample), sample, generator=generator)
    assert got.loss.item() == pytest.approx(0, abs=1e-9)
    assert got.per_sample.shape == got.t.shape == (5,)


@pytest.mark.parametrize("weighting", ["snr", "min_snr"])
@every_prediction
def test_weights_are_the_same_for_every_prediction(
    prediction: Prediction, weighting: Literal["snr", "min_snr"]
) -> None:
    """An error of c in the sample costs SNR c^2, or min(SNR, 5) c^2, whatever the network predicts."""
    sample, t = torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([0, 100, 400, 700, 999])
    got = DiffusionLoss(weighting=weighting)(known(prediction, sample, 0.1), sample, t=t)
    snr = SCHEDULE.log_snr(t).exp()
    want = 0.01 * (snr if weighting == "snr" else snr.clamp(max=5))
    torch.testing.assert_close(got.per_sample, want, rtol=1e-6, atol=0)


@every_prediction
def test_min_snr_has_the_weights_of_its_paper(prediction: Prediction) -> None:
    sample, t = torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([0, 100, 400, 700, 999])
    denoiser = known(prediction, sample, 0.1)
    snr = SCHEDULE.log_snr(t).exp()
    bounded = snr.clamp(max=5)
    paper = {"epsilon": bounded / snr, "sample": bounded, "v_prediction": bounded / (snr + 1)}
    if prediction in paper:
        weighted, plain = (DiffusionLoss(weighting=w)(denoiser, sample, t=t).per_sample for w in ("min_snr", "uniform"))
        torch.testing.assert_close(weighted / plain, paper[prediction], rtol=1e-6, atol=0)


def test_a_network_that_answers_zero_to_normal_noise_has_loss_one() -> None:
    sample = torch.zeros(4000, 3, 2)
    denoiser = Denoiser(lambda x, t, c: torch.zeros_like(x), SCHEDULE)
    loss = DiffusionLoss()(denoiser, sample, generator=torch.Generator().manual_seed(0)).loss
    assert loss.item() == pytest.approx(1, abs=4 * 2**0.5 / 24000**0.5)


@pytest.mark.parametrize("generator", [torch.Generator().manual_seed(3), CounterNoise(3), None])
def test_times_are_spread_evenly(generator: Generator) -> None:
    denoiser = Denoiser(lambda x, t, c: x, SCHEDULE)
    t = DiffusionLoss()(denoiser, torch.zeros(5000, 1), generator=generator).t
    assert torch.equal(t, t.round())
    assert (t >= 0).all()
    assert (t <= 999).all()
    counts = torch.histc(t, 10, 0, 1000)
    assert ((counts - 500).abs() < 4.5 * 450**0.5).all()


def test_flow_times_lie_between_the_whole_ones_too() -> None:
    denoiser = Denoiser(lambda x, t, c: x, NoiseSchedule.flow(10), "flow")
    t = DiffusionLoss()(denoiser, torch.zeros(2000, 1), generator=torch.Generator().manual_seed(0)).t
    assert (t > -1).all()
    assert (t <= 9).all()
    assert t.unique().numel() == 2000


def test_half_precision_samples_have_a_float32_loss() -> None:
    denoiser = Denoiser(lambda x, t, c: x, SCHEDULE)
    assert DiffusionLoss()(denoiser, torch.randn(3, 2, 4).bfloat16()).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"weighting": "best"}, "weighting must be one of 'uniform'"),
        ({"kind": "l3"}, "kind must be one of 'mse'"),
        ({"gamma": 0.0}, "gamma must be positive"),
    ],
)
def test_bad_losses_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DiffusionLoss(**arguments)  # type: ignore[arg-type]
