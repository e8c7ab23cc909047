"""What holds for guidance of every kind."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from torch import Tensor

from guided import BATCH, EVENT, GUIDANCES, SCHEDULES, TIMES, labelled, labels, noised, recombined
from latentdiff import Denoise, Denoised, NoiseSchedule, Sampler, guidance
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser

every_guidance = pytest.mark.parametrize("name", GUIDANCES)
every_schedule = pytest.mark.parametrize("frame", SCHEDULES)


@every_guidance
@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_sample_and_noise_make_up_the_input_at_all_times(name: str, frame: str, t: float) -> None:
    data = labelled(SCHEDULES[frame])
    x = noised(data, t)
    got = GUIDANCES[name](data)(x, t, labels())
    assert got.sample.isfinite().all()
    assert got.noise.isfinite().all()
    # rounding: the noise is some alpha / sigma times a difference of samples, and comes back times sigma
    torch.testing.assert_close(recombined(got, data.schedule, t), x, rtol=1e-11, atol=1e-11)


@every_guidance
@every_schedule
def test_a_number_one_time_and_a_time_for_each_sample_agree(name: str, frame: str) -> None:
    """Each sample of a batch with all times is that of a batch at its own time."""
    data = labelled(SCHEDULES[frame])
    guided = GUIDANCES[name](data)
    for four in (TIMES[:4], TIMES[2:]):
        times = torch.tensor(four, dtype=torch.float64)
        x = noised(data, times)
        mixed = guided(x, times, labels())
        for i, t in enumerate(four):
            for same in (t, torch.tensor(t, dtype=torch.float64), torch.full((BATCH,), t, dtype=torch.float64)):
                alone = guided(x, same, labels())
                torch.testing.assert_close(alone.sample[i], mixed.sample[i], rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(alone.noise[i], mixed.noise[i], rtol=1e-9, atol=1e-9)


@every_guidance
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_inputs_give_narrow_answers_near_the_exact_ones(name: str, dtype: torch.dtype) -> None:
    data = labelled(SCHEDULES["variance_preserving"])
    x = noised(data, 400.0).to(dtype)
    got, want = (GUIDANCES[name](data)(one, 400.0, labels()) for one in (x, x.double()))
    near = 40 * torch.finfo(dtype).eps  # estimates are rounded, and scales up to 5 magnify their rounding
    for one, other in ((got.sample, want.sample), (got.noise, want.noise)):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=near, atol=near)


@every_guidance
def test_samples_do_not_depend_on_their_neighbours(name: str) -> None:
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 500.0)
    x[1] = 100.0
    y = x.clone()
    y[1] = -3.0
    guided = GUIDANCES[name](data)
    one, other = guided(x, 500.0, labels()), guided(y, 500.0, labels())
    keep = [0, 2, 3]
    torch.testing.assert_close(one.sample[keep], other.sample[keep], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.noise[keep], other.noise[keep], rtol=1e-12, atol=1e-12)


@every_guidance
def test_samplers_follow_any_guidance_without_gradients(name: str) -> None:
    data = labelled(SCHEDULES["variance_preserving"])
    noise = torch.randn(BATCH, *EVENT, dtype=torch.float64)
    got = Sampler("ddim", 4).sample(GUIDANCES[name](data), noise, labels())
    assert got.isfinite().all()
    assert not got.requires_grad


@every_guidance
def test_guidance_changes_nothing_it_was_given(name: str) -> None:
    data = labelled(SCHEDULES["flow"])
    x, condition = noised(data, 300.0), labels()
    before = x.clone()
    guided = GUIDANCES[name](data)
    guided(x, 300.0, condition)
    assert torch.equal(x, before)
    assert torch.equal(condition, labels())
    with pytest.raises(FrozenInstanceError):
        guided.denoiser = data  # type: ignore[attr-defined]


@every_guidance
def test_gradients_flow_through_guidance(name: str) -> None:
    """Differentiated as any denoiser is, a classifier's gradient too: against differences of first order."""
    data = labelled(SCHEDULES["flow"])
    guided = GUIDANCES[name](data)
    x = noised(data, 300.0)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))

    def total(x: Tensor) -> Tensor:
        return (guided(x, 300.0, labels()).sample * direction.roll(1)).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    step = 1e-6
    with torch.no_grad():
        slope = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-7)


@dataclass(frozen=True)
class KnowsVariance:
    """Answers with a variance that tells the condition."""

    schedule: NoiseSchedule
    per_value: bool

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        answer = GaussianDenoiser(schedule=self.schedule)(x_t, t)
        mark = condition if isinstance(condition, Tensor) else torch.full((len(x_t),), -7.0)
        variance = mark.double().reshape(-1, 1, 1).expand_as(x_t) if self.per_value else mark.double()
        return Denoised(answer.sample, answer.noise, variance)


@pytest.mark.parametrize("per_value", [False, True])
@pytest.mark.parametrize("negative", [None, torch.full((BATCH,), 9)])
def test_the_variance_is_that_of_the_conditional_answer(per_value: bool, negative: Tensor | None) -> None:
    plain = KnowsVariance(SCHEDULES["flow"], per_value)
    x = torch.randn(BATCH, *EVENT, dtype=torch.float64)
    want = plain(x, 5.0, labels()).log_variance
    for guided in (
        guidance.ClassifierFree(plain, 3.0, negative=negative),
        guidance.ClassifierFree(plain, 3.0, negative=negative, rescale=0.5),
        guidance.Classifier(plain, lambda x, t, condition: -x.flatten(1).square().sum(1), 2.0),
        guidance.Autoguidance(plain, guidance.Given(plain, negative), 2.0),
        guidance.Projected(plain, 3.0, negative=negative),
        guidance.PerpendicularNegative(plain, 3.0, labels().roll(1), negative),
        guidance.Clip(plain),
        guidance.DynamicThreshold(plain),
        guidance.Given(plain, labels()),
    ):
        got = guided(x, 5.0, labels()).log_variance
        assert got is not None
        assert torch.equal(got, want), type(guided).__name__


@pytest.mark.parametrize("inner", ["classifier free", "given", "perpendicular"])
def test_guidance_with_a_condition_of_its_own_is_asked_with_the_batch_as_it_is(inner: str) -> None:
    """Joined or not, the outer guidance is the same; the inner one keeps a condition for each sample."""
    schedule = NoiseSchedule.linear()
    data = MixtureDenoiser(
        weights=torch.tensor([0.5, 0.5]), means=torch.tensor([-1.0, 1.0]), stds=torch.tensor([0.3, 0.4]),
        schedule=schedule,
    )  # fmt: skip
    x, labels, negative = torch.randn(3, 2), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
    made: dict[str, Denoise] = {
        "classifier free": guidance.ClassifierFree(data, 2.0, negative),
        "given": guidance.Given(data, negative),
        "perpendicular": guidance.PerpendicularNegative(data, 2.0, negative, torch.tensor([-1, -1, -1])),
    }
    clipped = guidance.Clip(made[inner])
    for one in (made[inner], clipped):
        joined, apart = (
            guidance.ClassifierFree(one, 3.0, negative, batched=batched)(x, 400.0, labels) for batched in (True, False)
        )
        torch.testing.assert_close(joined.sample, apart.sample)
