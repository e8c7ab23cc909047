"""The contract of a noise schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentdiff._schedule import FRAMES, NoiseSchedule
from latentdiff.testing._checking import require, require_close


def check_schedule(schedule: NoiseSchedule) -> None:
    r"""Require what every schedule promises.

    Log SNR falls from infinity at t = -1, `timestep` is its inverse, alpha and sigma have its ratio and their frame's
    rule, t = -1 is clean; the tables are float64 `[T]`, agree with the functions and are copies; a number, one time for
    all and a time for each give the same; times out of -1 ... T - 1 are refused; `config` builds the schedule again.

    Args:
        schedule: A `NoiseSchedule`, or another object of its interface.

    Raises:
        AssertionError: If it does not, saying what.
    """
    times = _times(schedule)
    _check_functions(schedule, times)
    _check_ends(schedule)
    _check_tables(schedule)
    _check_refused(schedule)
    again = type(schedule).from_config(schedule.config)
    require(again == schedule, f"{schedule}: from_config(config) must be the schedule again")


def _times(schedule: NoiseSchedule) -> Tensor:
    """Whole times and some between, rising, without the clean end."""
    last = schedule.num_timesteps - 1
    whole = torch.linspace(0, last, min(schedule.num_timesteps, 257), dtype=torch.float64, device="cpu").round()
    between = torch.linspace(-0.999, last, 101, dtype=torch.float64, device="cpu")
    times: Tensor = torch.cat([whole, between]).unique()
    return times


def _check_functions(schedule: NoiseSchedule, t: Tensor) -> None:
    log_snr, (alpha, sigma) = schedule.log_snr(t), schedule.scales(t)
    for name, values in (("log_snr", log_snr), ("alpha", alpha), ("sigma", sigma)):
        require(values.dtype == torch.float64, f"{schedule}: {name} must be float64, got {values.dtype}")
        require(values.shape == t.shape, f"{schedule}: {name} must be shaped like t, got {list(values.shape)}")
    require(bool((log_snr.diff() < 0).all()), f"{schedule}: log_snr must fall")
    # log SNR near its ends is the log of a difference: 1e-7 of a step is what float64 resolves
    require_close(schedule.timestep(log_snr), t, 1e-7, f"{schedule}: timestep must be the inverse of log_snr")
    ratio = torch.exp(log_snr / 2) * sigma
    require_close(ratio, alpha, 1e-9, f"{schedule}: alpha must be sigma * exp(log_snr / 2)")
    require_close(torch.stack(schedule.scales(t)), torch.stack([schedule.alpha(t), schedule.sigma(t)]), 0.0, "scales")
    require(schedule.frame in FRAMES, f"{schedule}: frame must be one of {FRAMES}, got {schedule.frame!r}")
    rule = {
        "variance_preserving": alpha.square() + sigma.square(),
        "variance_exploding": alpha,
        "flow": alpha + sigma,
    }[schedule.frame]
    require_close(rule, torch.ones_like(rule), 1e-12, f"{schedule}: alpha and sigma must keep the rule of the frame")
    for one in t[:: max(1, len(t) // 8)]:
        numbers = torch.tensor([schedule.alpha(one.item()), schedule.sigma(one.item())], dtype=torch.float64)
        alone = torch.stack(schedule.scales(one))
        require_close(numbers, alone, 1e-12, f"{schedule}: a number must give what a tensor gives at t = {one:g}")
        require(tuple(schedule.point(one.item())[1:]) == tuple(numbers.tolist()), f"{schedule}: point at t = {one:g}")
    require_close(schedule.alpha(t.flip(0)).flip(0), alpha, 1e-15, f"{schedule}: times must not depend on each other")


def _check_ends(schedule: NoiseSchedule) -> None:
    clean = schedule.point(-1.0)
    require(clean[1:] == (1.0, 0.0), f"{schedule}: t = -1 must be clean, alpha 1 and sigma 0, got {clean}")
    require(schedule.log_snr(-1.0) == math.inf, f"{schedule}: log_snr must be infinite at t = -1")
    last = schedule.num_timesteps - 1.0
    require(schedule.timestep(-math.inf) == last, f"{schedule}: timestep must be T - 1 below the least log SNR")
    require(schedule.timestep(math.inf) == -1.0, f"{schedule}: timestep must be -1 at infinite log SNR")


def _check_tables(schedule: NoiseSchedule) -> None:
    whole = torch.arange(schedule.num_timesteps, device="cpu")
    bars, betas = schedule.alphas_cumprod, schedule.betas
    for name, table in (("alphas_cumprod", bars), ("betas", betas)):
        require(table.shape == (schedule.num_timesteps,), f"{schedule}: {name} must be [T], got {list(table.shape)}")
        require(table.dtype == torch.float64, f"{schedule}: {name} must be float64, got {table.dtype}")
    require_close(
        bars, torch.sigmoid(schedule.log_snr(whole)), 1e-10, f"{schedule}: alphas_cumprod must follow log_snr"
    )
    before = torch.cat([torch.ones_like(bars[:1]), bars[:-1]])
    require_close(before * (1 - betas), bars, 1e-10, f"{schedule}: betas must multiply up to alphas_cumprod")
    bars.fill_(7.0)
    require(bool(schedule.alphas_cumprod[0] < 7.0), f"{schedule}: tables must be copies")


def _check_refused(schedule: NoiseSchedule) -> None:
    last = schedule.num_timesteps - 1.0
    for t in (-1.5, last + 0.5, math.nan):
        refused = False
        try:
            schedule.alpha(torch.tensor([t], dtype=torch.float64, device="cpu"))
        except ValueError:
            refused = True
        require(refused, f"{schedule}: t = {t} is outside -1 ... {last:g} and must be refused by a ValueError")
