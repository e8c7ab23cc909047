"""How fast the solvers' errors fall, and what the spacing of times does to them: rows of the page "Measured"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Final

import torch

from latentdiff import CounterNoise, NoiseSchedule, Sampler, draw_noise, solvers
from latentdiff.guidance import ClassifierFree
from latentdiff.solvers import Solver, Spacing
from latentdiff.solvers._base import beginning_of
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser, convergence, sample_moments, weak_convergence
from wide import EIGHT, MODES, WIDE

Row = Callable[[], list[str]]
"""The cells of a row behind its name, computed when asked for."""

FLOW: Final[dict[str, Solver]] = {
    "ddim": solvers.DDIM(),
    "euler": solvers.Euler(),
    "euler_ancestral, eta 0": solvers.EulerAncestral(eta=0.0),
    "plms": solvers.PLMS(),
    "heun": solvers.Heun(),
    "edm": solvers.EDM(),
    "dpm_2": solvers.DPM2(),
    "dpm_2_ancestral, eta 0": solvers.DPM2Ancestral(eta=0.0),
    "dpmpp_2s": solvers.DPMpp2S(),
    "dpmpp_2s_ancestral, eta 0": solvers.DPMpp2SAncestral(eta=0.0),
    "dpmpp_sde, eta 0": solvers.DPMppSDE(eta=0.0),
    "lms, order 2": solvers.LMS(order=2),
    "lms, order 3": solvers.LMS(order=3),
    "lms": solvers.LMS(),
    "deis, order 1": solvers.DEIS(order=1),
    "deis, order 2": solvers.DEIS(order=2),
    "deis": solvers.DEIS(),
    "dpmpp_2m": solvers.DPMpp2M(),
    "dpmpp_2m_sde, eta 0": solvers.DPMpp2MSDE(eta=0.0),
    "dpmpp_3m": solvers.DPMpp3M(),
    "dpmpp_3m, published": solvers.DPMpp3M(published=True),
    "dpmpp_3m_sde, eta 0": solvers.DPMpp3MSDE(eta=0.0),
    "unipc, predictor of order 1": solvers.UniPC(predictor_order=1),
    "unipc": solvers.UniPC(),
    "unipc, bh1": solvers.UniPC(variant="bh1"),
    "unipc, predictor of order 3": solvers.UniPC(predictor_order=3),
}
"""What follows the probability flow."""

DIFFUSION: Final[dict[str, Solver]] = {
    "ddpm": solvers.DDPM(),
    "ddpm, fixed_large": solvers.DDPM(variance="fixed_large"),
    "ddim, eta 1": solvers.DDIM(eta=1.0),
    "euler_ancestral": solvers.EulerAncestral(),
    "edm, churn 10": solvers.EDM(churn=10.0),
    "dpm_2_ancestral": solvers.DPM2Ancestral(),
    "dpmpp_2s_ancestral": solvers.DPMpp2SAncestral(),
    "dpmpp_sde": solvers.DPMppSDE(),
    "dpmpp_2m_sde": solvers.DPMpp2MSDE(),
    "dpmpp_2m_sde, heun": solvers.DPMpp2MSDE(kind="heun"),
    "dpmpp_3m_sde": solvers.DPMpp3MSDE(),
}
"""What draws noise on the way."""

TWICE: Final = (solvers.Heun, solvers.EDM, solvers.DPM2, solvers.DPM2Ancestral, solvers.DPMpp2S)
TWICE_NOISY: Final = (solvers.DPMpp2SAncestral, solvers.DPMppSDE)
NORMAL: Final = GaussianDenoiser(mean=torch.tensor(0.3), std=torch.tensor(0.5), schedule=WIDE)
LOG_SNR: Final = (-10.6, 4.0)
"""Where the walks of the tables of orders begin and end: noise levels of 200 and 0.14."""


def calls_of(solver: Solver) -> int:
    """Calls of the network in a step."""
    return 2 if isinstance(solver, (*TWICE, *TWICE_NOISY)) else 1


def spacings_of(solver: Solver) -> list[str]:
    """The default spacings, by how a schedule begins."""
    frames = solver.default_spacing
    return [f"`{frames[f]}`" for f in ("variance_preserving", "pure_noise", "variance_exploding", "flow")]


def two_digits(value: float) -> str:
    """Such as 0.010, 1.2e-05."""
    return "NaN" if math.isnan(value) else f"{value:#.2g}".rstrip(".")


# Orders


def flow_order(solver: Solver) -> list[str]:
    """Stated order, calls a step, slopes and errors at 20 steps on both data, default spacings."""
    slopes, errors = [], []
    for data in (EIGHT, MODES):
        found = convergence(solver, data, steps=(20, 160, 320), log_snr=LOG_SNR).errors
        slopes.append(f"{math.log2(found[1] / found[2]):.2f}")
        errors.append(two_digits(found[0]))
    return [str(solver.order), str(calls_of(solver)), *slopes, *errors, *spacings_of(solver)]


def adaptive_order() -> list[str]:
    """What error its default tolerance leads to, in one step of the walk."""
    solver = solvers.DPMAdaptive()
    errors = [convergence(solver, data, steps=(1, 2), log_snr=LOG_SNR).errors[0] for data in (EIGHT, MODES)]
    return [str(solver.order), "its own", "", "", *map(two_digits, errors), *spacings_of(solver)]


def weak_order(solver: Solver) -> list[str]:
    """Stated weak order, calls a step, slope, error of the variance at 20 steps, default spacings."""
    coarse, fine = weak_convergence(solver, NORMAL, steps=(160, 320), log_snr=LOG_SNR).errors
    grid = torch.linspace(*LOG_SNR, 21, dtype=torch.float64)
    sampler = Sampler(solver, times=WIDE.timestep(grid).tolist())
    end = WIDE.point(sampler.timesteps(WIDE)[-1].item())
    right = 0.25 + end.sigma**2
    error = sample_moments(sampler, NORMAL)[1].item() / right - 1
    slope = f"{math.log2(coarse / fine):.2f}"
    return [str(solver.weak_order), str(calls_of(solver)), slope, f"{error:+.4f}", *spacings_of(solver)]


ORDERS: Final[dict[str, Row]] = {
    **{name: partial(flow_order, solver) for name, solver in FLOW.items()},
    "dpm_adaptive": adaptive_order,
}
WEAK_ORDERS: Final[dict[str, Row]] = {name: partial(weak_order, solver) for name, solver in DIFFUSION.items()}


# Spacings

SCHEDULES: Final = {
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
    "flow": NoiseSchedule.flow(),
    "edm": NoiseSchedule.edm(),
}
SPACINGS: Final[tuple[Spacing, ...]] = (
    "trailing", "leading", "linspace", "karras", "logsnr", "polyexponential", "beta",
)  # fmt: skip
CALLS: Final = (10, 20, 40)
SPACED: Final = (
    "ddim", "plms", "heun", "dpm_2", "dpmpp_2s", "lms", "deis", "dpmpp_2m", "dpmpp_3m", "dpmpp_3m, published", "unipc",
    "ddpm", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde",
)  # fmt: skip


@cache
def whole_walk(name: str, schedule_name: str, spacing: Spacing) -> tuple[float, ...]:
    """Errors of walks of 10, 20 and 40 calls from T - 1 to the clean end.

    Of the flow: the geometric mean over both data. Of the diffusion: of mean and variance, on normal data.
    """
    solver, schedule = (FLOW | DIFFUSION)[name], SCHEDULES[schedule_name]
    steps = [calls // calls_of(solver) for calls in CALLS]
    normal = replace(EIGHT, schedule=schedule)
    if solver.stochastic:
        return weak_convergence(solver, normal, steps=steps, spacing=spacing).errors
    both = (normal, replace(MODES, schedule=schedule))
    pair = [convergence(solver, data, steps=steps, spacing=spacing).errors for data in both]
    return tuple((a * b) ** 0.5 for a, b in zip(*pair, strict=True))


def spacing_row(name: str, schedule_name: str) -> list[str]:
    """One cell for each spacing: three errors, in bold for the default."""
    default = (FLOW | DIFFUSION)[name].default_spacing[beginning_of(SCHEDULES[schedule_name])]
    cells = []
    for spacing in SPACINGS:
        cell = ", ".join(two_digits(error) for error in whole_walk(name, schedule_name, spacing))
        cells.append(f"**{cell}**" if spacing == default else cell)
    return cells


SPACING_TABLES: Final[dict[str, dict[str, Row]]] = {
    schedule: {name: partial(spacing_row, name, schedule) for name in SPACED} for schedule in SCHEDULES
}


def default_row(name: str) -> list[str]:
    """How many times the error of the default spacing is that of the best one, by the mean over 10, 20 and 40 calls."""
    cells = []
    for schedule in SCHEDULES:
        means = {s: math.prod(whole_walk(name, schedule, s)) ** (1 / len(CALLS)) for s in SPACINGS}
        default = (FLOW | DIFFUSION)[name].default_spacing[beginning_of(SCHEDULES[schedule])]
        best = min(means, key=means.__getitem__)
        ratio = means[default] / means[best]
        cells.append(f"`{default}`" if ratio < 1.1 else f"`{default}`; {ratio:.1f} of `{best}`")
    return cells


DEFAULTS: Final[dict[str, Row]] = {name: partial(default_row, name) for name in SPACED}


# Guidance

GUIDED: Final[dict[str, tuple[str, Spacing | None]]] = {
    **{n: (n, None) for n in ("ddim", "heun", "dpm_2", "dpmpp_2s", "lms", "deis", "dpmpp_2m", "dpmpp_3m", "unipc")},
    "lms, logsnr": ("lms", "logsnr"),
    "deis, logsnr": ("deis", "logsnr"),
    "dpmpp_2m, trailing": ("dpmpp_2m", "trailing"),
    "dpmpp_2m, beta": ("dpmpp_2m", "beta"),
    "unipc, trailing": ("unipc", "trailing"),
    "unipc, beta": ("unipc", "beta"),
}
"""Solvers and spacings."""

SCALES: Final = (1.0, 3.0, 7.5)
GUIDED_SCHEDULES: Final = ("scaled_linear", "cosine", "flow")
LABELS: Final = torch.arange(64) % 3


@cache
def guided(schedule_name: str, scale: float) -> tuple[ClassifierFree, torch.Tensor]:
    """Three classes in two dimensions, guided, and where 1000 steps of third order lead `NOISE`."""
    data = MixtureDenoiser(
        weights=torch.tensor([0.5, 0.3, 0.2]),
        means=torch.tensor([[-1.0, 0.2], [-0.3, 0.4], [1.0, -0.8]]),
        stds=torch.tensor([0.2, 0.35, 0.3]),
        schedule=SCHEDULES[schedule_name],
    )
    denoiser = ClassifierFree(data, scale)
    return denoiser, Sampler("unipc", 1000).sample(denoiser, noise(), LABELS)


def noise() -> torch.Tensor:
    return draw_noise((64, 2), CounterNoise(2), dtype=torch.float64)


def guided_row(name: str, schedule_name: str) -> list[str]:
    """Errors of 10, 20 and 40 estimates for each scale."""
    solver, cells = FLOW[GUIDED[name][0]], []
    for scale in SCALES:
        denoiser, want = guided(schedule_name, scale)
        samplers = [Sampler(solver, calls // calls_of(solver), GUIDED[name][1]) for calls in CALLS]
        errors = [(one.sample(denoiser, noise(), LABELS) - want).square().mean().sqrt().item() for one in samplers]
        cells.append(", ".join(map(two_digits, errors)))
    return cells


GUIDANCE_TABLES: Final[dict[str, dict[str, Row]]] = {
    schedule: {name: partial(guided_row, name, schedule) for name in GUIDED} for schedule in GUIDED_SCHEDULES
}
