from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from known import SCHEDULES, Watched, known
from latentdiff import CounterNoise, Denoised, Denoiser, NoiseSchedule
from latentdiff._prediction import PREDICTIONS
from latentdiff._typing import Prediction
from latentdiff.losses import KINDS, TIMES, WEIGHTINGS, DiffusionLoss, Kind, TimesName, Uncertainty, WeightingName
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser
from networks import normal

SCHEDULE = SCHEDULES["scaled_linear"]
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)
every_kind = pytest.mark.parametrize("kind", KINDS)


# The least loss there is


@every_prediction
@settings(max_examples=60)
@given(
    weighting=st.sampled_from(list(WEIGHTINGS)),
    kind=st.sampled_from(KINDS),
    times=st.sampled_from(list(TIMES)),
    schedule=st.sampled_from(list(SCHEDULES.values())),
    stratified=st.booleans(),
    offset_noise=st.sampled_from([0.0, 0.1, 1.0]),
    shape=st.sampled_from([(5, 2), (5, 2, 3), (3, 1, 2, 4), (2, 3, 4, 1, 5)]),
    seed=st.integers(0, 2**32),
)
def test_a_denoiser_that_knows_the_sample_has_no_loss(
    prediction: Prediction,
    weighting: WeightingName,
    kind: Kind,
    times: TimesName,
    schedule: NoiseSchedule,
    stratified: bool,
    offset_noise: float,
    shape: tuple[int, ...],
    seed: int,
) -> None:
    loss = DiffusionLoss(
        weighting=weighting, kind=kind, times=times, stratified=stratified, offset_noise=offset_noise,
        uncertainty=Uncertainty(),
    )  # fmt: skip
    sample = normal(shape, seed)
    got = loss(known(prediction, sample, schedule), sample, generator=torch.Generator().manual_seed(seed))
    # rounding of 1e-16 times the root of the greatest weight: 1 / sigma^2 next to the clean end of flow
    assert got.loss.item() == pytest.approx(0, abs=1e-7)
    assert got.per_sample.shape == got.t.shape == got.importance.shape == shape[:1]


def root_of_weighted_variance(weighting: WeightingName, t: Tensor, std: float) -> Tensor:
    """Of an exact denoiser of N(., std^2): sqrt(w Var[x_0 | x_t]), by formulas of the papers, for a VP schedule."""
    ratio = SCHEDULE.log_snr(t).exp()
    before = SCHEDULE.log_snr(t - 1).exp()
    of_noise = {
        "uniform": torch.ones_like(ratio),
        "snr": torch.ones_like(ratio),
        "min_snr": ratio.clamp(max=5) / ratio,
        "p2": 1 / (1 + ratio),
        "edm": 1 + 1 / ratio,
        "sigmoid": 1 / (1 + ratio * math.e),
        "vlb": SCHEDULE.num_timesteps / 2 * (before - ratio) / ratio,
    }
    return (of_noise[weighting] * ratio * std**2 / (ratio * std**2 + 1)).sqrt()


def expected(kind: Kind, root: Tensor) -> Tensor:
    """The mean of the penalty of N(0, root^2)."""
    if kind == "mse":
        return root.square()
    if kind == "l1":
        return root * (2 / math.pi) ** 0.5
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2) / (2 * math.pi) ** 0.5 * (z[1] - z[0])
    error = root[:, None] * z
    return ((2 * ((error**2 + 1).sqrt() - 1)) * density).sum(1)


@every_kind
@every_weighting
def test_the_exact_denoiser_of_normal_data_reaches_the_least_loss(weighting: WeightingName, kind: Kind) -> None:
    t = torch.tensor([1, 10, 40, 70, 99])
    oracle = GaussianDenoiser(schedule=SCHEDULE, mean=0.3, std=0.5)
    generator = torch.Generator().manual_seed(0)
    sample = oracle.draw((5 * 1500, 2, 3), generator)
    loss = DiffusionLoss(weighting=weighting, kind=kind)
    got = loss(oracle, sample, t=t.repeat(1500), generator=generator).per_sample.reshape(1500, 5).mean(0)
    want = expected(kind, root_of_weighted_variance(weighting, t, 0.5))
    # 9,000 independent errors, whose penalty varies by sqrt(2) of its mean at most: 4.5 standard errors
    torch.testing.assert_close(got, want, rtol=4.5 * (2 / 9000) ** 0.5, atol=0)


class Off:
    """A denoiser whose estimate of the sample is off."""

    def __init__(self, oracle: GaussianDenoiser | MixtureDenoiser, factor: float, offset: float) -> None:
        self.oracle, self.schedule = oracle, oracle.schedule
        self.factor, self.offset = factor, offset

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        alpha, sigma = (scale.view(-1, 1) for scale in self.schedule.scales(torch.as_tensor(t)))
        sample = self.factor * self.oracle(x_t, t).sample + self.offset
        return Denoised(sample, (x_t - alpha * sample) / sigma)


@pytest.mark.parametrize(("factor", "offset"), [(1.2, 0.0), (0.8, 0.0), (1.0, 0.1), (1.0, -0.1)])
@every_weighting
def test_every_other_estimate_is_worse(weighting: WeightingName, factor: float, offset: float) -> None:
    oracle = MixtureDenoiser(
        schedule=SCHEDULE,
        weights=torch.tensor([0.5, 0.3, 0.2]),
        means=torch.tensor([-1.0, 0.5, 1.0]),
        stds=torch.tensor([0.2, 0.3, 0.1]),
    )
    generator = torch.Generator().manual_seed(0)
    sample, t = oracle.draw((20000, 1), generator), torch.full((20000,), 60)
    noise = torch.randn(20000, 1, generator=generator, dtype=torch.float64)
    loss = DiffusionLoss(weighting=weighting)
    best, worse = (loss(one, sample, t=t, noise=noise).per_sample for one in (oracle, Off(oracle, factor, offset)))
    difference = worse - best
    assert difference.mean() > 4.5 * difference.std() / 20000**0.5


def test_a_network_that_answers_zero_to_normal_noise_has_loss_one() -> None:
    sample = torch.zeros(4000, 3, 2)
    denoiser = Denoiser(lambda x, t, c: torch.zeros_like(x), SCHEDULE)
    loss = DiffusionLoss()(denoiser, sample, generator=torch.Generator().manual_seed(0)).loss
    assert loss.item() == pytest.approx(1, abs=4 * 2**0.5 / 24000**0.5)


# Kinds


def penalty(kind: Kind, error: float, delta: float = 1.0, dtype: torch.dtype = torch.float64) -> float:
    sample = torch.zeros(1, 2, 3, dtype=dtype)
    denoiser = Denoiser(lambda x, t, c: torch.full_like(x, error), SCHEDULE, "sample")
    return DiffusionLoss(kind=kind, delta=delta)(denoiser, sample, t=50).loss.item()


@pytest.mark.parametrize("error", [1e-4, 0.3, -0.3, 20.0])
def test_pseudo_huber_lies_between_squares_and_absolute_values(error: float) -> None:
    assert penalty("mse", error) == pytest.approx(error**2)
    assert penalty("l1", error) == pytest.approx(abs(error))
    assert penalty("huber", error, delta=1e6) == pytest.approx(error**2, rel=1e-8)  # next order: (e / 2 delta)^2
    assert penalty("huber", error, delta=1e-9) == pytest.approx(2e-9 * abs(error), rel=1e-4)
    assert penalty("huber", error, delta=0.5) == pytest.approx((error**2 + 0.25) ** 0.5 - 0.5, rel=1e-7)


def test_pseudo_huber_keeps_small_errors_in_single_precision() -> None:
    assert penalty("huber", 1e-5, dtype=torch.float32) == pytest.approx(1e-10, rel=1e-5)


# Arguments


@every_prediction
@every_weighting
def test_one_time_for_all_is_a_time_for_each(prediction: Prediction, weighting: WeightingName) -> None:
    sample = normal((4, 2, 3))
    denoiser = Denoiser(lambda x, t, c: x * t.view(-1, 1, 1) / 99, SCHEDULE, prediction)
    loss = DiffusionLoss(weighting=weighting)
    each = loss(denoiser, sample, t=torch.full((4,), 37), generator=CounterNoise(1))
    for t in (torch.tensor(37), torch.tensor(37.0), 37, 37.0):
        got = loss(denoiser, sample, t=t, generator=CounterNoise(1))
        torch.testing.assert_close(got.per_sample, each.per_sample, rtol=1e-14, atol=0)
        assert got.t.shape == (4,)


def test_the_loss_is_the_mean_of_its_samples() -> None:
    denoiser = Denoiser(lambda x, t, c: x, SCHEDULE)
    got = DiffusionLoss()(denoiser, normal((4, 2, 3)))
    assert got.loss.item() == pytest.approx(got.per_sample.mean().item())
    assert torch.equal(got.importance, torch.ones(4, dtype=torch.float64))


def test_a_mask_chooses_where_errors_count() -> None:
    sample, loss, mask = normal((4, 2, 3, 5)), DiffusionLoss(), torch.zeros(4, 1, 3, 5, dtype=torch.bool)
    mask[1:, :, 1] = True
    answer = normal(sample.shape, 1)
    denoiser, changed = (
        Denoiser(lambda x, t, c, y=y: y, SCHEDULE, "sample") for y in (answer, torch.where(mask, answer, 100.0))
    )
    masked, plain = (loss(denoiser, sample, t=3, mask=m).per_sample for m in (mask, None))
    assert torch.equal(masked, loss(changed, sample, t=3, mask=mask).per_sample)
    torch.testing.assert_close(masked[1:], (answer - sample)[1:, :, 1].square().flatten(1).mean(1))
    assert masked[0] == 0
    torch.testing.assert_close(loss(denoiser, sample, t=3, mask=torch.ones(1, 1, 1, 1)).per_sample, plain)


def test_the_same_noise_comes_with_the_same_generator_whatever_the_batch() -> None:
    sample = normal((4, 2, 3))
    denoiser = Denoiser(lambda x, t, c: x, SCHEDULE)
    loss = DiffusionLoss(offset_noise=0.3, times="logit_normal")
    whole = loss(denoiser, sample, generator=CounterNoise(5)).per_sample
    parts = [loss(denoiser, sample[i : i + 2], generator=CounterNoise(5, i)).per_sample for i in (0, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=0)


def test_offset_noise_is_shared_by_the_values_of_a_channel() -> None:
    """Of the mean over n values it makes the variance s^2 + 1 / n, and between channels no covariance."""
    watched = Watched(GaussianDenoiser(schedule=NoiseSchedule.edm()))
    sample, loss = torch.zeros(4000, 2, 5, dtype=torch.float64), DiffusionLoss(offset_noise=0.5)
    loss(watched, sample, t=999, generator=torch.Generator().manual_seed(0))
    covariance = torch.cov((watched.x_t / 80).mean(2).T)
    torch.testing.assert_close(covariance, 0.45 * torch.eye(2).double(), rtol=0, atol=4.5 * 0.45 * (2 / 4000) ** 0.5)


def test_given_noise_is_taken_as_it_is() -> None:
    watched, noise = Watched(GaussianDenoiser(schedule=NoiseSchedule.edm())), normal((4, 2, 3))
    DiffusionLoss(offset_noise=0.5)(watched, torch.zeros_like(noise), t=999, noise=noise)
    torch.testing.assert_close(watched.x_t, 80 * noise)


# Precision


class Rounding(nn.Module):
    """A network that answers with its input, by a matrix product, which autocast rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(5))

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "edm"])
@every_weighting
def test_autocast_rounds_nothing_but_the_network(weighting: WeightingName, prediction: Prediction) -> None:
    sample, t = normal((4, 2, 5), dtype=torch.float32), torch.tensor([0, 1, 50, 99])
    rounded = Denoiser(lambda x, t, c: x.bfloat16().float(), SCHEDULE, prediction)
    uncertainty = Uncertainty()
    nn.init.normal_(uncertainty.weight)
    loss = DiffusionLoss(weighting=weighting, kind="huber", offset_noise=0.1, uncertainty=uncertainty)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(Denoiser(Rounding(), SCHEDULE, prediction), sample, t=t, generator=CounterNoise(0))
    want = loss(rounded, sample, t=t, generator=CounterNoise(0))
    assert got.loss.dtype == got.per_sample.dtype == torch.float32
    torch.testing.assert_close(got.per_sample, want.per_sample, rtol=1e-6, atol=0)  # single precision


def test_half_precision_samples_have_a_float32_loss() -> None:
    denoiser = Denoiser(lambda x, t, c: x, SCHEDULE)
    assert DiffusionLoss()(denoiser, torch.randn(3, 2, 4).bfloat16()).loss.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("times", TIMES)
def test_losses_compile_to_one_graph(times: TimesName) -> None:
    denoiser = Denoiser(lambda x, t, c: x, SCHEDULE, "v_prediction")
    loss = DiffusionLoss(weighting="vlb", kind="huber", times=times, stratified=True, offset_noise=0.1)
    compiled = torch.compile(lambda x: loss(denoiser, x).loss, backend="eager", fullgraph=True)
    sample = normal((4, 2, 3))
    torch.manual_seed(3)
    got = compiled(sample)
    torch.manual_seed(3)
    torch.testing.assert_close(got, loss(denoiser, sample).loss)


# Uncertainty


def test_uncertainty_begins_by_changing_nothing() -> None:
    denoiser, sample = Denoiser(lambda x, t, c: x, SCHEDULE), normal((4, 2, 3))
    plain, learned = (
        DiffusionLoss(uncertainty=u)(denoiser, sample, generator=CounterNoise(0)) for u in (None, Uncertainty())
    )
    assert torch.equal(plain.per_sample, learned.per_sample)


@every_weighting
def test_uncertainty_is_least_at_the_log_of_the_expected_loss(weighting: WeightingName) -> None:
    """There the loss is 1 + log E[L], its gradient zero and its second derivative one."""
    uncertainty = Uncertainty().double()
    denoiser, sample = Denoiser(lambda x, t, c: 0.9 * x, SCHEDULE, "v_prediction"), normal((400, 2, 3))
    plain = DiffusionLoss(weighting=weighting)
    learned = replace(plain, uncertainty=uncertainty)
    expected_loss = plain(denoiser, sample, t=50, generator=CounterNoise(0)).loss
    nn.init.constant_(uncertainty.bias, expected_loss.log().item())
    loss = learned(denoiser, sample, t=50, generator=CounterNoise(0)).loss
    (gradient,) = torch.autograd.grad(loss, uncertainty.bias)
    assert loss.item() == pytest.approx(1 + expected_loss.log().item(), rel=1e-5)  # u is float32
    assert gradient.item() == pytest.approx(0, abs=1e-5)


def test_uncertainty_can_learn_a_function_of_the_noise_level() -> None:
    torch.manual_seed(0)
    uncertainty = Uncertainty()
    log_snr = torch.linspace(-8, 8, 40, dtype=torch.float64)
    loss = torch.exp(log_snr / 2)  # log E[L] runs from -4 to 4
    optimiser = torch.optim.Adam(uncertainty.parameters(), lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        u = uncertainty(log_snr)
        (loss * torch.exp(-u) + u).mean().backward()
        optimiser.step()
    assert (uncertainty(log_snr) - log_snr / 2).abs().mean() < 0.2


def test_uncertainty_is_finite_at_both_ends() -> None:
    uncertainty = Uncertainty(dim=7)
    nn.init.normal_(uncertainty.weight)
    assert uncertainty(torch.tensor([-math.inf, 0.0, math.inf], dtype=torch.float64)).isfinite().all()
    assert uncertainty.config == {"dim": 7}


# What is refused


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"weighting": "best"}, "weighting must be one of 'uniform', 'snr'"),
        ({"times": "often"}, "times must be one of 'uniform', 'log_snr'"),
        ({"kind": "l3"}, "kind must be one of 'mse'"),
        ({"delta": 0.0}, "delta must be positive, got 0.0"),
        ({"offset_noise": -0.1}, "offset_noise must be at least 0 and finite, got -0.1"),
        ({"vlb_weight": math.inf}, "vlb_weight must be at least 0 and finite, got inf"),
        ({"levels": 1}, "levels must be at least 2, got 1"),
    ],
)
def test_bad_losses_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DiffusionLoss(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"t": torch.zeros(3)}, r"t must have shape \[\] or \[4\].*got \[3\]"),
        ({"t": torch.zeros(4, 1)}, r"t must have shape \[\] or \[4\].*got \[4, 1\]"),
        ({"t": 100}, r"t must be in \[-1, 99\]"),
        ({"noise": torch.zeros(4, 2, 1)}, r"noise must have sample's shape \[4, 2, 3\], got \[4, 2, 1\]"),
        ({"mask": torch.ones(4, 3)}, r"mask must have sample's rank and broadcast against \[4, 2, 3\], got \[4, 3\]"),
        ({"mask": torch.ones(4, 3, 3)}, r"mask must have sample's rank .* got \[4, 3, 3\]"),
        (
            {"mask": torch.tensor([1.0, -0.5, 1.0]).expand(1, 1, 3)},
            r"mask must be in \[0, inf\], got values in \[-0.5, 1",
        ),
        ({"mask": torch.full((4, 1, 1), math.nan)}, "mask must be finite, got NaN"),
        ({"sample": torch.full((4, 2, 3), math.nan)}, "sample must be finite, got NaN"),
        ({"sample": torch.full((4, 2, 3), math.inf)}, r"sample must be finite, got values in \[inf, inf\]"),
        ({"sample": torch.zeros(4)}, "sample must have at least 2 axes"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], match: str) -> None:
    denoiser = Denoiser(lambda x, t, c: x, SCHEDULE)
    with pytest.raises(ValueError, match=match):
        DiffusionLoss()(denoiser, **{"sample": torch.zeros(4, 2, 3), **arguments})  # type: ignore[arg-type]


def test_integers_are_no_samples() -> None:
    with pytest.raises(TypeError, match=r"sample must be floating, got torch.int64"):
        DiffusionLoss()(Denoiser(lambda x, t, c: x, SCHEDULE), torch.zeros(4, 2, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"uncertainty": 1.0}, "uncertainty must be callable, got float"),
        ({"levels": 256.0}, "levels must be an int, got 256.0"),
        ({"levels": True}, "levels must be an int, got True"),
        ({"delta": None}, "delta must be a number, got None"),
    ],
)
def test_parts_of_another_type_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        DiffusionLoss(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("denoiser", [nn.Linear(3, 3), lambda x, t, c: x, SCHEDULE, None])
def test_a_bare_network_is_no_denoiser(denoiser: object) -> None:
    message = rf"denoiser must be a denoiser such as ld.Denoiser\(network, schedule\), got {type(denoiser).__name__}"
    with pytest.raises(TypeError, match=message):
        DiffusionLoss()(denoiser, torch.zeros(4, 2, 3))  # type: ignore[arg-type]


def test_a_mask_is_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"mask must be a torch.Tensor, got list"):
        DiffusionLoss()(Denoiser(lambda x, t, c: x, SCHEDULE), torch.zeros(4, 2, 3), mask=[1])  # type: ignore[arg-type]


def test_a_mask_of_bools_is_one() -> None:
    mask = torch.tensor([True, False, True]).expand(4, 1, 3)
    loss = DiffusionLoss()(Denoiser(lambda x, t, c: x, SCHEDULE), torch.zeros(4, 2, 3), mask=mask)
    assert loss.loss.isfinite()


def test_uncertainty_needs_features() -> None:
    with pytest.raises(ValueError, match="dim must be positive, got 0"):
        Uncertainty(dim=0)
