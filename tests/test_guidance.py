from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentdiff import Condition, Denoised, NoiseSchedule, Sampler, guidance
from latentdiff._checks import like


@dataclass
class Labelled:
    """Normal data of unit variance around the condition: E[x_0 | x_t] is linear in x_t and in the condition."""

    schedule: NoiseSchedule = field(default_factory=NoiseSchedule.cosine)
    calls: list[int] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        self.calls.append(len(x_t))
        if isinstance(condition, Condition):
            assert condition.embedding is not None
            condition = condition.embedding
        centre = condition if isinstance(condition, Tensor) else torch.zeros_like(x_t)
        alpha, sigma = self.schedule.scales(torch.as_tensor(t, dtype=torch.float64))
        variance = alpha**2 + sigma**2
        rest = x_t - like(alpha, x_t) * centre
        return Denoised(centre + like(alpha / variance, x_t) * rest, like(sigma / variance, x_t) * rest)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    x, a, b = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, a, b


@given(scale=st.floats(-2, 9), seed=st.integers(0, 2**32), t=st.floats(0, 998))
def test_guided_is_unconditional_plus_scale_times_the_difference(scale: float, seed: int, t: float) -> None:
    x, a, b = batch(seed)
    plain = Labelled()
    one, two = plain(x, t, a), plain(x, t, b)
    for batched in (True, False):
        got = guidance.ClassifierFree(plain, scale, negative=b, batched=batched)(x, t, a)
        torch.testing.assert_close(got.sample, two.sample + scale * (one.sample - two.sample))
        torch.testing.assert_close(got.noise, two.noise + scale * (one.noise - two.noise))


@given(scale=st.floats(-2, 9), t=st.floats(0, 998))
def test_guided_sample_and_noise_still_make_up_the_input(scale: float, t: float) -> None:
    x, a, b = batch()
    plain = Labelled()
    for rescale in (0.0, 0.7):
        got = guidance.ClassifierFree(plain, scale, negative=b, rescale=rescale)(x, t, a)
        point = plain.schedule.point(t)
        torch.testing.assert_close(point.alpha * got.sample + point.sigma * got.noise, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_scale_one_and_zero_are_the_two_denoisers_bit_for_bit_in_one_call(scale: float) -> None:
    x, a, b = batch()
    plain = Labelled()
    want = plain(x, 321.0, a if scale else b)
    plain.calls.clear()
    got = guidance.ClassifierFree(plain, scale, negative=b)(x, 321.0, a)
    assert torch.equal(got.sample, want.sample)
    assert torch.equal(got.noise, want.noise)
    assert plain.calls == [4]


@pytest.mark.parametrize(("batched", "calls"), [(True, [8]), (False, [4, 4])])
def test_both_halves_are_one_call_or_two(batched: bool, calls: list[int]) -> None:
    x, a, b = batch()
    plain = Labelled()
    guided = guidance.ClassifierFree(plain, 3.0, negative=Condition(embedding=b), batched=batched)
    guided(x, torch.full((4,), 5.0), Condition(embedding=a))
    assert plain.calls == calls


def test_swapping_the_halves_is_noticed() -> None:
    x, a, b = batch()
    plain = Labelled()
    one = guidance.ClassifierFree(plain, 3.0, negative=b)(x, 600.0, a)
    other = guidance.ClassifierFree(plain, 3.0, negative=a)(x, 600.0, b)
    assert not torch.isclose(one.sample, other.sample).any()


def test_outside_its_interval_guidance_is_off() -> None:
    x, a, b = batch()
    plain = Labelled()
    guided = guidance.ClassifierFree(plain, 3.0, negative=b, interval=(0.25, 0.5))
    for t, is_on in ((200.0, False), (249.0, False), (250.0, True), (499.0, True), (500.0, False)):
        want = guidance.ClassifierFree(plain, 3.0 if is_on else 1.0, negative=b)(x, t, a)
        for time in (t, torch.full((4,), t)):
            torch.testing.assert_close(guided(x, time, a).sample, want.sample)


def test_outside_its_interval_guidance_costs_one_call() -> None:
    x, a, b = batch()
    plain = Labelled()
    guided = guidance.ClassifierFree(plain, 3.0, negative=b, interval=(0.25, 0.5))
    want = plain(x, 500.0, a)
    for t, calls in ((500.0, [4]), (499.0, [8])):
        plain.calls.clear()
        got = guided(x, t, a)
        assert plain.calls == calls
        assert torch.equal(got.sample, want.sample) == (t == 500.0)


@given(t=st.floats(-1, 999), seed=st.integers(0, 2**32))
def test_a_scale_that_changes_is_at_each_time_the_number_it_gives(t: float, seed: int) -> None:
    """A function of the share (t + 1) / T, whether it answers with a tensor or a number, for one time or many."""
    x, a, b = batch(seed)
    plain = Labelled()
    want = guidance.ClassifierFree(plain, 1 + 2 * ((t + 1) / 1000) ** 2, negative=b)(x, t, a)
    for changing in (
        lambda share: 1 + 2 * share.square(),
        lambda share: 1.0 + 2.0 * share.item() ** 2 if share.ndim == 0 else 1 + 2 * share**2,
    ):
        guided = guidance.ClassifierFree(plain, changing, negative=b)
        for time in (t, torch.tensor(t, dtype=torch.float64), torch.full((4,), t, dtype=torch.float64)):
            torch.testing.assert_close(guided(x, time, a).sample, want.sample)
            torch.testing.assert_close(guided(x, time, a).noise, want.noise)


def test_a_changing_scale_makes_one_call_where_it_is_one_or_zero() -> None:
    x, a, b = batch()
    plain = Labelled()
    guided = guidance.ClassifierFree(plain, lambda share: 4 * share.round(), negative=b)
    want = plain(x, 100.0, b)
    plain.calls.clear()
    assert torch.equal(guided(x, 100.0, a).sample, want.sample)
    assert plain.calls == [4]
    other = guidance.ClassifierFree(plain, lambda share: 1.0, negative=b)
    assert torch.equal(other(x, 100.0, a).noise, plain(x, 100.0, a).noise)
    constant = guidance.ClassifierFree(plain, lambda share: 3.0, negative=b)(x, torch.full((4,), 100.0), a)
    torch.testing.assert_close(constant.sample, guidance.ClassifierFree(plain, 3.0, negative=b)(x, 100.0, a).sample)


def test_a_changing_scale_holds_within_the_interval() -> None:
    x, a, b = batch()
    plain = Labelled()
    guided = guidance.ClassifierFree(plain, lambda share: 10 * share, negative=b, interval=(0.25, 0.5))
    times = torch.tensor([100.0, 299.0, 499.0, 700.0], dtype=torch.float64)
    got = guided(x, times, a)
    for i, scale in enumerate((1.0, 3.0, 5.0, 1.0)):
        want = guidance.ClassifierFree(plain, scale, negative=b)(x, times[i].item(), a)
        torch.testing.assert_close(got.sample[i], want.sample[i])
        torch.testing.assert_close(guided(x, times[i].item(), a).sample, want.sample)


def test_rescaling_restores_the_spread_of_each_sample() -> None:
    x, a, b = batch()
    plain = Labelled()
    got = guidance.ClassifierFree(plain, 5.0, negative=b, rescale=1.0)(x, 100.0, a)
    torch.testing.assert_close(got.sample.std(1), plain(x, 100.0, a).sample.std(1))


def test_rescaling_leaves_samples_without_spread_alone() -> None:
    x, a, b = (one[:, :1] for one in batch())
    plain = Labelled()
    got = guidance.ClassifierFree(plain, 5.0, negative=b, rescale=1.0)(x, 100.0, a)
    torch.testing.assert_close(got.sample, guidance.ClassifierFree(plain, 5.0, negative=b)(x, 100.0, a).sample)


def test_guidance_composes_and_samples_go_where_it_leads() -> None:
    """With normal data the guided mean is null + scale * (centre - null), and twice guided is the product of scales."""
    _, a, b = batch()
    noise = torch.randn(4, 3, dtype=torch.float64)
    plain = Labelled()
    inner = guidance.ClassifierFree(plain, 1.5, negative=b, batched=False)
    outer = guidance.ClassifierFree(inner, 2.0, negative=b, batched=False)
    direct = guidance.ClassifierFree(plain, 3.0, negative=b)
    got, want = (Sampler("heun", 20).sample(one, noise, a) for one in (outer, direct))
    torch.testing.assert_close(got, want)
    shift = want - Sampler("heun", 20).sample(plain, noise, b)
    torch.testing.assert_close(shift, 3 * (a - b) * (shift / (3 * (a - b))).mean(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rescale": 1.5}, r"rescale must be in \[0, 1\]"),
        ({"interval": (0.6, 0.2)}, "interval must be"),
        ({"scale": float("nan")}, "scale must be finite, got nan"),
    ],
)
def test_bad_guidance_is_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        guidance.ClassifierFree(Labelled(), **({"scale": 2.0} | arguments))  # type: ignore[arg-type]


def test_scales_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(TypeError, match=r"scale must be a number or a function .*, got str"):
        guidance.ClassifierFree(Labelled(), "3.0")  # type: ignore[arg-type]
    x, a, _ = batch()
    guided = guidance.ClassifierFree(Labelled(), lambda share: torch.ones(3), negative=a)
    with pytest.raises(ValueError, match=r"scale must answer in the shape of the share \[4\], got \[3\]"):
        guided(x, torch.full((4,), 5.0), a)
