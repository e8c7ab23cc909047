"""The identities that the formalism rests on, in every frame (docs/formalism.md gives them with their sources)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from latentdiff import Gaussian, NoiseSchedule, Sampler
from latentdiff._typing import Prediction
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser
from latentdiff.testing import strategies as lds

FRAMES = {
    "variance preserving": NoiseSchedule.linear(),
    "zero terminal SNR": NoiseSchedule.scaled_linear().zero_terminal_snr(),
    "variance exploding": NoiseSchedule.edm(),
    "flow": NoiseSchedule.flow(),
}
every_frame = pytest.mark.parametrize("schedule", FRAMES.values(), ids=FRAMES)


def mixture(schedule: NoiseSchedule) -> MixtureDenoiser:
    """Three modes in two dimensions."""
    parts = ([0.5, 0.3, 0.2], [[-1.0, 0.5], [0.3, -0.2], [1.4, 1.0]], [0.3, 0.5, 0.2])
    weights, means, stds = (torch.tensor(part, dtype=torch.float64) for part in parts)
    return MixtureDenoiser(weights=weights, means=means, stds=stds, schedule=schedule)


def path(schedule: NoiseSchedule, seed: int, *times: float) -> list[Tensor]:
    """One path of the process through falling times, `[5, 3]` at each, and its clean end before them."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(len(times) + 1, 5, 3, generator=generator, dtype=torch.float64)
    x, before, found = draws[0], -1.0, [draws[0]]
    for time, noise in zip(reversed(times), draws[1:], strict=True):
        x, before = schedule.transition(x, before, time).sample(noise), time
        found.append(x)
    return found


def three_times(schedule: NoiseSchedule, shares: tuple[float, float, float]) -> list[float]:
    """Times that rise, within 0 ... T - 1 and apart from each other."""
    last = schedule.num_timesteps - 1
    return [last * (0.02 + 0.32 * (k + 0.8 * share)) for k, share in enumerate(shares)]


shares = st.tuples(*[st.floats(0, 1)] * 3)


# q(x_t | x_s) and q(x_t | x_0)


@given(data=st.data())
def test_steps_one_after_the_other_compose_to_the_marginal(data: st.DataObject) -> None:
    """Luo 2022, arXiv 2208.11970, eq. 61 to 70."""
    schedule = data.draw(lds.schedules())
    last = schedule.num_timesteps - 1
    count = min(12, schedule.num_timesteps)
    times = [-1.0, *sorted({round(last * k / max(count - 1, 1)) for k in range(count)})]
    mean, variance = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    for s, t in pairwise(times):
        step = schedule.transition(torch.ones_like(mean), s, t)
        mean, variance = step.mean * mean, step.mean[:, :1].square() * variance + step.variance
        alpha, sigma = schedule.point(t)[1:]
        torch.testing.assert_close(mean, torch.full_like(mean, alpha), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(variance, torch.full_like(variance, sigma**2), rtol=1e-9, atol=1e-12)


@every_frame
@given(t=st.floats(-1, 999))
def test_the_step_from_the_clean_end_is_the_marginal(schedule: NoiseSchedule, t: float) -> None:
    x_0, noise = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    marginal = schedule.transition(x_0, -1.0, t)
    torch.testing.assert_close(marginal.sample(noise), schedule.add_noise(x_0, noise, t), rtol=1e-12, atol=1e-12)


def test_one_step_is_that_of_ddpm() -> None:
    """Ho et al. 2020, arXiv 2006.11239, eq. 2."""
    schedule, t = NoiseSchedule.linear(), torch.tensor([1, 500, 999])
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    step, beta = schedule.transition(x, t - 1, t), schedule.betas[t][:, None, None]
    torch.testing.assert_close(step.mean, (1 - beta).sqrt() * x, rtol=1e-12, atol=0)
    torch.testing.assert_close(step.variance, beta, rtol=1e-10, atol=0)


@every_frame
def test_half_precision_transitions_are_rounded_once(schedule: NoiseSchedule) -> None:
    x = torch.randn(5, 3).bfloat16()
    t = torch.tensor([0, 10, 500, 998, 999])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = schedule.transition(x, t - 1, t)
    want = schedule.transition(x.float(), t - 1, t)
    assert got.mean.equal(want.mean.bfloat16())
    assert got.variance.dtype == torch.float64
    assert got.variance.equal(want.variance)


# q(x_s | x_t, x_0)


@every_frame
@given(seed=lds.seeds(), shares=shares)
def test_the_posterior_obeys_bayes_rule(schedule: NoiseSchedule, seed: int, shares: tuple[float, float, float]) -> None:
    """q(x_s | x_t, x_0) q(x_t | x_0) = q(x_t | x_s) q(x_s | x_0) as densities (Luo 2022, eq. 71 to 84)."""
    s, t, _ = three_times(schedule, shares)
    x_0, x_s, x_t = path(schedule, seed, t, s)
    posterior, transition = schedule.posterior(x_0, x_t, t, s), schedule.transition(x_s, s, t)
    at_s, at_t = schedule.transition(x_0, -1.0, s), schedule.transition(x_0, -1.0, t)
    left = posterior.log_prob(x_s) + at_t.log_prob(x_t)
    right = transition.log_prob(x_t) + at_s.log_prob(x_s)
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8)


@every_frame
@given(shares=shares)
def test_precisions_of_the_posterior_add(schedule: NoiseSchedule, shares: tuple[float, float, float]) -> None:
    """What x_0 tells and what x_t tells: 1 / sigma_s^2 + alpha_t|s^2 / sigma_t|s^2."""
    s, t, _ = three_times(schedule, shares)
    one = torch.ones(1, 1, dtype=torch.float64)
    step = schedule.transition(one, s, t)
    precision = 1 / schedule.sigma(s) ** 2 + step.mean.square() / step.variance
    torch.testing.assert_close(1 / schedule.posterior(one, one, t, s).variance, precision, rtol=1e-9, atol=0)


@every_frame
@given(seed=lds.seeds(), shares=shares)
def test_posteriors_of_two_steps_compose(
    schedule: NoiseSchedule, seed: int, shares: tuple[float, float, float]
) -> None:
    """From u to t and from t to s is from u to s: in mean, and in variance."""
    s, t, u = three_times(schedule, shares)
    x_0, _, _, x_u = path(schedule, seed, u, t, s)
    first = schedule.posterior(x_0, x_u, u, t)
    second, slope = schedule.posterior(x_0, first.mean, t, s), schedule.posterior(0 * x_0, torch.ones_like(x_0), t, s)
    whole = schedule.posterior(x_0, x_u, u, s)
    torch.testing.assert_close(second.mean, whole.mean, rtol=1e-9, atol=1e-9)
    variance = second.variance + slope.mean[:, :1].square() * first.variance
    torch.testing.assert_close(variance, whole.variance, rtol=1e-9, atol=1e-15)


# The score, and the three equal objectives


@every_frame
@given(seed=lds.seeds(), t=st.floats(0, 999))
def test_the_score_is_the_noise(schedule: NoiseSchedule, seed: int, t: float) -> None:
    """grad log q(x_t | x_0) = -epsilon / sigma (Luo 2022, eq. 151)."""
    x_0, epsilon = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x_t = schedule.add_noise(x_0, epsilon, t).requires_grad_()
    (score,) = torch.autograd.grad(schedule.transition(x_0, -1.0, t).log_prob(x_t).sum(), x_t)
    # near the clean end x_t - alpha x_0 keeps sigma of the digits
    bound = 1e-13 / schedule.sigma(t) ** 2
    torch.testing.assert_close(score, -epsilon / schedule.sigma(t), rtol=1e-9, atol=bound)


@every_frame
@given(seed=lds.seeds(), t=st.floats(0, 999))
def test_estimates_follow_from_the_score_of_the_data(schedule: NoiseSchedule, seed: int, t: float) -> None:
    """Tweedie's formula (Luo 2022, eq. 133), with a score that autograd finds in the density of a mixture."""
    data = mixture(schedule)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    x_t = schedule.add_noise(data.draw((4, 2), generator), noise, t).requires_grad_()
    (score,) = torch.autograd.grad(data.log_prob(x_t, t).sum(), x_t)
    denoised, (_, alpha, sigma) = data(x_t.detach(), t), schedule.point(t)
    torch.testing.assert_close(denoised.noise, -sigma * score, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(alpha * denoised.sample, x_t + sigma**2 * score, rtol=1e-9, atol=1e-10)


@every_frame
@given(seed=lds.seeds(), shares=shares)
def test_the_three_objectives_are_equal(schedule: NoiseSchedule, seed: int, shares: tuple[float, float, float]) -> None:
    """KL of the posteriors of x_0 and of its estimate: as an error of sample, noise, score and v.

    Luo 2022, sec. Three Equivalent Interpretations; Kingma et al. 2021, arXiv 2107.00630, eq. 13.
    """
    s, t, _ = three_times(schedule, shares)
    x_0, _, x_t = path(schedule, seed, t, s)
    guess = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    kl = schedule.posterior(x_0, x_t, t, s).kl(schedule.posterior(guess, x_t, t, s))
    (_, alpha, sigma), snr_s, snr_t = schedule.point(t), math.exp(schedule.log_snr(s)), math.exp(schedule.log_snr(t))

    def error(target: Prediction) -> Tensor:
        true, guessed = (
            ld.convert_prediction(one, x_t, alpha, sigma, source="sample", target=target) for one in (x_0, guess)
        )
        return (true - guessed).square()

    by_noise = 0.5 * (snr_s / snr_t - 1)
    torch.testing.assert_close(kl, 0.5 * (snr_s - snr_t) * error("sample"), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(kl, by_noise * error("epsilon"), rtol=1e-7, atol=1e-9)
    score, guessed_score = ((alpha * one - x_t) / sigma**2 for one in (x_0, guess))
    by_score = by_noise * sigma**2
    torch.testing.assert_close(kl, by_score * (score - guessed_score).square(), rtol=1e-7, atol=1e-9)
    in_v = (alpha / (alpha**2 + sigma**2)) ** 2
    torch.testing.assert_close(kl, by_noise * in_v * error("v_prediction"), rtol=1e-7, atol=1e-9)


@every_frame
def test_the_prior_term_is_what_is_left_of_the_sample(schedule: NoiseSchedule) -> None:
    """KL(q(x_T | x_0) || p(x_T)) = (alpha^2 x_0^2 + sigma^2 - 1 - log sigma^2) / 2, in units of the prior's size."""
    x_0, last = torch.randn(4, 3, dtype=torch.float64), schedule.num_timesteps - 1.0
    _, alpha, sigma = schedule.point(last)
    size = sigma if schedule.frame == "variance_exploding" else 1.0
    prior = Gaussian(torch.zeros_like(x_0), torch.full((4, 1), size**2, dtype=torch.float64))
    ratio = (sigma / size) ** 2
    want = 0.5 * ((alpha * x_0 / size).square() + ratio - 1 - math.log(ratio))
    torch.testing.assert_close(schedule.transition(x_0, -1.0, last).kl(prior), want, rtol=1e-9, atol=1e-12)


@every_frame
def test_ancestral_steps_with_the_exact_variance_keep_the_marginals(schedule: NoiseSchedule) -> None:
    """On normal data p(x_{t-1} | x_t) is normal: its mean and variance lead from one marginal to the next exactly."""
    data = GaussianDenoiser(mean=0.3, std=0.5, knows_variance=True, schedule=schedule)
    sampler = Sampler("ddpm", times=[float(t) for t in range(999, 989, -1)])
    mean, variance = ld.testing.sample_moments(sampler, data)
    _, alpha, sigma = schedule.point(990.0)
    assert mean.item() == pytest.approx(0.3 * alpha, abs=1e-10 * max(1.0, sigma))
    assert variance.item() == pytest.approx((0.5 * alpha) ** 2 + sigma**2, rel=1e-9)


# Frames


@given(seed=lds.seeds(), log_snr=st.floats(-8, 6))
def test_frames_are_rescalings_of_one_process(seed: int, log_snr: float) -> None:
    """At one signal-to-noise ratio x / alpha means the same in every frame (Karras et al. 2022, arXiv 2206.00364)."""
    y = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * math.exp(-log_snr / 2)
    found = []
    for schedule in FRAMES.values():
        t = schedule.timestep(log_snr)
        denoised = mixture(schedule)(y * schedule.alpha(t), t)
        found.append((denoised.sample, denoised.noise))
    for sample, noise in found[1:]:
        torch.testing.assert_close(sample, found[0][0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(noise, found[0][1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_a_walk_is_the_same_in_every_frame(solver: ld.solvers.SolverName) -> None:
    """Solvers step in x / alpha against sigma / alpha: the same log SNR, the same data."""
    log_snr, y = torch.linspace(-8, 5, 11, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    ends = []
    for schedule in FRAMES.values():
        times = schedule.timestep(log_snr)
        first, last = schedule.point(times[0].item()), schedule.point(times[-1].item())
        unit = 1.0 if schedule.frame == "variance_exploding" else first.sigma
        found = Sampler(solver, times=times.tolist()).sample(mixture(schedule), y * unit)
        ends.append(found / last.alpha)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-8, atol=1e-8)


def test_one_euler_step_of_flow_from_pure_noise_is_the_mean_of_the_data() -> None:
    """The velocity is noise - sample: from x_1 along minus it for one unit of time."""
    schedule = NoiseSchedule.flow()
    data, noise = mixture(schedule), torch.randn(4, 2, dtype=torch.float64)
    mean = torch.tensor([-0.13, 0.39], dtype=torch.float64).expand(4, 2)
    velocity = data.predict("flow", noise, 999.0)
    torch.testing.assert_close(noise - velocity, mean, rtol=1e-12, atol=1e-12)
    denoiser = ld.Denoiser(data.network("flow"), schedule, "flow")
    torch.testing.assert_close(Sampler("euler", 1).sample(denoiser, noise), mean, rtol=1e-12, atol=1e-12)
