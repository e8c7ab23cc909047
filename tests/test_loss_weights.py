from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from known import SCHEDULES, known
from latentdiff import Denoised, Denoiser, NoiseSchedule
from latentdiff._prediction import PREDICTIONS
from latentdiff._typing import Prediction
from latentdiff._variational import decoder_nll, reverse_step, step_kl
from latentdiff.losses import (
    KINDS,
    WEIGHTINGS,
    DiffusionLoss,
    EdmWeight,
    Kind,
    MinSnrWeight,
    NoiseScales,
    P2Weight,
    SigmoidWeight,
    SnrWeight,
    VlbWeight,
    Weighting,
    WeightingName,
)
from networks import normal

SCHEDULE = SCHEDULES["scaled_linear"]
TIMES = torch.tensor([1, 5, 40, 70, 99])
OWN_WEIGHTS = [name for name in WEIGHTINGS if name != "uniform"]
"""Those that do not depend on what is predicted."""

every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def noise_scales(schedule: NoiseSchedule = SCHEDULE, t: Tensor = TIMES, sigma_data: float = 1.0) -> NoiseScales:
    return NoiseScales.at(schedule, t, sigma_data=sigma_data)


# One weight for every prediction


@every_schedule
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", OWN_WEIGHTS)
def test_the_same_loss_comes_out_of_every_prediction(
    weighting: WeightingName, kind: Kind, schedule: NoiseSchedule
) -> None:
    """Each of five networks misses the sample by the same; so does an oracle, whose noise is looked at."""
    sample, noise = normal((5, 2, 3)), normal((5, 2, 3), 1)
    t = torch.tensor([0.0, 0.4, 0.5, 0.7, 0.95]) * (schedule.num_timesteps - 1)
    loss = DiffusionLoss(weighting=weighting, kind=kind)
    losses = []
    for prediction in PREDICTIONS:
        denoiser = known(prediction, sample, schedule, offset=0.1)
        if weighting == "edm" and not isinstance(denoiser, Denoiser):
            continue  # an oracle knows no sigma_data
        losses.append(loss(denoiser, sample, t=t, noise=noise).per_sample)
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=0)


@every_schedule
@pytest.mark.parametrize("weighting", OWN_WEIGHTS)
def test_the_loss_is_the_weight_times_the_squared_error_of_the_sample(
    weighting: WeightingName, schedule: NoiseSchedule
) -> None:
    sample, t = normal((4, 2, 3)), torch.tensor([0.0, 0.3, 0.6, 0.9]) * (schedule.num_timesteps - 1)
    got = DiffusionLoss(weighting=weighting)(known("v_prediction", sample, schedule, 0.1), sample, t=t).per_sample
    want = 0.01 * WEIGHTINGS[weighting]().weight(noise_scales(schedule, t, sigma_data=0.7))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@every_prediction
def test_uniform_is_one_for_the_target_of_the_network(prediction: Prediction) -> None:
    sample, answer = normal((5, 2, 3)), normal((5, 2, 3), 1)
    denoiser = Denoiser(lambda x, t, c: answer, SCHEDULE, prediction, sigma_data=0.7)
    truth = normal((5, 2, 3), 2)
    alpha, sigma = (scale.view(-1, 1, 1) for scale in SCHEDULE.scales(TIMES))
    level = sigma / alpha
    target = {
        "epsilon": truth,
        "sample": sample,
        "v_prediction": alpha * truth - sigma * sample,
        "flow": truth - sample,
        # (D - c_skip x) / c_out with D the sample and x = x_t / alpha (Karras et al. 2022, table 1)
        "edm": (sample - 0.49 / (level**2 + 0.49) * (sample + level * truth))
        / (0.7 * level / (level**2 + 0.49) ** 0.5),
    }[prediction]
    got = DiffusionLoss()(denoiser, sample, t=TIMES, noise=truth).per_sample
    torch.testing.assert_close(got, (answer - target).square().flatten(1).mean(1), rtol=1e-9, atol=0)


# Each weight is that of its paper


def weight_of_noise(weighting: Weighting, scales: NoiseScales) -> Tensor:
    """Of the noise's squared error, which is SNR times that of the sample."""
    return weighting.weight(scales) / SCHEDULE.log_snr(scales.t).exp()


def weight_of_v(weighting: Weighting, scales: NoiseScales) -> Tensor:
    """Of v's squared error, which is SNR + 1 times that of the sample."""
    return weighting.weight(scales) / (SCHEDULE.log_snr(scales.t).exp() + 1)


def test_min_snr_has_the_weights_of_its_paper() -> None:
    bar = SCHEDULE.alphas_cumprod[TIMES]
    ratio = bar / (1 - bar)
    bounded = ratio.clamp(max=3)
    weighting = MinSnrWeight(gamma=3)
    torch.testing.assert_close(weighting.weight(noise_scales()), bounded)
    torch.testing.assert_close(weight_of_noise(weighting, noise_scales()), bounded / ratio)
    torch.testing.assert_close(weight_of_v(weighting, noise_scales()), bounded / (ratio + 1))


def test_p2_has_the_weights_of_its_paper() -> None:
    bar = SCHEDULE.alphas_cumprod[TIMES]
    ratio = bar / (1 - bar)
    torch.testing.assert_close(weight_of_noise(P2Weight(), noise_scales()), 1 / (1 + ratio))
    torch.testing.assert_close(weight_of_noise(P2Weight(k=2, gamma=0.5), noise_scales()), (2 + ratio) ** -0.5)
    torch.testing.assert_close(P2Weight(gamma=0).weight(noise_scales()), SnrWeight().weight(noise_scales()))


@every_schedule
def test_edm_has_the_weights_of_its_paper(schedule: NoiseSchedule) -> None:
    t = torch.tensor([0, 3, 11, 18])
    level = schedule.sigma(t) / schedule.alpha(t)
    want = (level**2 + 0.25) / (level * 0.5) ** 2
    torch.testing.assert_close(EdmWeight().weight(noise_scales(schedule, t, sigma_data=0.5)), want)


def test_edm_weighs_all_of_its_own_targets_alike() -> None:
    """A network that answers 0 for normal data of size sigma_data has loss 1 at each time: F has unit variance."""
    sample = 0.7 * normal((5 * 4000, 3))
    denoiser = Denoiser(lambda x, t, c: torch.zeros_like(x), SCHEDULE, "edm", sigma_data=0.7)
    for weighting in (EdmWeight(), "uniform"):
        loss = DiffusionLoss(weighting=weighting)(denoiser, sample, t=TIMES.repeat(4000), noise=normal(sample.shape, 1))
        got = loss.per_sample.reshape(4000, 5).mean(0)
        torch.testing.assert_close(got, torch.ones(5).double(), rtol=4.5 * (2 / 12000) ** 0.5, atol=0)


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.5])
def test_sigmoid_has_the_weights_of_its_papers(bias: float) -> None:
    log_snr = SCHEDULE.log_snr(TIMES)
    want = 1 / (1 + torch.exp(log_snr - bias))
    torch.testing.assert_close(weight_of_noise(SigmoidWeight(bias=bias), noise_scales()), want)
    of_sample = math.exp(bias) / (1 + torch.exp(bias - log_snr))
    torch.testing.assert_close(SigmoidWeight(bias=bias).weight(noise_scales()), of_sample)


def test_vlb_is_half_the_loss_of_signal_to_noise_in_a_step() -> None:
    bar = SCHEDULE.alphas_cumprod
    ratio = bar / (1 - bar)
    want = 100 / 2 * (ratio[TIMES - 1] - ratio[TIMES])
    torch.testing.assert_close(VlbWeight().weight(noise_scales()), want, rtol=1e-9, atol=0)


@every_schedule
@every_prediction
def test_vlb_is_the_divergence_of_a_step_of_small_variance(prediction: Prediction, schedule: NoiseSchedule) -> None:
    if prediction == "epsilon" and schedule.frame == "flow":
        pytest.skip("a denoiser refuses epsilon where alpha ends at 0")
    sample, noise, t = normal((4, 2, 3)), normal((4, 2, 3), 1), torch.tensor([1, 4, 11, 19])
    answer = normal(sample.shape, 2)
    denoiser = Denoiser(lambda x, t, c: answer, schedule, prediction, "fixed_small")
    x_t = schedule.add_noise(sample, noise, t)
    divergence = step_kl(schedule, sample, denoiser(x_t, t), x_t, t).flatten(1).mean(1)
    got = DiffusionLoss(weighting="vlb")(denoiser, sample, t=t, noise=noise).per_sample
    torch.testing.assert_close(got, schedule.num_timesteps * divergence, rtol=1e-6, atol=0)


def test_vlb_of_the_last_step_is_that_of_the_decoder() -> None:
    """The negative log-likelihood of the sample, less what it would be with the best estimate."""
    sample, noise, t = normal((4, 2, 3)), normal((4, 2, 3), 1), torch.zeros(4)
    x_t = SCHEDULE.add_noise(sample, noise, t)
    missing, exact = (known("epsilon", sample, SCHEDULE, offset) for offset in (0.1, 0.0))
    nats = [decoder_nll(reverse_step(SCHEDULE, one(x_t, t), x_t, t), sample, None) for one in (missing, exact)]
    got = DiffusionLoss(weighting="vlb")(missing, sample, t=t, noise=noise).per_sample
    torch.testing.assert_close(got, 100 * (nats[0] - nats[1]).flatten(1).mean(1), rtol=1e-9, atol=0)


# The ends


@every_schedule
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@every_prediction
def test_weights_are_finite_at_both_ends(
    prediction: Prediction, weighting: WeightingName, schedule: NoiseSchedule
) -> None:
    sample = normal((2, 2, 3), dtype=torch.float32)
    t = torch.tensor([-1.0, schedule.num_timesteps - 1.0])
    got = DiffusionLoss(weighting=weighting)(known(prediction, sample, schedule, 0.1), sample, t=t)
    assert got.per_sample.isfinite().all()
    assert (got.per_sample >= 0).all()


@pytest.mark.parametrize("weighting", OWN_WEIGHTS)
def test_pure_noise_has_the_limit_of_the_weights_before_it(weighting: WeightingName) -> None:
    schedule = NoiseSchedule.flow(20)
    end, near = (WEIGHTINGS[weighting]().weight(noise_scales(schedule, torch.tensor([19 - s]))) for s in (0, 1e-9))
    torch.testing.assert_close(end, near, rtol=1e-6, atol=1e-15)


class Off:
    """A denoiser that answers with the noise it was given, and nothing for the sample."""

    def __init__(self, schedule: NoiseSchedule, noise: Tensor) -> None:
        self.schedule, self.noise = schedule, noise

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        return Denoised(torch.zeros_like(x_t), self.noise)


def test_the_error_of_the_noise_weighs_one_in_pure_noise_too() -> None:
    schedule = NoiseSchedule.flow(20)
    sample, noise = normal((1, 2, 3)), normal((1, 2, 3), 1)
    for weighting in ("uniform", "snr", "min_snr", "p2"):  # min(SNR, 5) / SNR and 1 / (1 + SNR) are 1 there
        wrong = Off(schedule, noise + 0.1)
        got = DiffusionLoss(weighting=weighting)(wrong, sample, t=19, noise=noise).loss
        assert got.item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MinSnrWeight(gamma=0), "gamma must be positive, got 0"),
        (lambda: P2Weight(k=-1), "k must be positive, got -1"),
        (lambda: P2Weight(gamma=-0.5), "gamma must be at least 0 and finite, got -0.5"),
        (lambda: SigmoidWeight(bias=math.nan), "bias must be finite, got nan"),
    ],
)
def test_bad_weights_are_refused(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()  # type: ignore[operator]
