from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentdiff import Denoised, Denoiser, Gaussian, NoiseSchedule
from latentdiff._denoiser import VARIANCES, Variance
from latentdiff._variational import decoder_nll, log_normal_mass, prior_kl, reverse_step, step_kl
from networks import normal

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "linear, 10 steps": NoiseSchedule.linear(10),
    "cosine": NoiseSchedule.cosine(),
    "zero terminal SNR": NoiseSchedule.scaled_linear().zero_terminal_snr(),
    "shifted flow": NoiseSchedule.flow(50, shift=3.0),
    "edm": NoiseSchedule.edm(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
seeds = given(seed=st.integers(0, 2**32))


class Drawn:
    """A sample, its noisy latents at times of a schedule, and what some network makes of them."""

    def __init__(self, schedule: NoiseSchedule, seed: int, variance: Variance | None = None, low: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.schedule = schedule
        self.t = torch.randint(low, schedule.num_timesteps, (4,), generator=generator)
        self.sample, self.noise = normal((2, 4, 3, 5), seed)
        learns = variance is not None and variance.startswith("learned")
        answer = normal((4, 6 if learns else 3, 5), seed + 1).clamp(-1, 1)
        self.x_t = schedule.add_noise(self.sample, self.noise, self.t)
        self.denoised = Denoiser(lambda x, t, c: answer, schedule, "v_prediction", variance)(self.x_t, self.t)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.scales(t)
        return alpha[:, None, None], sigma[:, None, None]

    @property
    def signal_to_noise(self) -> tuple[Tensor, Tensor]:
        """That of t and that of t - 1."""
        now, before = (self.schedule.log_snr(t)[:, None, None].exp() for t in (self.t, self.t - 1))
        return now, before

    @property
    def kl(self) -> Tensor:
        return step_kl(self.schedule, self.sample, self.denoised, self.x_t, self.t)


# The reverse step


@every_schedule
@pytest.mark.parametrize("variance", [None, *VARIANCES])
@seeds
def test_the_reverse_step_is_the_posterior_of_the_estimate(
    schedule: NoiseSchedule, variance: Variance | None, seed: int
) -> None:
    drawn = Drawn(schedule, seed, variance, low=0)
    step = reverse_step(schedule, drawn.denoised, drawn.x_t, drawn.t)
    assert torch.equal(step.mean, schedule.posterior(drawn.denoised.sample, drawn.x_t, drawn.t).mean)
    log_variance = drawn.denoised.log_variance
    if log_variance is None:  # then the large one
        log_variance = schedule.reverse_log_variances(drawn.t)[1][:, None, None]
    torch.testing.assert_close(step.variance, log_variance.exp(), rtol=1e-14, atol=0)
    assert step.variance.dtype == torch.float64


def test_a_log_variance_of_each_sample_is_one_of_all_its_values() -> None:
    drawn = Drawn(NoiseSchedule.linear(), 0)
    known = Denoised(drawn.denoised.sample, drawn.denoised.noise, torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    step = reverse_step(drawn.schedule, known, drawn.x_t, drawn.t)
    assert step.variance.log().squeeze().tolist() == pytest.approx([-1, -2, -3, -4])


@every_schedule
@pytest.mark.parametrize("variance", [None, *VARIANCES])
@seeds
def test_the_divergence_of_a_step_is_that_of_its_normals(
    schedule: NoiseSchedule, variance: Variance | None, seed: int
) -> None:
    drawn = Drawn(schedule, seed, variance)
    q = schedule.posterior(drawn.sample, drawn.x_t, drawn.t)
    p = reverse_step(schedule, drawn.denoised, drawn.x_t, drawn.t)
    want = kl_divergence(Normal(q.mean, q.variance.sqrt()), Normal(p.mean, p.variance.sqrt()))
    # rounding of the ratio of variances, 1e-16, and of 1 - r of the posterior
    torch.testing.assert_close(drawn.kl, want, rtol=1e-9, atol=1e-12)


# Equal objectives


@every_schedule
@seeds
def test_a_step_of_small_variance_costs_half_the_gain_in_snr_times_the_error(
    schedule: NoiseSchedule, seed: int
) -> None:
    """Luo 2022, eq. 108: 1/2 (SNR(t - 1) - SNR(t)) |x_0 - estimate|^2."""
    drawn = Drawn(schedule, seed, "fixed_small")
    now, before = drawn.signal_to_noise
    error = (drawn.sample - drawn.denoised.sample).square()
    torch.testing.assert_close(drawn.kl, 0.5 * (before - now) * error, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.linear(10)])
@seeds
def test_errors_of_sample_noise_and_score_are_one_objective(
    schedule: NoiseSchedule, variance: Variance, seed: int
) -> None:
    """Luo 2022, eq. 99, 130 and 148; the second is eq. 12 of Ho et al. 2020. Of the KL without its constant."""
    drawn = Drawn(schedule, seed, variance)
    beta = schedule.betas[drawn.t][:, None, None]
    bar, bar_before = (schedule.alphas_cumprod[t][:, None, None] for t in (drawn.t, drawn.t - 1))
    small = beta * (1 - bar_before) / (1 - bar)
    v = small if variance == "fixed_small" else beta
    sigma = (1 - bar).sqrt()
    constant = 0.5 * (small / v - 1 - torch.log(small / v))
    of_sample = (drawn.sample - drawn.denoised.sample).square() * bar_before * beta**2 / (2 * v * (1 - bar) ** 2)
    of_noise = (drawn.noise - drawn.denoised.noise).square() * beta**2 / (2 * v * (1 - beta) * (1 - bar))
    score, estimate = -drawn.noise / sigma, -drawn.denoised.noise / sigma
    of_score = (score - estimate).square() * beta**2 / (2 * v * (1 - beta))
    for objective in (of_sample, of_noise, of_score):
        # the error of the sample is one of the noise, enlarged up to sigma / alpha = 2e4, of 1e-16 each
        torch.testing.assert_close(drawn.kl - constant, objective, rtol=1e-6, atol=1e-12)


@every_schedule
@seeds
def test_the_variance_that_costs_least_is_the_mean_squared_distance(schedule: NoiseSchedule, seed: int) -> None:
    """Distance of q's values from the mean of p: what a network learns where its variance is learned."""
    drawn = Drawn(schedule, seed)
    q = schedule.posterior(drawn.sample, drawn.x_t, drawn.t)
    p = reverse_step(schedule, drawn.denoised, drawn.x_t, drawn.t)
    best = (q.variance + (q.mean - p.mean).square()).log()
    costs = []
    for change in (-0.1, 0.0, 0.1):
        known = Denoised(drawn.denoised.sample, drawn.denoised.noise, best + change)
        costs.append(step_kl(schedule, drawn.sample, known, drawn.x_t, drawn.t))
    assert (costs[1] < costs[0]).all()
    assert (costs[1] < costs[2]).all()


# The prior


@every_schedule
def test_the_prior_is_what_walks_start_from(schedule: NoiseSchedule) -> None:
    sample, last = normal((2, 3, 5)), schedule.num_timesteps - 1.0
    alpha, sigma = schedule.alpha(last), schedule.sigma(last)
    scale = sigma if schedule.frame == "variance_exploding" else 1.0
    q, prior = Normal(alpha * sample, sigma), Normal(torch.zeros_like(sample), scale)
    torch.testing.assert_close(prior_kl(schedule, sample), kl_divergence(q, prior), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("schedule", [NoiseSchedule.flow(), NoiseSchedule.linear().zero_terminal_snr()])
def test_nothing_is_left_of_a_sample_in_pure_noise(schedule: NoiseSchedule) -> None:
    assert prior_kl(schedule, normal((2, 3, 5), dtype=torch.float32)).equal(torch.zeros(2, 3, 5, dtype=torch.float64))


# The decoder


def grid(levels: int) -> Tensor:
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


@given(levels=st.integers(2, 300), mean=st.floats(-3, 3), log_std=st.floats(-7, 7))
def test_the_probabilities_of_all_levels_add_up_to_one(levels: int, mean: float, log_std: float) -> None:
    x = grid(levels)
    step = Gaussian(torch.full_like(x, mean), torch.full_like(x, 2 * log_std).exp())
    total = (-decoder_nll(step, x, levels)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12 * levels)


@given(levels=st.sampled_from([2, 16, 256]), mean=st.floats(-3, 3), log_std=st.floats(-7, 3), seed=st.integers(0, 99))
def test_the_decoder_is_exact_however_unlikely_the_level(levels: int, mean: float, log_std: float, seed: int) -> None:
    index = seed % levels
    std = float(torch.tensor(log_std, dtype=torch.float64).exp())
    x = grid(levels)[index : index + 1]
    got = decoder_nll(Gaussian(torch.full_like(x, mean), torch.full_like(x, std**2)), x, levels).item()
    with mpmath.workdps(60):
        half, centre = mpmath.mpf(1) / (levels - 1), -1 + mpmath.mpf(2 * index) / (levels - 1)
        sign = -1 if centre > mean else 1  # where the normal distribution function is small
        low, high = sorted(sign * (centre + side * half - mean) / mpmath.mpf(std) for side in (-1, 1))
        low = -mpmath.inf if index == (0 if sign > 0 else levels - 1) else low
        high = mpmath.inf if index == (levels - 1 if sign > 0 else 0) else high
        mass = (mpmath.erfc(-high / mpmath.sqrt(2)) - mpmath.erfc(-low / mpmath.sqrt(2))) / 2
        want = float(-mpmath.log(mass))
    # an edge is known to 1e-16, and the square of its distance counts, up to (4 / std)^2 = 2e7
    assert got == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_the_mass_of_an_interval_is_exact_in_both_tails() -> None:
    low = torch.tensor([-1e4, -300.0, -40.0, -1e-3, -0.3, 0.0, 39.0, 1e4], dtype=torch.float64)
    width = torch.tensor([1e-3, 1.0, 1e-6, 2e-3, 2.0, 1e-9, 1e-2, 1.0], dtype=torch.float64)
    high = low + width
    with mpmath.workdps(60):
        ends = [[mpmath.mpf(end.item()) / mpmath.sqrt(2) for end in pair] for pair in zip(low, high, strict=True)]
        ends = [[a, b] if a > 0 else [-b, -a] for a, b in ends]
        want = [float(mpmath.log((mpmath.erfc(a) - mpmath.erfc(b)) / 2)) for a, b in ends]
    # log Phi, of size 0.7 and right to 1e-16, is compared over 1e-9: seven digits are left
    torch.testing.assert_close(log_normal_mass(low, high), torch.tensor(want).double(), rtol=1e-6, atol=1e-7)


def test_a_level_however_unlikely_pulls_the_decoder_towards_it() -> None:
    mean = torch.tensor([-30.0, -3.0, 0.0, 3.0, 30.0], dtype=torch.float64).requires_grad_()
    x = torch.full((5,), 51 / 255, dtype=torch.float64)
    log_variance = torch.full((5,), -9.8, dtype=torch.float64).requires_grad_()
    nll = decoder_nll(Gaussian(mean, log_variance.exp()), x, 256)
    by_mean, by_log_variance = torch.autograd.grad(nll.sum(), [mean, log_variance])
    assert nll.isfinite().all()
    assert by_mean.sign().tolist() == [-1, -1, -1, 1, 1]
    # far out the mass is that of the tail from the bin's near edge on, like exp(-distance^2 / (2 variance)), but for
    # variance / distance^2 = 1.5e-3 at the nearest of them
    distance = (x - mean).abs().detach() - 1 / 255
    torch.testing.assert_close(by_mean.abs(), distance / log_variance.exp().detach(), rtol=2e-3, atol=0)
    torch.testing.assert_close(by_log_variance, -0.5 * distance**2 / log_variance.exp().detach(), rtol=2e-3, atol=0)


def test_the_outer_levels_have_gradients_too() -> None:
    mean = torch.tensor([-40.0, 0.0, 40.0], dtype=torch.float64).repeat(2).requires_grad_()
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(3)
    [gradient] = torch.autograd.grad(decoder_nll(Gaussian(mean, torch.full_like(x, 1e-4)), x, 256).sum(), mean)
    assert gradient.isfinite().all()
    assert gradient.sign().tolist() == [0, 1, 1, -1, -1, 0]  # sure of what is beyond the end: nothing to gain


def test_many_levels_are_a_density() -> None:
    levels, x = 2**20 + 1, grid(5)[1:-1]
    step = Gaussian(x.flip(0) + 0.1, torch.tensor([0.2, 0.3, 1.0], dtype=torch.float64))
    density = decoder_nll(step, x, None)
    torch.testing.assert_close(density, -Normal(step.mean, step.variance.sqrt()).log_prob(x), rtol=1e-13, atol=0)
    bin_width = torch.tensor(2 / (levels - 1), dtype=torch.float64)
    # the density changes over a bin by its width squared, 4e-12; log Phi over the bin is right to 1e-16 / 2e-6
    torch.testing.assert_close(decoder_nll(step, x, levels) + bin_width.log(), density, rtol=0, atol=1e-9)


def test_a_level_in_single_precision_is_the_level() -> None:
    x = grid(256)
    step = Gaussian(0.9 * x, torch.full_like(x, 1e-4))
    assert torch.equal(decoder_nll(step, x.float(), 256), decoder_nll(step, x, 256))
