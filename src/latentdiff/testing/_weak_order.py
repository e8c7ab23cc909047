r"""How fast the mean and the variance of a stochastic solver's samples converge, computed without chance.

On normal data the estimates are affine in x, and so is every step of a solver: the sample is
\(x_N = c + A x_0 + \sum_k B_k \xi_k\) with the draws of noise \(\xi_k\), however many a step makes. One walk of a batch
finds c, A and every \(B_k\) at once: in its row k draw number k is 1 and all others are 0. The variance of the sample
is \(A^2 \mathrm{Var}\,x_0 + \sum_k B_k^2\), to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentdiff._noise import CounterNoise
from latentdiff._sampler import Sampler
from latentdiff.solvers import Solver, SolverName, Spacing
from latentdiff.testing._gaussian import GaussianDenoiser
from latentdiff.testing._order import (
    LOG_SNR,
    STEPS,
    Convergence,
    check_steps,
    event_of,
    normal_example,
    rms,
    walker,
)


def sample_moments(sampler: Sampler, denoiser: GaussianDenoiser) -> tuple[Tensor, Tensor]:
    """Mean and variance of what a sampler draws from normal data, without error.

    The walk begins at the exact distribution of its first time.

    Args:
        sampler: Any solver whose steps are affine in x and in the noise, as all of `latentdiff.solvers` are.
        denoiser: Normal data; without `knows_variance` set, or with it.

    Returns:
        float64 `[*event]` each; `[1]` where mean and std of the data are numbers.

    Raises:
        ValueError: If the map is not affine.
    """
    schedule, event = denoiser.schedule, event_of(denoiser)
    first = schedule.point(sampler.timesteps(schedule)[0].item())
    mean, std = (torch.as_tensor(v, dtype=torch.float64).expand(event) for v in (denoiser.mean, denoiser.std))
    mean, std = first.alpha * mean, ((first.alpha * std).square() + first.sigma**2).sqrt()
    if schedule.frame == "variance_exploding":
        mean, std = mean / first.sigma, std / first.sigma  # the walk multiplies by sigma
    draws = _Draws()
    sampler.sample(denoiser, mean[None], generator=draws)
    count = len(draws.keys)
    noise = CounterNoise(0).normal((count + 1, *event), step=0, device=torch.device("cpu"), dtype=torch.float64)
    x = mean.repeat(count + 3, *(1,) * len(event))
    x[1] += std
    x[-1] += std * noise[0]
    ends = sampler.sample(denoiser, x, generator=_Pulses(draws.keys, noise[1:]))
    gains = ends[1:-1] - ends[0]
    mixed = ends[0] + (gains * noise).sum(0)
    if not torch.allclose(ends[-1], mixed, rtol=1e-8, atol=1e-8):
        raise ValueError(f"solver must make steps that are affine in x and noise on normal data, got {sampler.method}")
    return ends[0], gains.square().sum(0)


def weak_convergence(
    solver: Solver | SolverName,
    denoiser: GaussianDenoiser | None = None,
    *,
    steps: Sequence[int] = STEPS,
    log_snr: tuple[float, float] = LOG_SNR,
    spacing: Spacing | None = None,
) -> Convergence:
    """Errors of the mean and the variance of samples of normal data, without chance: see `sample_moments`.

    Args:
        solver: A solver or its name; one that draws no noise has a weak order too.
        denoiser: Normal data; by default three values of different mean and spread.
        steps: Numbers of steps, two or more, rising.
        log_snr: Between which log SNR the walk goes, as for `convergence`.
        spacing: Walk all the way instead, from T - 1 to the clean end.

    Returns:
        Root mean square of the errors of mean and variance, in units of the right standard deviation and variance.

    Raises:
        TypeError: If the data are not normal.
        ValueError: If the solver's steps are not affine, or there are fewer than two numbers of steps.
    """
    data = normal_example() if denoiser is None else denoiser
    if not isinstance(data, GaussianDenoiser):
        raise TypeError(f"denoiser must be a GaussianDenoiser, got {type(data).__name__}")
    check_steps(steps)
    method, schedule, errors = Sampler(solver).method, data.schedule, []
    for n in steps:
        sampler = walker(method, schedule, n, log_snr, spacing)
        last = schedule.point(sampler.timesteps(schedule)[-1].item())
        mean, std = (torch.as_tensor(v, dtype=torch.float64) for v in (data.mean, data.std))
        variance = (last.alpha * std).square() + last.sigma**2
        found_mean, found_variance = sample_moments(sampler, data)
        bias = (found_mean - last.alpha * mean) / variance.sqrt()
        errors.append(rms(torch.cat([bias, found_variance / variance - 1])))
    return Convergence(tuple(steps), tuple(errors))


def weak_order(
    solver: Solver | SolverName,
    denoiser: GaussianDenoiser | None = None,
    *,
    steps: Sequence[int] = STEPS,
    log_snr: tuple[float, float] = LOG_SNR,
    spacing: Spacing | None = None,
) -> float:
    """The order of mean and variance: see `weak_convergence`, which gives the errors themselves.

    Args:
        solver: A solver or its name.
        denoiser: Normal data.
        steps: Numbers of steps.
        log_snr: Between which log SNR the walk goes.
        spacing: Walk all the way instead.

    Raises:
        TypeError: As `weak_convergence`.
        ValueError: As `weak_convergence`.
    """
    return weak_convergence(solver, denoiser, steps=steps, log_snr=log_snr, spacing=spacing).order


@dataclass(frozen=True)
class _Draws:
    """No noise, and a note of every draw asked for."""

    keys: dict[int, int] = field(default_factory=dict)

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        self.keys.setdefault(step, len(self.keys))
        return torch.zeros(*shape, device=device, dtype=dtype)


@dataclass(frozen=True)
class _Pulses:
    """Draw number k is 1 in row k + 2 and `noise[k]` in the last row."""

    keys: dict[int, int]
    noise: Tensor

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        pulse = torch.zeros(*shape, device=device, dtype=dtype)
        pulse[self.keys[step] + 2] = 1.0
        pulse[-1] = self.noise[self.keys[step]]
        return pulse
