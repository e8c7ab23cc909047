"""The likelihood of the probability flow against densities that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from guided import SCHEDULES
from latentdiff import CounterNoise, Denoised, Denoiser, NoiseSchedule, guidance
from latentdiff.likelihood import ode_log_likelihood
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser, Oracle

BATCH, EVENT = 4, (3,)
TIGHT = {"rtol": 1e-7, "atol": 1e-7}
NATS = 1e-6  # some tens of steps, each held to 1e-7
every_schedule = pytest.mark.parametrize("frame", SCHEDULES)


def labelled(schedule: NoiseSchedule) -> MixtureDenoiser:
    """Two classes whose values depend on each other through the class."""
    means = torch.tensor([[0.9, -0.4, 0.2], [-0.7, 0.5, 0.3]])
    return MixtureDenoiser(
        weights=torch.tensor([0.6, 0.4]), means=means, stds=torch.tensor([0.2, 0.5]), schedule=schedule
    )


def labels() -> Tensor:
    return torch.tensor([1, 0, 0, 1])


def exact_prior(data: Oracle, condition: object = None) -> dict[str, object]:
    last = data.schedule.num_timesteps - 1.0
    return {"prior": lambda x: data.log_prob(x, last, condition)}


def gaussian(schedule: NoiseSchedule) -> GaussianDenoiser:
    std = torch.tensor([0.05, 0.5, 1.5], dtype=torch.float64)
    return GaussianDenoiser(mean=0.3, std=std, schedule=schedule)


@every_schedule
@pytest.mark.parametrize("make", [gaussian, labelled])
def test_with_the_density_of_the_noisy_end_it_is_the_density_of_the_data(frame: str, make: object) -> None:
    assert callable(make)
    data: Oracle = make(SCHEDULES[frame])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    got = ode_log_likelihood(data, x, divergence="exact", **exact_prior(data), **TIGHT)  # type: ignore[arg-type]
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, data.log_prob(x), rtol=0, atol=NATS)


@every_schedule
@pytest.mark.parametrize("t", [0.0, 10.5, 998.5, 999.0])
def test_from_a_noisy_time_it_is_the_density_of_the_noisy_sample(frame: str, t: float) -> None:
    data = labelled(SCHEDULES[frame])
    generator = torch.Generator().manual_seed(1)
    clean, noise = data.draw((BATCH, *EVENT), generator), torch.randn(BATCH, *EVENT, dtype=torch.float64)
    x = data.schedule.add_noise(clean, noise, t)
    got = ode_log_likelihood(data, x, divergence="exact", t=t, **exact_prior(data), **TIGHT)  # type: ignore[arg-type]
    torch.testing.assert_close(got, data.log_prob(x, t), rtol=0, atol=NATS)


@pytest.mark.parametrize("frame", ["zero_terminal_snr", "flow"])
def test_schedules_that_end_in_pure_noise_need_no_prior(frame: str) -> None:
    data = labelled(SCHEDULES[frame])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    got = ode_log_likelihood(data, x, divergence="exact", **TIGHT)
    torch.testing.assert_close(got, data.log_prob(x), rtol=0, atol=NATS)


@pytest.mark.parametrize(("schedule", "cost"), [(NoiseSchedule.edm(), 5e-3), (NoiseSchedule.scaled_linear(), 0.1)])
def test_the_default_prior_costs_what_signal_is_left(schedule: NoiseSchedule, cost: float) -> None:
    """The density of the samplers' noise at x_T, instead of that of the noisy data."""
    data = labelled(schedule)
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    last = schedule.point(999.0)
    std = last.sigma if schedule.frame == "variance_exploding" else 1.0

    def prior(x: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, std).log_prob(x).flatten(1).sum(1)

    got = ode_log_likelihood(data, x, divergence="exact", **TIGHT)
    torch.testing.assert_close(got, ode_log_likelihood(data, x, divergence="exact", prior=prior, **TIGHT))
    off = (got - data.log_prob(x)).abs().max().item()
    assert NATS < off < 10 * cost


@every_schedule
def test_a_condition_is_passed_on(frame: str) -> None:
    data = labelled(SCHEDULES[frame])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    prior = exact_prior(data, labels())
    got = ode_log_likelihood(data, x, labels(), divergence="exact", **prior, **TIGHT)  # type: ignore[arg-type]
    torch.testing.assert_close(got, data.log_prob(x, condition=labels()), rtol=0, atol=NATS)


def test_guided_models_have_a_likelihood() -> None:
    """At scale 1 by the exact classifier it is the conditional one: through a gradient, differentiated once more."""
    data = labelled(SCHEDULES["variance_preserving"])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))

    def log_prob(x_t: Tensor, t: Tensor | float, condition: object) -> Tensor:
        return data.log_posterior(x_t, t)[torch.arange(BATCH), labels()]

    guided = guidance.Classifier(guidance.Given(data), log_prob)
    prior = exact_prior(data, labels())
    got = ode_log_likelihood(guided, x, labels(), divergence="exact", **prior, **TIGHT)  # type: ignore[arg-type]
    torch.testing.assert_close(got, data.log_prob(x, condition=labels()), rtol=0, atol=NATS)


# The estimate of the divergence


def test_the_mean_over_all_signs_is_the_exact_divergence() -> None:
    """With two values a sample there are four vectors of signs, two up to a common sign: both together are exact."""
    schedule = NoiseSchedule.flow()
    data = MixtureDenoiser(
        weights=torch.tensor([0.5, 0.3, 0.2]),
        means=torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.5]]),
        stds=torch.tensor([0.2, 0.4, 0.3]),
        schedule=schedule,
    )
    x = data.draw((3, 2), torch.Generator().manual_seed(0))
    estimates = torch.stack([ode_log_likelihood(data, x, generator=CounterNoise(seed), **TIGHT) for seed in range(6)])
    exact = ode_log_likelihood(data, x, divergence="exact", **TIGHT)
    low, high = estimates.min(0).values, estimates.max(0).values
    # each estimate is one of two numbers, at the same distance to either side of the exact one
    is_one_of_two = torch.minimum((estimates - low).abs(), (estimates - high).abs()) < 1e-6
    assert is_one_of_two.all()
    torch.testing.assert_close((low + high) / 2, exact, rtol=0, atol=NATS)
    assert ((high - low) > 1e-2).all()


@dataclass(frozen=True)
class Later:
    """The noise of later draws."""

    first: int

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return CounterNoise(3).normal(shape, step=step + self.first, device=device, dtype=dtype)


def test_probes_are_averaged() -> None:
    data = labelled(SCHEDULES["flow"])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    one, two, three = (ode_log_likelihood(data, x, generator=Later(i), **TIGHT) for i in range(3))
    assert not torch.isclose(one, two).all()
    got = ode_log_likelihood(data, x, probes=3, generator=Later(0), **TIGHT)
    torch.testing.assert_close(got, (one + two + three) / 3, rtol=0, atol=NATS)


def test_one_probe_is_exact_where_values_do_not_mix() -> None:
    """For normal data of independent values the Jacobian is diagonal, and the square of a sign is 1."""
    data = gaussian(SCHEDULES["flow"])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    torch.testing.assert_close(ode_log_likelihood(data, x, **TIGHT), data.log_prob(x), rtol=0, atol=NATS)


def test_probes_are_a_function_of_the_generator() -> None:
    data = labelled(SCHEDULES["flow"])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    one, same, other = (
        ode_log_likelihood(data, x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.isclose(one, other).any()


# Shapes, batches, networks


@dataclass(frozen=True)
class AnyRank:
    """Data N(0, 0.5^2) in any shape."""

    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        point = self.schedule.point(float(t))
        variance = 0.25 * point.alpha**2 + point.sigma**2
        return Denoised(0.25 * point.alpha / variance * x_t, point.sigma / variance * x_t)


@settings(max_examples=8)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_samples_have_any_rank(shape: list[int], seed: int) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 2
    want = torch.distributions.Normal(0.0, 0.5).log_prob(x).reshape(len(x), -1).sum(1)
    for divergence in ("hutchinson", "exact"):
        got = ode_log_likelihood(AnyRank(NoiseSchedule.flow()), x, divergence=divergence, rtol=1e-7, atol=1e-7)  # type: ignore[arg-type]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_a_batch_gives_what_its_samples_give_alone() -> None:
    data = labelled(SCHEDULES["variance_preserving"])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    together = ode_log_likelihood(data, x, generator=CounterNoise(1), rtol=1e-7, atol=1e-7)
    for i in range(BATCH):
        alone = ode_log_likelihood(data, x[i : i + 1], generator=CounterNoise(1, i), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)  # steps differ, the tolerance holds


class Small(nn.Module):
    """A network with weights, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return torch.tanh(self.inner(x.flatten(1)) + 1e-3 * t.unsqueeze(1)).reshape(x.shape)


def test_networks_work_without_gradients_and_collect_none() -> None:
    network = Small()
    denoiser = Denoiser(network, NoiseSchedule.cosine(), "v_prediction")
    x = torch.randn(BATCH, *EVENT)
    before = x.clone()
    want = ode_log_likelihood(denoiser, x, divergence="exact")
    assert not want.requires_grad
    for without in (torch.no_grad(), torch.inference_mode()):
        with without:
            assert torch.equal(ode_log_likelihood(denoiser, x.clone(), divergence="exact"), want)
    leaf = x.clone().requires_grad_()
    assert torch.equal(ode_log_likelihood(denoiser, leaf, divergence="exact"), want)
    assert leaf.grad is None
    assert all(weight.grad is None for weight in network.parameters())
    assert torch.equal(x, before)


def test_densities_integrate_to_one() -> None:
    """Also of a network that fits no data: its flow is a change of variables, whatever it is."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    denoiser = Denoiser(lambda x, t, condition: network(x), NoiseSchedule.cosine(), "v_prediction")
    x = torch.linspace(-12, 12, 801, dtype=torch.float64).unsqueeze(1)
    density = ode_log_likelihood(denoiser, x, divergence="exact", rtol=1e-6, atol=1e-6).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1, abs=1e-4)
    assert density[[0, -1]].max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_narrow_samples_are_worked_on_in_single_precision(dtype: torch.dtype) -> None:
    data = labelled(SCHEDULES["flow"])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0)).to(dtype)
    got = ode_log_likelihood(data, x, divergence="exact")
    torch.testing.assert_close(got, data.log_prob(x.double()), rtol=0, atol=2e-3)  # steps held to 1e-5


# What is refused


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"divergence": "trace"}, "divergence must be one of 'hutchinson', 'exact', got 'trace'"),
        ({"probes": 0}, "probes must be at least 1, .*got 0"),
        ({"divergence": "exact", "probes": 2}, "probes must be .* 1 for an exact divergence, got 2"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"atol": -1.0}, "atol must be positive"),
        ({"t": 1000.0}, r"t must be in \[-1, 999\]"),
        ({"prior": lambda x: x}, r"prior's answer must have 1 axes"),
        ({"prior": lambda x: x.sum().reshape(1)}, r"prior's answer must have batch=4"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], match: str) -> None:
    data = gaussian(SCHEDULES["flow"])
    with pytest.raises(ValueError, match=match):
        ode_log_likelihood(data, torch.zeros(BATCH, *EVENT), **arguments)  # type: ignore[arg-type]


def test_samples_of_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="sample must be floating"):
        ode_log_likelihood(gaussian(SCHEDULES["flow"]), torch.zeros(BATCH, *EVENT, dtype=torch.int64))


def test_denoisers_without_gradients_are_refused() -> None:
    data = gaussian(SCHEDULES["flow"])

    class Cut:
        schedule = data.schedule

        def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
            return data(x_t.detach(), t)

    with pytest.raises(RuntimeError, match="denoiser must be differentiable in x_t to have a likelihood"):
        ode_log_likelihood(Cut(), torch.zeros(BATCH, *EVENT))


def test_a_tolerance_out_of_reach_is_refused() -> None:
    with pytest.raises(RuntimeError, match="rtol and atol must be within reach"):
        ode_log_likelihood(AnyRank(NoiseSchedule.flow()), torch.full((1, 1), math.nan))
