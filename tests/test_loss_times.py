from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from known import SCHEDULES
from latentdiff import CounterNoise, Denoiser, NoiseSchedule
from latentdiff._typing import Generator
from latentdiff.losses import (
    TIMES,
    DiffusionLoss,
    DiffusionLossOutput,
    ImportanceTimes,
    LogitNormalTimes,
    LogNormalTimes,
    LogSnrTimes,
    LossAwareTimes,
    NoiseScales,
    SigmoidWeight,
    TimesName,
    UniformTimes,
)
from latentdiff.losses._times import part_of

SCHEDULE = NoiseSchedule.scaled_linear()
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def grid(count: int) -> Tensor:
    """Even quantiles, each in the middle of its part: sums over them are exact for what is constant on parts."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def drawn(loss: DiffusionLoss, schedule: NoiseSchedule, batch: int, generator: Generator = None) -> Tensor:
    denoiser = Denoiser(lambda x, t, c: x, schedule, "v_prediction")
    return loss(denoiser, torch.zeros(batch, 1), generator=generator).t


# Evenly in time


@pytest.mark.parametrize("generator", [torch.Generator().manual_seed(3), CounterNoise(3), None])
def test_times_are_spread_evenly(generator: Generator) -> None:
    t = drawn(DiffusionLoss(), SCHEDULE, 5000, generator)
    assert torch.equal(t, t.round())
    assert (t >= 0).all()
    assert (t <= 999).all()
    counts = torch.histc(t, 10, 0, 1000)
    assert ((counts - 500).abs() < 4.5 * 450**0.5).all()


@pytest.mark.parametrize(("schedule", "low"), [(NoiseSchedule.flow(10), -1), (NoiseSchedule.edm(num_timesteps=10), 0)])
def test_times_of_continuous_schedules_lie_between_the_whole_ones_too(schedule: NoiseSchedule, low: int) -> None:
    t = drawn(DiffusionLoss(), schedule, 2000, torch.Generator().manual_seed(0))
    assert t.unique().numel() == 2000
    assert scipy.stats.kstest(t, scipy.stats.uniform(low, 9 - low).cdf).pvalue > 1e-3


@every_schedule
@pytest.mark.parametrize("times", TIMES)
def test_only_times_that_networks_are_trained_on_are_drawn(times: TimesName, schedule: NoiseSchedule) -> None:
    u = torch.cat([torch.tensor([0.0, 2.0**-60, 1 - 2.0**-40], dtype=torch.float64), grid(1000)])
    t, importance = TIMES[times]().draw(schedule, u)
    assert t.dtype == torch.float64
    assert t.min() > -1 if schedule.frame == "flow" else t.min() >= 0
    assert t.max() <= schedule.num_timesteps - 1
    assert torch.equal(importance, torch.ones_like(t))
    if schedule.frame == "variance_preserving":
        assert torch.equal(t, t.round())


# Distributions of the noise level


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(50, shift=3.0), NoiseSchedule.edm(num_timesteps=40)])
def test_log_normal_times_have_a_normal_log_noise_level(schedule: NoiseSchedule) -> None:
    """In each frame, to rounding: at even quantiles, those of N(-1.2, 1.2^2). And as drawn, by Kolmogorov-Smirnov."""
    u = grid(99)
    t = LogNormalTimes().draw(schedule, u).t
    quantiles = torch.as_tensor(scipy.stats.norm(-1.2, 1.2).ppf(u))
    torch.testing.assert_close(-schedule.log_snr(t) / 2, quantiles, rtol=0, atol=1e-9)
    random = drawn(DiffusionLoss(times="log_normal"), schedule, 4000, torch.Generator().manual_seed(1))
    assert scipy.stats.kstest(-schedule.log_snr(random) / 2, scipy.stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3


def test_log_normal_times_of_a_table_are_the_nearest_whole_ones() -> None:
    """Each as often as the normal distribution lies nearer to it than to its neighbours."""
    times, count = LogNormalTimes(mean=0.0, std=0.7), 100_000
    got = torch.bincount(times.draw(SCHEDULE, grid(count)).t.long(), minlength=1000) / count
    edges = torch.tensor([(SCHEDULE.log_snr(t + 0.5) / -2) for t in range(999)])
    cumulative = torch.as_tensor(scipy.stats.norm(0, 0.7).cdf(edges))
    want = torch.diff(cumulative, prepend=torch.zeros(1).double(), append=torch.ones(1).double())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1.01 / count)  # the grid's own step


@every_schedule
def test_logit_normal_times_have_a_normal_logit_of_their_share(schedule: NoiseSchedule) -> None:
    count, (mean, std) = 20_000, (0.5, 0.8)
    t = LogitNormalTimes(mean=mean, std=std).draw(schedule, grid(count)).t
    distribution, size = scipy.stats.norm(mean, std), schedule.num_timesteps
    if schedule.frame == "variance_preserving":  # whole times: of the share in [t / T, (t + 1) / T)
        for time in (0, size // 3, size - 2):
            share = (t <= time).double().mean().item()
            want = distribution.cdf(math.log((time + 1) / (size - time - 1)))
            assert share == pytest.approx(want, abs=1 / count)
        return
    share = (t + 1) / size if schedule.frame == "flow" else t / (size - 1)
    logits = torch.logit(share)
    torch.testing.assert_close(logits, torch.as_tensor(distribution.ppf(grid(count))), rtol=0, atol=1e-9)


def test_logit_normal_times_of_the_straight_path_are_log_normal_ones() -> None:
    schedule, u = NoiseSchedule.flow(30), grid(50)
    one, other = (times(mean=0.3, std=0.9).draw(schedule, u).t for times in (LogitNormalTimes, LogNormalTimes))
    torch.testing.assert_close(one, other)


@every_schedule
def test_log_snr_times_are_even_in_log_snr(schedule: NoiseSchedule) -> None:
    u = grid(40)
    times = LogSnrTimes(low=-3, high=2)
    log_snr = schedule.log_snr(times.draw(schedule, u).t)
    tolerance = 1e-9
    if schedule.frame == "variance_preserving":  # rounded to whole times
        tolerance = torch.diff(schedule.log_snr(torch.arange(schedule.num_timesteps))).abs().max().item()
    torch.testing.assert_close(log_snr, -3 + 5 * u, rtol=0, atol=tolerance)


def test_a_loss_over_log_snr_does_not_depend_on_the_schedule() -> None:
    """Of normal data, whose least squared error is s^2 / (SNR s^2 + 1) (Kingma and Gao 2023)."""
    u, results = grid(20_000), []
    for schedule in (NoiseSchedule.flow(7, shift=2.0), NoiseSchedule.edm(num_timesteps=9), NoiseSchedule.cosine(4000)):
        t = LogSnrTimes(low=-6, high=4).draw(schedule, u).t
        weight = SigmoidWeight(bias=-1.0).weight(NoiseScales.at(schedule, t))
        results.append((weight * 0.25 / (0.25 * schedule.log_snr(t).exp() + 1)).mean().item())
    assert results[1] == pytest.approx(results[0], rel=1e-9)
    assert results[2] == pytest.approx(results[0], rel=1e-3)  # whole times


# Stratified


@given(batch=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_stratified_times_put_one_sample_in_each_part(batch: int, seed: int) -> None:
    schedule = NoiseSchedule.flow(10)
    t = drawn(DiffusionLoss(stratified=True), schedule, batch, torch.Generator().manual_seed(seed))
    shares = ((t + 1) / 10).sort().values
    torch.testing.assert_close(shares.diff(), torch.full_like(shares[1:], 1 / batch), rtol=0, atol=1e-12)


def test_each_stratified_time_is_distributed_as_before() -> None:
    loss, schedule = DiffusionLoss(stratified=True, times="log_normal"), NoiseSchedule.edm()
    t = torch.stack([drawn(loss, schedule, 3, CounterNoise(seed)) for seed in range(150)])
    for column in (-schedule.log_snr(t) / 2).T:
        assert scipy.stats.kstest(column, scipy.stats.norm(-1.2, 1.2).cdf).pvalue > 1e-3


# Importance


def output(t: Tensor, losses: Tensor) -> DiffusionLossOutput:
    return DiffusionLossOutput(losses.mean(), losses, t, torch.ones_like(losses))


def filled(schedule: NoiseSchedule, size: Callable[[Tensor], Tensor], **arguments: float) -> LossAwareTimes:
    """Times that have seen losses `size(t)` often enough."""
    times = LossAwareTimes(schedule=schedule, history=3, **arguments)
    t = UniformTimes().draw(schedule, grid(30 * schedule.num_timesteps)).t
    times.update(output(t, size(t)))
    return times


@every_schedule
def test_importance_leaves_the_mean_loss_as_it_is(schedule: NoiseSchedule) -> None:
    """The expectation, by summation over quantiles in which every probability is a whole number of steps."""
    count = schedule.num_timesteps
    sizes = [1 + i % 7 for i in range(count)]
    u = grid(64 * sum(sizes))
    t, importance = ImportanceTimes(probabilities=tuple(float(size) for size in sizes)).draw(schedule, u)
    assert importance.std() > 0.1
    loss = torch.sin(part_of(schedule, t).double())
    want = torch.sin(torch.arange(count).double()).mean()
    assert (importance * loss).mean().item() == pytest.approx(want.item(), abs=1e-9)
    counted = torch.bincount(part_of(schedule, t), minlength=count) / len(t)
    torch.testing.assert_close(counted, torch.tensor(sizes) / sum(sizes), rtol=1e-3, atol=0)


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(5), NoiseSchedule.edm(num_timesteps=5)])
def test_importance_leaves_the_mean_of_a_smooth_loss_as_it_is(schedule: NoiseSchedule) -> None:
    u = grid(100_000)
    t, importance = ImportanceTimes(probabilities=(1, 5, 2, 3, 9)).draw(schedule, u)
    even = UniformTimes().draw(schedule, u).t
    assert (importance * torch.cos(t)).mean().item() == pytest.approx(torch.cos(even).mean().item(), abs=1e-5)


def test_importance_begins_a_time_where_the_one_before_ends() -> None:
    t = ImportanceTimes(probabilities=(1, 2, 1)).draw(NoiseSchedule.cosine(3), torch.tensor([0.0, 0.25, 0.75])).t
    assert t.tolist() == [0, 1, 2]


def test_importance_reaches_the_loss() -> None:
    schedule = NoiseSchedule.cosine(4)
    loss = DiffusionLoss(times=ImportanceTimes(probabilities=(1, 2, 3, 4)))
    got = loss(Denoiser(lambda x, t, c: x, schedule, "v_prediction"), torch.ones(50, 2, 3))
    torch.testing.assert_close(got.importance, 10 / (4 * (got.t + 1)))
    assert got.loss.item() == pytest.approx((got.importance * got.per_sample).mean().item())


@every_schedule
def test_loss_aware_times_follow_the_root_of_the_mean_squared_loss(schedule: NoiseSchedule) -> None:
    times = filled(schedule, lambda t: 2 + torch.sin(part_of(schedule, t).double()), uniform_share=0.1)
    size = 2 + torch.sin(torch.arange(schedule.num_timesteps).double())
    want = 0.9 * size / size.sum() + 0.1 / schedule.num_timesteps
    torch.testing.assert_close(times.probabilities, want)
    assert times.probabilities.sum().item() == pytest.approx(1)


def test_loss_aware_times_draw_what_varies_more_often() -> None:
    """Losses of 1 and 1 have a root mean square of 1, those of 0 and 2 one of sqrt(2)."""
    times = LossAwareTimes(schedule=NoiseSchedule.cosine(2), history=2, uniform_share=1e-9)
    times.update(output(torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 1.0, 0.0, 2.0])))
    assert (times.probabilities[1] / times.probabilities[0]).item() == pytest.approx(2**0.5)


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.001, 0.3, 1.0]), scale=st.sampled_from([0.0, 1.0, 1e6]))
def test_loss_aware_times_estimate_without_bias_whatever_they_saw(seed: int, share: float, scale: float) -> None:
    """sum_t p_t L_t / (T p_t) is the mean of L: weights times probabilities are even."""
    schedule, generator = NoiseSchedule.cosine(6), torch.Generator().manual_seed(seed)
    seen = scale * torch.rand(6, generator=generator, dtype=torch.float64)
    times = filled(schedule, lambda t: seen[t.long()], uniform_share=share)
    edges = torch.cat([torch.zeros(1), times.probabilities.cumsum(0)])
    middles = (edges[1:] + edges[:-1]) / 2
    t, importance = times.draw(schedule, middles)
    assert torch.equal(t, torch.arange(6).double())
    torch.testing.assert_close(
        importance * times.probabilities, torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_loss_aware_times_estimate_with_the_least_variance() -> None:
    """For losses that spread at each time as theirs do: second moments of L / (T p), by summation."""
    size = torch.tensor([9.0, 4.0, 1.0, 0.5, 0.2, 0.1]).double()
    times = filled(NoiseSchedule.cosine(6), lambda t: size[t.long()], uniform_share=1e-9)

    def moment(p: Tensor) -> float:
        return (size.square() / (36 * p)).sum().item()

    best = moment(times.probabilities)
    assert best == pytest.approx(size.mean().item() ** 2)  # for losses without spread none is left
    for seed in range(20):
        noise = torch.rand(6, generator=torch.Generator().manual_seed(seed)).double()
        assert best <= moment(noise / noise.sum())


def test_loss_aware_times_are_even_until_each_was_seen_often_enough() -> None:
    schedule = NoiseSchedule.cosine(4)
    times = LossAwareTimes(schedule=schedule, history=2)
    times.update(output(torch.tensor([0, 0, 0, 1, 1, 2, 2, 3]), torch.arange(1.0, 9.0)))
    assert torch.equal(times.probabilities, torch.full((4,), 0.25).double())
    times.update(output(torch.tensor([3]), torch.tensor([8.0])))
    assert times.probabilities.std() > 0.1


def test_loss_aware_times_remember_the_last_losses_only() -> None:
    times = LossAwareTimes(schedule=NoiseSchedule.cosine(2), history=2)
    for losses in ([5.0, 1.0], [6.0, 2.0], [7.0, 3.0]):
        times.update(output(torch.tensor([0, 1]), torch.tensor(losses)))
    assert times.losses.sort(1).values.tolist() == [[6.0, 7.0], [2.0, 3.0]]
    times.update(output(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([8.0, 4.0, 9.0])))
    assert times.losses.sort(1).values.tolist() == [[4.0, 7.0], [8.0, 9.0]]


def test_loss_aware_times_resume_from_their_state() -> None:
    schedule = NoiseSchedule.cosine(6)
    times = filled(schedule, lambda t: t + 1)
    other = LossAwareTimes(schedule=schedule, history=3)
    other.load_state_dict(times.state_dict())
    assert torch.equal(other.probabilities, times.probabilities)
    assert times.config["history"] == 3


def test_loss_aware_times_remember_the_losses_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentdiff.losses._loss_aware.gather", lambda tensor: [tensor, tensor + 1])
    times = LossAwareTimes(schedule=NoiseSchedule.cosine(3), history=1)
    times.update(output(torch.tensor([0, 1]), torch.tensor([5.0, 8.0])))
    assert times.counts.tolist() == [1, 2, 1]
    assert times.losses[[0, 2], 0].tolist() == [5.0, 9.0]


def test_training_with_loss_aware_times_is_a_loop_of_two_lines() -> None:
    schedule = NoiseSchedule.cosine(3)
    times = LossAwareTimes(schedule=schedule, history=4)
    loss, denoiser = DiffusionLoss(times=times), Denoiser(lambda x, t, c: 0 * x, schedule, "sample")
    for _ in range(20):
        times.update(loss(denoiser, torch.randn(8, 2, 3)))
    assert times.counts.sum() == 160
    assert times.probabilities.std() > 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LogNormalTimes(std=0), "std must be positive, got 0"),
        (lambda: LogitNormalTimes(mean=math.inf), "mean must be finite, got inf"),
        (lambda: LogSnrTimes(low=1, high=1), "low and high must be finite and in order, got 1 and 1"),
        (
            lambda: LogSnrTimes(low=50, high=60).draw(SCHEDULE, grid(2)),
            r"low and high must overlap the schedule's log SNR in \[-5.36.*, 7.06.*\], got 50 and 60",
        ),
        (lambda: ImportanceTimes(probabilities=()), "probabilities must not be empty"),
        (lambda: ImportanceTimes(probabilities=(1.0, 0.0)), "each of probabilities must be positive, got 0.0"),
        (
            lambda: ImportanceTimes(probabilities=(1.0, 2.0)).draw(NoiseSchedule.flow(3), grid(2)),
            "probabilities must be one for each of 3 timesteps, got 2",
        ),
        (lambda: LossAwareTimes(schedule=SCHEDULE, history=0), "history must be positive, got 0"),
        (lambda: LossAwareTimes(schedule=SCHEDULE, uniform_share=0), r"uniform_share must be in \(0, 1\], got 0"),
        (
            lambda: LossAwareTimes(schedule=SCHEDULE).draw(NoiseSchedule.flow(), grid(2)),
            "schedule must be that of these times, .*variance_preserving.*, got .*flow",
        ),
        (
            lambda: LossAwareTimes(schedule=SCHEDULE).update(output(torch.zeros(1), torch.tensor([math.nan]))),
            "losses must be finite, got one that is not",
        ),
    ],
)
def test_bad_times_are_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
