"""Where the library differs from its peers on purpose, and the number that says who is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final
from unittest import mock

import diffusers
import torch
from torch import Tensor

from latentdiff import CounterNoise, Denoiser, NoiseSchedule, Point, Sampler, draw_noise, guidance, solvers
from latentdiff.solvers import Evaluation, Solver, Stepped, _base
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser, Oracle, convergence, sample_moments, weak_convergence
from measured_orders import LOG_SNR, NORMAL, Row, two_digits
from peers import mixture, walk_of, with_exact_levels
from wide import EIGHT, MODES

LINEAR: Final = NoiseSchedule.linear()
SCALED: Final = NoiseSchedule.scaled_linear()
SCALED_BETAS: Final[dict[str, Any]] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NOISE: Final = draw_noise((16, 8), CounterNoise(1), dtype=torch.float64)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def zero(value: float) -> str:
    """0 for what is rounding alone."""
    return "0" if value < 1e-7 else two_digits(value)


# Running a peer


def peer_of(name: str, steps: int, *, schedule: NoiseSchedule = LINEAR, **arguments: Any) -> tuple[Any, float]:
    """A scheduler of diffusers with tables in float64, and the factor of its first x against ours."""
    peer = getattr(diffusers, name)(**arguments)
    peer.alphas_cumprod = schedule.alphas_cumprod
    if not arguments.get("set_alpha_to_one", True):
        peer.final_alpha_cumprod = schedule.alphas_cumprod[0]
    peer.set_timesteps(steps)
    return peer, with_exact_levels(peer, schedule)


def epsilon_of(data: Oracle) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact noise, as a network that predicts it."""
    return lambda x, t: data(x.double(), float(t)).noise.to(x.dtype)


def times_of(peer: Any, end: float = -1.0) -> list[float]:
    """The peer's times, each once, and the end."""
    return [*dict.fromkeys(float(t) for t in peer.timesteps), end]


def noise_for(data: Oracle) -> Tensor:
    return NOISE if isinstance(data, GaussianDenoiser) else NOISE[:, :1]


def peer_error(data: Oracle, peer: Any, factor: float, end: float = -1.0) -> float:
    """Root mean square error of the peer's walk, against the flow."""
    x = noise_for(data)
    found = walk_of(peer, epsilon_of(data), x * factor, peer.timesteps, lambda k: torch.zeros_like(x))
    return rms(found - data.flow_map(x, float(peer.timesteps[0]), end))


def our_error(data: Oracle, peer: Any, solver: Solver) -> float:
    """That of our walk on the same times to the clean end."""
    x, times = noise_for(data), times_of(peer)
    return rms(Sampler(solver, times=times).sample(data, x) - data.flow_map(x, times[0], -1.0))


def peer_variance(data: GaussianDenoiser, peer: Any, factor: float, **options: float) -> float:
    """The variance of what a peer draws, exactly: in row k of a batch draw number k is 1 and all others are 0."""
    first = data.schedule.point(float(peer.timesteps[0]))
    mean, std = float(data.mean), float(data.std)
    x = torch.full((len(peer.timesteps) + 2, 1), first.alpha * mean, dtype=torch.float64)
    x[1] += ((first.alpha * std) ** 2 + first.sigma**2) ** 0.5
    pulses = torch.eye(len(x), dtype=torch.float64)[:, 2:]
    ends = walk_of(peer, epsilon_of(data), x * factor, peer.timesteps, lambda k: pulses[:, [k]], **options)
    return (ends[1:] - ends[0]).square().sum().item()


def half_normal(schedule: NoiseSchedule = LINEAR, std: float = 0.5) -> GaussianDenoiser:
    return GaussianDenoiser(mean=0.3, std=std, schedule=schedule)


# Deterministic walks


def ddim_stride() -> list[str]:
    """`prev_t = t - T // n`, not the next time."""
    peer, factor = peer_of("DDIMScheduler", 640, timestep_spacing="trailing", clip_sample=False)
    data = replace(EIGHT, schedule=LINEAR)
    theirs, ours = peer_error(data, peer, factor), our_error(data, peer, solvers.DDIM())
    return ["error of DDIM, 640 trailing steps", two_digits(theirs), two_digits(ours)]


def final_alpha() -> list[str]:
    """The walk ends at the noise of t = 0."""
    data = half_normal(SCALED, std=0.0)
    peer, factor = peer_of(
        "DDIMScheduler", 20, schedule=SCALED, set_alpha_to_one=False, clip_sample=False, **SCALED_BETAS
    )
    theirs, ours = peer_error(data, peer, factor), our_error(data, peer, solvers.DDIM())
    return ["error on data in a point, 20 steps", two_digits(theirs), zero(ours)]


def clipping() -> list[str]:
    """x_0 clipped to [-1, 1], though the data, as latents do, reach beyond."""
    peer, factor = peer_of("DDIMScheduler", 50)
    data = replace(EIGHT, schedule=LINEAR)
    theirs, ours = peer_error(data, peer, factor), our_error(data, peer, solvers.DDIM())
    return ["error of DDIM as it comes, spreads up to 1.6, 50 steps", two_digits(theirs), two_digits(ours)]


def lower_order_final() -> list[str]:
    """The last step is of first order below 15 steps only, if it does not go to sigma = 0."""
    theirs, ours, data = [], [], replace(MODES, schedule=LINEAR)
    for steps in (14, 15):
        peer, factor = peer_of(
            "DPMSolverMultistepScheduler", steps, timestep_spacing="trailing", final_sigmas_type="sigma_min"
        )
        theirs.append(two_digits(peer_error(data, peer, factor, end=0.0)))
        ours.append(two_digits(our_error(data, peer, solvers.DPMpp2M())))
    return [
        "error of DPM-Solver++(2M), 14 and 15 trailing steps; there to t = 0, here to the clean end",
        ", ".join(theirs), ", ".join(ours),
    ]  # fmt: skip


def unipc_to_the_end() -> list[str]:
    """B(h) = -h is infinite there."""
    peer, factor = peer_of("UniPCMultistepScheduler", 20, solver_type="bh1", timestep_spacing="trailing")
    data = replace(EIGHT, schedule=LINEAR)
    theirs, ours = peer_error(data, peer, factor), our_error(data, peer, solvers.UniPC(variant="bh1"))
    return ["error of UniPC with bh1 to the clean end, 20 steps", two_digits(theirs), two_digits(ours)]


def third_order() -> list[str]:
    """Half of M_2."""
    slopes = []
    for published in (True, False):
        coarse, fine = convergence(
            solvers.DPMpp3M(published=published), EIGHT, steps=(160, 320), log_snr=LOG_SNR
        ).errors
        slopes.append(f"{math.log2(coarse / fine):.2f}")
    return ["order of DPM-Solver++(3M)", *slopes]


def plms() -> list[str]:
    """Adams-Bashforth's weights in a variable in which the path's equation is not dy/dt = noise."""
    data, errors = replace(EIGHT, schedule=LINEAR), []
    for steps in (160, 320):
        times = torch.linspace(900, 100, steps + 1, dtype=torch.float64).tolist()
        found = Sampler(solvers.PLMS(), times=times).sample(data, NOISE)
        errors.append(rms(found - data.flow_map(NOISE, 900.0, 100.0)))
    return ["order of PLMS on even times, t from 900 to 100", "4 in name", f"{math.log2(errors[0] / errors[1]):.2f}"]


def heun_from_pure_noise() -> list[str]:
    """The slope at a noise level of 20,000 says nothing about 60."""
    schedule, errors = NoiseSchedule.cosine(), []
    for farthest in (math.inf, _base.FARTHEST_LEVEL):
        with mock.patch.object(_base, "FARTHEST_LEVEL", farthest):
            data = replace(EIGHT, schedule=schedule)
            errors.append(convergence("heun", data, steps=(10, 20), spacing="trailing").errors[1])
    return ["error of Heun on the cosine schedule, 20 trailing steps", *map(two_digits, errors)]


# Walks that draw noise


def sde_sign() -> list[str]:
    """- 1/2 for + 1/2 beside the second difference."""
    arguments: dict[str, Any] = {"solver_order": 3, "solver_type": "heun", "algorithm_type": "sde-dpmsolver++"}
    peer, factor = peer_of(
        "DPMSolverMultistepScheduler", 100, timestep_spacing="trailing", final_sigmas_type="zero", **arguments
    )
    theirs = peer_variance(half_normal(), peer, factor) / 0.25 - 1
    ours = sample_moments(Sampler("dpmpp_3m_sde", times=times_of(peer)), half_normal())[1].item() / 0.25 - 1
    return ["variance error of SDE-DPM-Solver++(3M), 100 trailing steps", f"{theirs:+.3f}", f"{ours:+.3f}"]


def fixed_large() -> list[str]:
    """Noise is left out at t = 0, not in the last step; with trailing times the last one is not 0."""
    data = half_normal(std=0.0)
    peer, factor = peer_of(
        "DDPMScheduler", 20, variance_type="fixed_large", timestep_spacing="trailing", clip_sample=False
    )
    theirs = peer_variance(data, peer, factor) ** 0.5
    ours = sample_moments(Sampler(solvers.DDPM(variance="fixed_large"), times=times_of(peer)), data)[1].item() ** 0.5
    return ["standard deviation of DDPM's samples of a point, 20 trailing steps", two_digits(theirs), zero(ours)]


def churn() -> list[str]:
    """The network is asked before the noise is added, and what was added is not taken away again."""
    data = half_normal(std=0.0)
    peer, factor = peer_of("EulerDiscreteScheduler", 20, timestep_spacing="trailing")
    theirs = peer_variance(data, peer, factor, s_churn=10.0) ** 0.5
    ours = sample_moments(Sampler(solvers.EDM(churn=10.0), times=times_of(peer)), data)[1].item() ** 0.5
    return ["standard deviation of samples of a point, churn 10 in 20 trailing steps", two_digits(theirs), zero(ours)]


@dataclass(frozen=True, kw_only=True)
class _OtherNoise(solvers.DPMppSDE):
    """dpmpp_sde with other noise for the middle and the end of a step."""

    evaluation: type[Evaluation] = Evaluation

    def step(self, denoise: Evaluation, x: Tensor, now: Point, to: Point, state: object) -> Stepped:
        other = self.evaluation(denoise.denoiser, denoise.condition, denoise.generator, denoise.index, denoise.steps)
        return solvers.DPMppSDE.step(self, other, x, now, to, state)


class _Independent(Evaluation):
    def brownian(self, x: Tensor, *points: Point) -> list[Tensor]:
        return [self.noise(x, number) for number in range(len(points) - 1)]


class _InNoiseLevel(Evaluation):
    """One Brownian path in the time sigma / alpha, as k-diffusion draws."""

    def brownian(self, x: Tensor, *points: Point) -> list[Tensor]:
        times = [-point.noise_level for point in points]
        value, drawn = torch.zeros_like(x), []
        for number, (a, b) in enumerate(pairwise(times)):
            value = value + self.noise(x, number) * (b - a) ** 0.5
            drawn.append(value / (b - times[0]) ** 0.5)
        return drawn


def _weak(evaluation: type[Evaluation]) -> str:
    errors = weak_convergence(_OtherNoise(evaluation=evaluation), NORMAL, steps=(160, 320), log_snr=LOG_SNR).errors
    return f"{math.log2(errors[0] / errors[1]):.2f}"


def independent_draws() -> list[str]:
    return ["weak order of dpmpp_sde, noises of a step drawn independently", _weak(_Independent), _weak(Evaluation)]


def brownian_time() -> list[str]:
    return ["weak order of dpmpp_sde, a path in sigma / alpha instead of SNR", _weak(_InNoiseLevel), _weak(Evaluation)]


# Times and schedules


def steps_made() -> list[str]:
    """`range(0, T, T // n) + 1`: how many n of 1 ... 1000 give another number of times, or one beyond the table."""
    theirs = sum(len(times := range(1, 1001, 1000 // n)) != n or times[-1] > 999 for n in range(1, 1001))
    ours = sum(len(Sampler("ddim", n, "leading").timesteps(LINEAR)) != n + 1 for n in range(1, 1001))
    return ["numbers of steps, of 1 ... 1000, that are not what is made", str(theirs), str(ours)]


def terminal_snr() -> list[str]:
    """The same betas whatever T."""
    theirs = [diffusers.DDPMScheduler(num_train_timesteps=T).alphas_cumprod[-1].item() for T in (100, 1000)]
    ours = [NoiseSchedule.linear(T).alphas_cumprod[-1].item() for T in (100, 1000)]
    return [
        "alpha-bar at the last time, T = 100 and 1000",
        *(", ".join(map(two_digits, pair)) for pair in (theirs, ours)),
    ]


def zero_terminal_snr() -> list[str]:
    """Epsilon says nothing about the sample in pure noise."""
    peer = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    peer.set_timesteps(20)
    found = walk_of(peer, lambda x, t: x, NOISE, peer.timesteps, lambda k: NOISE)
    try:
        ours = str(Denoiser(lambda x, t, c: x, LINEAR.zero_terminal_snr(), "epsilon").prediction)
    except ValueError:
        ours = "refused"
    return ["samples of a network that predicts epsilon", "NaN" if found.isnan().all() else f"{rms(found):.2g}", ours]


# Guidance


def projected() -> list[str]:
    """The projected update on the unconditional estimate, times the scale."""
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance  # older versions have none

    data: MixtureDenoiser = mixture(LINEAR)
    x, labels = draw_noise((16, 3), CounterNoise(1), dtype=torch.float64), torch.arange(16) % 3
    given, free = data(x, 500.0, labels).sample, data(x, 500.0).sample
    theirs = normalized_guidance(given, free, 1.0, eta=0.0)
    ours = guidance.Projected(data, 1 + 1e-9)(x, 500.0, labels).sample
    away = [rms(one - given) / rms(given - free) for one in (theirs, ours)]
    return ["distance of scale 1 from the conditional estimate", two_digits(away[0]), zero(away[1])]


DIFFERENCES: Final[dict[str, Row]] = {
    "DDIM's previous time": ddim_stride,
    "final alpha": final_alpha,
    "clipping as a default": clipping,
    "`lower_order_final`": lower_order_final,
    "UniPC to sigma = 0": unipc_to_the_end,
    "third order": third_order,
    "PLMS": plms,
    "pure noise": heun_from_pure_noise,
    "SDE, third order": sde_sign,
    "DDPM `fixed_large`": fixed_large,
    "churn": churn,
    "two draws of a step": independent_draws,
    "the path's time": brownian_time,
    "steps asked and made": steps_made,
    "terminal SNR": terminal_snr,
    "zero terminal SNR": zero_terminal_snr,
    "APG": projected,
}
