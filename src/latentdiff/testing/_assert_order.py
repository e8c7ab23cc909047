"""The order that a solver states, held against the one it has."""

from __future__ import annotations

from collections.abc import Sequence

from latentdiff._denoised import Denoise
from latentdiff._sampler import Sampler
from latentdiff.solvers import Solver, SolverName
from latentdiff.testing._gaussian import GaussianDenoiser
from latentdiff.testing._order import LOG_SNR, STEPS, Convergence, convergence, mixture_example, normal_example
from latentdiff.testing._weak_order import weak_convergence


def assert_order(
    solver: Solver | SolverName,
    denoiser: Denoise | None = None,
    order: float | None = None,
    *,
    tolerance: float = 0.4,
    steps: Sequence[int] = STEPS,
    log_snr: tuple[float, float] = LOG_SNR,
) -> None:
    """Require that a solver has the order it states.

    Solvers that draw no noise are measured against the probability flow (`convergence`), stochastic ones by the mean
    and variance of their samples (`weak_convergence`). An order is that of the worst case: some problems are easier.

    Args:
        solver: A solver or its name.
        denoiser: The problem; by default normal data and, unless the solver draws noise, a mixture of three modes.
        order: What is stated; the solver's `order`, or its `weak_order` if it draws noise, if not given.
        tolerance: How far the least of the measured orders may be from it; below 1/2 tells whole orders apart.
        steps: Numbers of steps, two or more, rising; more of them bring the slope closer to its limit.
        log_snr: Between which log SNR the walk goes, as for `convergence`.

    Raises:
        AssertionError: If it is another, with the table of errors.
        TypeError: If a solver that draws noise is to be measured on data that are not normal.
        ValueError: If neither `order` nor the solver states one.
    """
    method = Sampler(solver).method
    stated = order if order is not None else stated_order(method)
    if stated is None:
        raise ValueError(f"order must be given for a solver that states none, got {method}")
    found: list[Convergence] = []
    if method.stochastic:
        if denoiser is not None and not isinstance(denoiser, GaussianDenoiser):
            raise TypeError(f"denoiser must be a GaussianDenoiser for a solver that draws noise, got {denoiser!r}")
        found.append(weak_convergence(method, denoiser, steps=steps, log_snr=log_snr))
    else:
        problems: list[Denoise] = [normal_example(), mixture_example()] if denoiser is None else [denoiser]
        found.extend(convergence(method, problem, steps=steps, log_snr=log_snr) for problem in problems)
    least = min(found, key=lambda one: one.order)
    if abs(least.order - stated) > tolerance:
        kind = "weak order" if method.stochastic else "order"
        raise AssertionError(f"{method} must have {kind} {stated} +- {tolerance}, measured {least.order:.2f}:\n{least}")


def stated_order(solver: Solver) -> float | None:
    """What a solver says of itself: its `weak_order` if it draws noise, else its `order`; None if it says nothing."""
    stated: float | None = getattr(solver, "weak_order" if solver.stochastic else "order", None)
    return stated
