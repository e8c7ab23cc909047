"""Guidance by formula, on labelled data whose every density is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from guided import BATCH, EVENT, SCHEDULES, TIMES, classifier, labelled, labels, noised, weak
from latentdiff import Denoised, Denoiser, NoiseSchedule, guidance
from latentdiff._prediction import PREDICTIONS
from latentdiff._typing import Prediction
from latentdiff.testing import MixtureDenoiser

every_schedule = pytest.mark.parametrize("frame", SCHEDULES)


def assert_same(got: Denoised, want: Denoised, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got.sample, want.sample, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got.noise, want.noise, rtol=tolerance, atol=tolerance)


def from_noise(noise: Tensor, x: Tensor, schedule: NoiseSchedule, t: float) -> Denoised:
    point = schedule.point(t)
    return Denoised((x - point.sigma * noise) / point.alpha, noise)


# Classifier and classifier-free guidance


@every_schedule
@pytest.mark.parametrize("t", TIMES)
def test_the_exact_classifier_at_scale_one_makes_the_model_conditional(frame: str, t: float) -> None:
    data = labelled(SCHEDULES[frame])
    x = noised(data, t)
    got = guidance.Classifier(guidance.Given(data), classifier(data))(x, t, labels())
    # pure noise says nothing of the class: there the classifier's gradient is 0 and the model stays unconditional
    assert_same(got, data(x, t, labels() if data.schedule.point(t).alpha else None))


@given(scale=st.floats(-2, 9), t=st.floats(0, 990), frame=st.sampled_from(list(SCHEDULES)))
def test_classifier_free_guidance_is_guidance_by_the_exact_classifier(scale: float, t: float, frame: str) -> None:
    data = labelled(SCHEDULES[frame])
    x = noised(data, t)
    free = guidance.ClassifierFree(data, scale)(x, t, labels())
    assert_same(guidance.Classifier(guidance.Given(data), classifier(data), scale)(x, t, labels()), free)


@given(scale=st.floats(-2, 9), t=st.floats(0, 990), frame=st.sampled_from(list(SCHEDULES)))
def test_guided_noise_is_the_score_of_the_guided_density(scale: float, t: float, frame: str) -> None:
    """p(x)^(1 - s) p(x | y)^s, differentiated by autograd."""
    data = labelled(SCHEDULES[frame])
    x = noised(data, t).requires_grad_()
    log_density = (1 - scale) * data.log_prob(x, t) + scale * data.log_prob(x, t, labels())
    (score,) = torch.autograd.grad(log_density.sum(), x)
    x = x.detach()
    want = from_noise(-data.schedule.sigma(t) * score, x, data.schedule, t)
    assert_same(guidance.ClassifierFree(data, scale)(x, t, labels()), want)


def test_where_no_signal_or_no_noise_is_left_a_classifier_does_nothing() -> None:
    """One that is not exact has a gradient there too, which would part sample and noise or divide by 0."""
    data = labelled(SCHEDULES["zero_terminal_snr"])
    guided = guidance.Classifier(data, lambda x, t, condition: -x.flatten(1).square().sum(1), 2.0)
    for t in (-1.0, 999.0):
        x = noised(data, t)
        for time in (t, torch.full((BATCH,), t)):
            assert_same(guided(x, time), data(x, time), 0)


def test_a_classifier_and_the_condition_of_the_model_add_up() -> None:
    """A conditional model guided by the classifier at scale s is classifier-free guidance at 1 + s."""
    data = labelled(SCHEDULES["variance_preserving"])
    x = noised(data, 300.0)
    got = guidance.Classifier(data, classifier(data), 2.0)(x, 300.0, labels())
    assert_same(got, guidance.ClassifierFree(data, 3.0)(x, 300.0, labels()))


def test_a_classifier_works_without_gradients_and_gives_none_to_its_weights() -> None:
    data = labelled(SCHEDULES["flow"])
    network = nn.Linear(math.prod(EVENT), 3).double()

    def log_prob(x: Tensor, t: Tensor | float, condition: object) -> Tensor:
        return network(x.flatten(1)).log_softmax(1)[torch.arange(BATCH), labels()]

    x = noised(data, 300.0)
    guided = guidance.Classifier(data, log_prob, 2.0)
    want = guided(x, 300.0)
    probability = network(x.flatten(1)).softmax(1)
    gradient = (torch.nn.functional.one_hot(labels(), 3) - probability) @ network.weight
    noise = data(x, 300.0).noise - 2 * data.schedule.sigma(300.0) * gradient.reshape(x.shape)
    torch.testing.assert_close(want.noise, noise.detach())
    for without in (torch.no_grad(), torch.inference_mode()):
        with without:
            assert_same(guided(x.clone(), 300.0), want, 0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_scale_zero_does_not_ask_the_classifier() -> None:
    data = labelled(SCHEDULES["flow"])

    def log_prob(x: Tensor, t: Tensor | float, condition: object) -> Tensor:
        raise AssertionError

    x = noised(data, 300.0)
    assert_same(guidance.Classifier(data, log_prob, 0.0)(x, 300.0, labels()), data(x, 300.0, labels()), 0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_classifier_free_guidance_is_linear_in_what_the_network_predicts(prediction: Prediction) -> None:
    """Guiding the raw output is guiding sample and noise, so epsilon, x_0, v, flow and F give one answer."""
    data = labelled(SCHEDULES["variance_preserving"])
    network = data.network(prediction)
    x, t = noised(data, 600.0), 600.0

    def guided(x: Tensor, t: Tensor, condition: object) -> Tensor:
        return torch.lerp(network(x, t, None), network(x, t, condition), 3.5)

    want = guidance.ClassifierFree(data, 3.5)(x, t, labels())
    assert_same(Denoiser(guided, data.schedule, prediction)(x, t, labels()), want)
    assert_same(guidance.ClassifierFree(Denoiser(network, data.schedule, prediction), 3.5)(x, t, labels()), want)


def test_halves_that_are_swapped_are_noticed() -> None:
    """In one call or two, the first condition is what is led to and the negative what is led away from."""
    data = labelled(SCHEDULES["flow"])
    x, other = noised(data, 700.0), labels().roll(1)
    one, two = data(x, 700.0, labels()), data(x, 700.0, other)
    for batched in (True, False):
        got = guidance.ClassifierFree(data, 3.0, negative=other, batched=batched)(x, 700.0, labels())
        torch.testing.assert_close(got.sample, 3 * one.sample - 2 * two.sample)
        is_different = (labels() != other).reshape(-1, 1, 1).expand_as(x)
        assert ((got.sample - (3 * two.sample - 2 * one.sample)).abs() > 1e-6)[is_different].all()


# Autoguidance


def test_autoguidance_leads_from_the_weak_to_the_strong_model() -> None:
    data = labelled(SCHEDULES["variance_exploding"])
    x, worse = noised(data, 700.0), weak(data.schedule)
    strong, other = data(x, 700.0, labels()), worse(x, 700.0)
    got = guidance.Autoguidance(data, worse, 2.5)(x, 700.0, labels())
    torch.testing.assert_close(got.sample, other.sample + 2.5 * (strong.sample - other.sample))
    torch.testing.assert_close(got.noise, other.noise + 2.5 * (strong.noise - other.noise))
    assert_same(guidance.Autoguidance(data, worse, 1.0)(x, 700.0, labels()), strong, 0)
    assert_same(guidance.Autoguidance(data, worse, 0.0)(x, 700.0, labels()), other, 0)


def test_a_weak_model_without_the_condition_makes_autoguidance_classifier_free() -> None:
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 200.0)
    got = guidance.Autoguidance(data, guidance.Given(data), 3.0)(x, 200.0, labels())
    assert_same(got, guidance.ClassifierFree(data, 3.0)(x, 200.0, labels()), 0)


# Projections


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def test_projected_guidance_moves_at_right_angles_to_the_conditional_sample() -> None:
    data = labelled(SCHEDULES["variance_preserving"])
    x = noised(data, 500.0)
    conditional = data(x, 500.0, labels()).sample
    got = guidance.Projected(data, 4.0)(x, 500.0, labels()).sample
    free = guidance.ClassifierFree(data, 4.0)(x, 500.0, labels()).sample
    torch.testing.assert_close(dot(got - conditional, conditional), torch.zeros(BATCH).double(), atol=1e-12, rtol=0)
    # what is left out is parallel to the conditional sample: its length is that of its product
    left_out = free - got
    product, lengths = dot(left_out, conditional), left_out.flatten(1).norm(dim=1) * conditional.flatten(1).norm(dim=1)
    torch.testing.assert_close(product.abs(), lengths)
    assert (lengths > 1e-3).any()


def test_projected_guidance_is_classifier_free_with_both_parts_and_conditional_at_scale_one() -> None:
    """The paper's form: on the conditional sample, with scale - 1."""
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 400.0)
    got = guidance.Projected(data, 4.0, eta=1.0)(x, 400.0, labels())
    assert_same(got, guidance.ClassifierFree(data, 4.0)(x, 400.0, labels()))
    for eta in (0.0, 0.5):
        same = guidance.Projected(data, 1.0, eta=eta)
        near = guidance.Projected(data, lambda share: torch.ones_like(share), eta=eta)
        assert_same(same(x, 400.0, labels()), data(x, 400.0, labels()), 0)
        assert_same(near(x, torch.full((BATCH,), 400.0), labels()), data(x, 400.0, labels()), 1e-14)


@pytest.mark.parametrize("max_norm", [0.01, 0.3, 1e3])
def test_the_update_of_projected_guidance_is_at_most_so_long(max_norm: float) -> None:
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 700.0)
    conditional = data(x, 700.0, labels()).sample
    whole = (conditional - data(x, 700.0).sample).flatten(1).norm(dim=1)
    got = guidance.Projected(data, 3.0, eta=1.0, max_norm=max_norm)(x, 700.0, labels()).sample
    torch.testing.assert_close((got - conditional).flatten(1).norm(dim=1), 2 * whole.clamp(max=max_norm))


def test_a_perpendicular_negative_does_not_touch_what_the_condition_adds() -> None:
    data = labelled(SCHEDULES["variance_preserving"])
    x, negative = noised(data, 500.0), labels().roll(1)
    base, towards = data(x, 500.0), data(x, 500.0, labels())
    got = guidance.PerpendicularNegative(data, 3.0, negative, weight=0.7)(x, 500.0, labels())
    free = guidance.ClassifierFree(data, 3.0)(x, 500.0, labels())
    for one, other, start, end in (
        (got.sample, free.sample, base.sample, towards.sample),
        (got.noise, free.noise, base.noise, towards.noise),
    ):
        zero = torch.zeros(BATCH).double()
        torch.testing.assert_close(dot(one - other, end - start), zero, atol=1e-12, rtol=0)
    # and across it, all that the negative adds is led away from
    added = data(x, 500.0, negative).sample - base.sample
    across = got.sample - free.sample
    torch.testing.assert_close(dot(across, added), -dot(across, across) / (3 * 0.7))
    assert (dot(across, across) > 1e-6).any()


def test_a_negative_that_is_the_condition_or_weighs_nothing_leaves_classifier_free_guidance() -> None:
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 500.0)
    want = guidance.ClassifierFree(data, 3.0)(x, 500.0, labels())
    for same in (
        guidance.PerpendicularNegative(data, 3.0, labels()),
        guidance.PerpendicularNegative(data, 3.0, labels().roll(1), weight=0.0),
        guidance.PerpendicularNegative(data, 3.0, labels(), torch.full((BATCH,), -1)),
    ):
        assert_same(same(x, 500.0, labels()), want)


# Composition


def test_nested_guidance_multiplies_scales() -> None:
    data = labelled(SCHEDULES["flow"])
    x = noised(data, 500.0)
    inner = guidance.ClassifierFree(data, 1.5)
    assert_same(
        guidance.ClassifierFree(inner, 2.0, negative=torch.full((BATCH,), -1))(x, 500.0, labels()),
        guidance.ClassifierFree(data, 3.0)(x, 500.0, labels()),
    )


def test_conditions_compose_as_products_of_densities() -> None:
    """Two classifiers, one after the other, add their scores: p(x) p(y|x)^2 p(z|x)^3."""
    data = labelled(SCHEDULES["variance_preserving"])
    x, t = noised(data, 300.0), 300.0
    other = labels().roll(1)
    exact = classifier(data)
    inner = guidance.Classifier(guidance.Given(data), exact, 2.0)
    got = guidance.Classifier(inner, lambda x, t, condition: exact(x, t, other), 3.0)(x, t, labels())
    y = x.clone().requires_grad_()
    parts = data.log_prob(y, t) + 2 * exact(y, t, labels()) + 3 * exact(y, t, other)
    (score,) = torch.autograd.grad(parts.sum(), y)
    assert_same(got, from_noise(-data.schedule.sigma(t) * score, x, data.schedule, t))


# What is refused


def data() -> MixtureDenoiser:
    return labelled(SCHEDULES["flow"])


def test_a_classifier_that_answers_with_another_shape_is_refused() -> None:
    guided = guidance.Classifier(data(), lambda x, t, condition: x.flatten(1), 1.0)
    with pytest.raises(ValueError, match=r"log_prob must answer in shape \[4\], got \[4, 10\]"):
        guided(noised(data(), 5.0), 5.0)


def test_a_classifier_without_a_gradient_is_refused() -> None:
    guided = guidance.Classifier(data(), lambda x, t, condition: x.detach().flatten(1).sum(1), 1.0)
    with pytest.raises(ValueError, match="log_prob must be differentiable in x_t"):
        guided(noised(data(), 5.0), 5.0)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: guidance.Classifier(data(), classifier(data()), math.nan), "scale must be finite, got nan"),
        (lambda: guidance.Autoguidance(data(), data(), math.inf), "scale must be finite, got inf"),
        (
            lambda: guidance.Autoguidance(data(), weak(SCHEDULES["variance_preserving"]), 2.0),
            r"weak must have denoiser's schedule NoiseSchedule\(flow",
        ),
        (lambda: guidance.Projected(data(), -math.inf), "scale must be finite"),
        (lambda: guidance.Projected(data(), 2.0, eta=math.nan), "eta must be finite, got nan"),
        (lambda: guidance.Projected(data(), 2.0, max_norm=0.0), "max_norm must be positive, got 0.0"),
        (lambda: guidance.PerpendicularNegative(data(), math.nan, labels()), "scale must be finite"),
        (lambda: guidance.PerpendicularNegative(data(), 2.0, labels(), weight=-1.0), "weight must be at least 0"),
    ],
)
def test_bad_numbers_are_refused(build: object, match: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=match):
        build()
