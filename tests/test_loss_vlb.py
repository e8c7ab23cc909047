from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentdiff import CounterNoise, Denoised, Denoiser, NoiseSchedule, draw_noise
from latentdiff._denoised import Denoise
from latentdiff._denoiser import Variance
from latentdiff.likelihood import variational_bound
from latentdiff.losses import DiffusionLoss
from latentdiff.testing import GaussianDenoiser
from networks import normal

SCHEDULES = {
    "linear": NoiseSchedule.linear(12),
    "flow": NoiseSchedule.flow(9),
    "edm": NoiseSchedule.edm(num_timesteps=11),
    "one step": NoiseSchedule.linear(1),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def learner(answer: Tensor, schedule: NoiseSchedule, variance: Variance = "learned_range") -> Denoiser:
    return Denoiser(lambda x, t, c: answer.to(x.dtype), schedule, "v_prediction", variance)


def variance_term(
    denoiser: Denoise, sample: Tensor, t: Tensor | float, noise: Tensor | None = None, levels: int | None = None
) -> Tensor:
    """What `vlb_weight=1` adds, `[batch]`."""
    noise = normal(sample.shape, 7) if noise is None else noise
    with_term, without = (
        DiffusionLoss(vlb_weight=weight, levels=levels)(denoiser, sample, t=t, noise=noise).per_sample
        for weight in (1.0, 0.0)
    )
    return with_term - without


@every_schedule
@pytest.mark.parametrize("levels", [None, 9])
def test_the_variance_term_is_the_variational_bound_without_its_prior(
    levels: int | None, schedule: NoiseSchedule
) -> None:
    """Of each time, T times as large, in nats for its bits: so the mean over times is the bound."""
    sample = (normal((3, 2, 4)).clamp(-1, 1) * 4).round() / 4
    denoiser, source = learner(normal((3, 4, 4), 1).clamp(-1, 1), schedule), CounterNoise(4)
    kind = "continuous" if levels is None else "discretized"
    bound = variational_bound(denoiser, sample, decoder=kind, levels=levels or 2, generator=source)
    want = bound.per_timestep.clone()
    want[:, 0] = bound.decoder
    terms = [
        variance_term(denoiser, sample, t, draw_noise(sample.shape, source, step=t, dtype=torch.float64), levels)
        for t in range(schedule.num_timesteps)
    ]
    got = torch.stack(terms, 1) / (schedule.num_timesteps * math.log(2))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_the_weight_is_a_factor_and_the_mask_holds_for_the_variance_too() -> None:
    sample, mask = normal((3, 2, 4)), torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(3, 1, 4)
    denoiser, noise = learner(normal((3, 4, 4), 1).clamp(-1, 1), SCHEDULES["linear"]), normal((3, 2, 4), 2)

    def loss(weight: float, mask: Tensor | None = None, keep: slice = slice(None)) -> Tensor:
        one = DiffusionLoss(vlb_weight=weight)
        part = learner(normal((3, 4, 4), 1).clamp(-1, 1)[..., keep], SCHEDULES["linear"])
        return one(part, sample[..., keep], t=5, noise=noise[..., keep], mask=mask).per_sample

    torch.testing.assert_close(loss(0.001) - loss(0.0), 0.001 * variance_term(denoiser, sample, 5, noise))
    torch.testing.assert_close(loss(0.5, mask), loss(0.5, keep=slice(0, None, 2)))


@every_schedule
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_estimate_learns_from_the_error_and_the_variance_from_the_bound(
    variance: Variance, schedule: NoiseSchedule
) -> None:
    sample, t = normal((3, 2, 4)), torch.tensor([0.0, schedule.num_timesteps // 2, schedule.num_timesteps - 1])
    answer = normal((3, 4, 4), 1).clamp(-1, 1).requires_grad_()
    gradients = []
    for weight in (0.0, 0.01):
        loss = DiffusionLoss(vlb_weight=weight)(
            learner(answer, schedule, variance), sample, t=t, generator=CounterNoise(0)
        )
        gradients.append(torch.autograd.grad(loss.loss, answer)[0])
    (plain, plain_variance), (hybrid, hybrid_variance) = (gradient.chunk(2, 1) for gradient in gradients)
    assert torch.equal(plain, hybrid)
    assert plain.abs().min() > 0
    assert torch.equal(plain_variance, torch.zeros_like(plain_variance))
    assert hybrid_variance.isfinite().all()
    if schedule.num_timesteps > 1:
        assert (hybrid_variance[1:].abs() > 0).any(2).all()


class Spread:
    """The exact denoiser with log variances that are off."""

    def __init__(self, oracle: GaussianDenoiser, offset: float) -> None:
        self.oracle, self.schedule, self.offset = oracle, oracle.schedule, offset

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        known = self.oracle(x_t, t)
        assert known.log_variance is not None
        return Denoised(known.sample, known.noise, known.log_variance + self.offset)


@pytest.mark.parametrize("t", [0, 1, 6, 11])
def test_the_exact_variance_has_the_least_loss(t: int) -> None:
    oracle = GaussianDenoiser(schedule=SCHEDULES["linear"], mean=0.3, std=0.5, knows_variance=True)
    sample = oracle.draw((20000, 2), torch.Generator().manual_seed(0))
    noise = normal(sample.shape, 1)
    best, *others = (variance_term(Spread(oracle, by), sample, t, noise) for by in (0.0, 0.3, -0.3))
    for worse in others:
        difference = worse - best
        assert difference.mean() > 4.5 * difference.std() / 20000**0.5


def test_a_denoiser_without_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="denoiser must know the variance of its steps for vlb_weight > 0, got none"):
        DiffusionLoss(vlb_weight=0.001)(Denoiser(lambda x, t, c: x, SCHEDULES["linear"]), normal((2, 3)))
