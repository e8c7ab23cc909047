"""The library's solvers and the field's own on the same times and the same noise: what tests and tables compare."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, get_args
from unittest import mock

import diffusers
import torch
from torch import Tensor

import references
from latentdiff import CounterNoise, Denoiser, NoiseSchedule, Sampler, draw_noise, solvers
from latentdiff.solvers import Solver, Spacing
from latentdiff.solvers._base import FARTHEST_LEVEL
from latentdiff.testing import MixtureDenoiser

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "flow": NoiseSchedule.flow(shift=3.0),
    "edm": NoiseSchedule.edm(),
}
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

PAIRS: dict[str, tuple[Solver, Callable[..., Tensor]]] = {
    "ddim": (solvers.DDIM(), references.euler),
    "ddim, eta 0.7": (solvers.DDIM(eta=0.7), partial(references.euler, eta=0.7)),
    "ddpm": (solvers.DDPM(variance="fixed_small"), references.ddpm),
    "euler": (solvers.Euler(), references.euler),
    "euler_ancestral": (solvers.EulerAncestral(), partial(references.euler, eta=1.0)),
    "heun": (solvers.Heun(), references.heun),
    "edm": (solvers.EDM(), references.heun),
    "edm, churn": (solvers.EDM(churn=4.0), partial(references.heun, churn=4.0)),
    "dpm_2": (solvers.DPM2(), references.dpm_2),
    "dpm_2_ancestral": (solvers.DPM2Ancestral(), partial(references.dpm_2, eta=1.0)),
    "dpm_2_ancestral, eta 0.5": (solvers.DPM2Ancestral(eta=0.5), partial(references.dpm_2, eta=0.5)),
    "lms": (solvers.LMS(), references.lms),
    "lms 2": (solvers.LMS(order=2), partial(references.lms, order=2)),
    "deis": (solvers.DEIS(), references.deis),
    "deis 2": (solvers.DEIS(order=2), partial(references.deis, order=2)),
    "dpmpp_2s": (solvers.DPMpp2S(), references.dpmpp_2s),
    "dpmpp_2s_ancestral": (solvers.DPMpp2SAncestral(), partial(references.dpmpp_2s, eta=1.0)),
    "dpmpp_sde": (solvers.DPMppSDE(), references.dpmpp_sde),
    "dpmpp_sde, eta 0.6": (solvers.DPMppSDE(eta=0.6), partial(references.dpmpp_sde, eta=0.6)),
    "dpmpp_2m": (solvers.DPMpp2M(), references.dpmpp_2m),
    "dpmpp_2m_sde": (solvers.DPMpp2MSDE(), partial(references.dpmpp_2m, eta=1.0)),
    "dpmpp_2m_sde, heun": (solvers.DPMpp2MSDE(kind="heun"), partial(references.dpmpp_2m, eta=1.0, kind="heun")),
    "dpmpp_3m": (solvers.DPMpp3M(), partial(references.dpmpp_3m, second=2.0)),
    "dpmpp_3m, published": (solvers.DPMpp3M(published=True), references.dpmpp_3m),
    "dpmpp_3m_sde": (solvers.DPMpp3MSDE(), partial(references.dpmpp_3m, eta=1.0)),
    "dpmpp_3m_sde, eta 0.4": (solvers.DPMpp3MSDE(eta=0.4), partial(references.dpmpp_3m, eta=0.4)),
    "unipc": (solvers.UniPC(), references.unipc),
    "unipc 1": (solvers.UniPC(predictor_order=1), partial(references.unipc, order=1)),
    "unipc 3": (solvers.UniPC(predictor_order=3), partial(references.unipc, order=3)),
    "unipc bh1": (solvers.UniPC(variant="bh1"), partial(references.unipc, variant="bh1")),
    "lcm": (solvers.LCM(timestep_scaling=None), references.lcm),
}


def mixture(schedule: NoiseSchedule) -> MixtureDenoiser:
    return MixtureDenoiser(
        weights=torch.tensor([0.5, 0.3, 0.2]),
        means=torch.tensor([[-1.0, 0.2, 0.5], [-0.3, 0.4, -0.6], [1.0, -0.8, 0.1]]),
        stds=torch.tensor([0.2, 0.35, 0.3]),
        schedule=schedule,
    )


def against_reference(
    name: str, schedule: NoiseSchedule, steps: int, spacing: Spacing, to_clean: bool = True
) -> tuple[Tensor, Tensor, float] | None:
    """Ends of both walks and how many times more rounding the longest step brings; None where no step is left.

    A nonlinear denoiser, in x here and in x / alpha there.
    """
    solver, reference = PAIRS[name]
    times = Sampler(solver, steps, spacing).timesteps(schedule).tolist()
    times = [t for t in times if schedule.point(t).noise_level <= FARTHEST_LEVEL]  # no reference starts in pure noise
    times = times if to_clean else times[:-1]
    if len(times) < 2:
        return None
    data, seed = mixture(schedule), CounterNoise(5)
    levels = [schedule.point(t).noise_level for t in times]
    x = draw_noise((4, 3), CounterNoise(1), dtype=torch.float64)

    def denoise(y: Tensor, level: float) -> Tensor:
        t = -1.0 if level == 0 else schedule.timestep(-2 * references.log(level))
        return data(y * schedule.alpha(t), t).sample

    def noise(step: int, draw: int) -> Tensor:
        return draw_noise(x.shape, seed, step=(step + 1) * 256 + draw, dtype=torch.float64)

    start, end = schedule.point(times[0]), schedule.point(times[-1])
    begin = x * start.sigma if schedule.frame == "variance_exploding" else x
    if "churn" in name:
        highest = schedule.point(schedule.num_timesteps - 1.0).noise_level
        reference = partial(reference, ceiling=min(0.99 * FARTHEST_LEVEL, highest))
    want = reference(denoise, begin / start.alpha, levels, noise) * end.alpha
    got = Sampler(solver, times=times).sample(data, x, generator=seed)
    return got, want, max([1.0, *(a / b / 100 for a, b in pairwise(levels) if b)])  # a long step loses as many digits


def network(x: Tensor, t: Tensor | float, condition: object = None) -> Tensor:
    """A made-up network: smooth, not linear, different at all times."""
    share = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *(1,) * (x.ndim - 1)) / 1000
    return (torch.tanh(x * (1 - share)) * 0.3 + 0.9 * x * share).to(x.dtype)


STEPS = 20
MULTISTEP: dict[str, Any] = {"lower_order_final": False, "final_sigmas_type": "zero"}
EXACT, ROUNDED = 1e-10, 2e-5
"""Peers that work in float64 when their tables are, and those that round samples or levels to float32."""
PEERS: dict[str, tuple[Solver, str, dict[str, Any], float]] = {
    "ddim": (solvers.DDIM(), "DDIMScheduler", {"clip_sample": False}, EXACT),
    "ddpm": (solvers.DDPM(), "DDPMScheduler", {"clip_sample": False}, 1e-9),  # adds noise of size 1e-10 at the end
    "plms": (solvers.PLMS(), "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, EXACT),
    "euler": (solvers.Euler(), "EulerDiscreteScheduler", {}, ROUNDED),
    "euler_ancestral": (solvers.EulerAncestral(), "EulerAncestralDiscreteScheduler", {}, ROUNDED),
    "heun": (solvers.Heun(), "HeunDiscreteScheduler", {}, EXACT),
    "lms": (solvers.LMS(), "LMSDiscreteScheduler", {}, 1e-4),  # integrates its coefficients to 1e-4
    "deis": (solvers.DEIS(), "DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}, EXACT),
    "dpmpp_2m": (solvers.DPMpp2M(), "DPMSolverMultistepScheduler", MULTISTEP, ROUNDED),
    "dpmpp_2m_sde": (
        solvers.DPMpp2MSDE(), "DPMSolverMultistepScheduler",
        MULTISTEP | {"algorithm_type": "sde-dpmsolver++"}, ROUNDED,
    ),
    "dpmpp_3m": (
        solvers.DPMpp3M(published=True), "DPMSolverMultistepScheduler",
        MULTISTEP | {"solver_order": 3, "solver_type": "heun"}, ROUNDED,
    ),
    "unipc": (solvers.UniPC(), "UniPCMultistepScheduler", {"final_sigmas_type": "zero"}, EXACT),
    "unipc 3": (
        solvers.UniPC(predictor_order=3), "UniPCMultistepScheduler",
        {"final_sigmas_type": "zero", "solver_order": 3}, EXACT,
    ),
    "lcm": (solvers.LCM(), "LCMScheduler", {"clip_sample": False, "set_alpha_to_one": True}, 1e-6),  # c_out in float32
}  # fmt: skip
ENDS = {"deis": 0.0}
"""Where a peer's walk ends, if not at the clean end."""
LAST_STEPS = {"unipc 3": 2}
"""How many of a peer's last steps are of a lower order (it divides by zero without that)."""


def walk_of(
    peer: Any,
    network: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    noises: Callable[[int], Tensor],
    **options: float,
) -> Tensor:
    """The peer's walk, each of its draws one of `noises`."""
    draws = iter(range(1000))
    module = importlib.import_module(type(peer).__module__)

    def drawn(*shape: object, **rest: object) -> Tensor:
        return noises(next(draws))

    with mock.patch.object(module, "randn_tensor", drawn, create=True):
        for t in times:
            x = peer.step(network(peer.scale_model_input(x, t), t), t, x, **options).prev_sample
    return x.double()


def with_exact_levels(peer: Any, schedule: NoiseSchedule) -> float:
    """Put the exact noise levels in place of the float32 ones next to them; the factor of its first x against ours."""
    if not hasattr(peer, "sigmas"):
        return 1.0
    whole = torch.arange(schedule.num_timesteps)
    levels = torch.cat([torch.zeros(1, dtype=torch.float64), (-schedule.log_snr(whole) / 2).exp()])
    peer.sigmas = levels[(levels - peer.sigmas.double()[:, None]).abs().argmin(1)]
    return (1 + peer.sigmas[0].item() ** 2) ** 0.5 if float(peer.init_noise_sigma) != 1 else 1.0


def against_diffusers(name: str) -> tuple[Tensor, Tensor]:
    """Ends of both walks: same betas, same whole times, one network, the same draws."""
    solver, peer_name, arguments, _ = PEERS[name]
    spacing = {} if name == "lcm" else {"timestep_spacing": "trailing"}
    peer = getattr(diffusers, peer_name)(**arguments, **spacing)
    schedule = NoiseSchedule.linear()
    peer.alphas_cumprod = schedule.alphas_cumprod
    peer.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    peer.set_timesteps(STEPS)
    scale = with_exact_levels(peer, schedule)
    left_out = LAST_STEPS.get(name, 0)
    times = [*dict.fromkeys(float(t) for t in peer.timesteps), ENDS.get(name, -1.0)][: STEPS + 1 - left_out]
    x, seed = draw_noise((2, 3, 5), CounterNoise(1), dtype=torch.float64), CounterNoise(3)
    got = Sampler(solver, times=times).sample(Denoiser(network, schedule), x, generator=seed)

    def noises(step: int) -> Tensor:
        return draw_noise(x.shape, seed, step=(step + 1) * 256, dtype=torch.float64)

    return got, walk_of(peer, network, x * scale, peer.timesteps[: len(peer.timesteps) - left_out], noises)
