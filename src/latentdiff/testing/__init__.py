"""Instruments for proving a solver, a schedule, a denoiser or a condition encoder right: yours too.

Distributions whose best denoiser is known in closed form stand in for a trained network, so that what remains of an
error is the method's own. Contract suites raise `AssertionError` with what is broken. Strategies for hypothesis are in
`latentdiff.testing.strategies`, which needs the extra `[test]`.
"""

from __future__ import annotations

from latentdiff.testing._assert_order import assert_order as assert_order
from latentdiff.testing._check_condition_encoder import check_condition_encoder as check_condition_encoder
from latentdiff.testing._check_denoiser import check_denoiser as check_denoiser
from latentdiff.testing._check_schedule import check_schedule as check_schedule
from latentdiff.testing._check_solver import check_solver as check_solver
from latentdiff.testing._flow import integrate_flow as integrate_flow
from latentdiff.testing._gaussian import GaussianDenoiser as GaussianDenoiser
from latentdiff.testing._mixture import DiscretizedGaussianDenoiser as DiscretizedGaussianDenoiser
from latentdiff.testing._mixture import MixtureDenoiser as MixtureDenoiser
from latentdiff.testing._oracle import Oracle as Oracle
from latentdiff.testing._order import Convergence as Convergence
from latentdiff.testing._order import convergence as convergence
from latentdiff.testing._order import convergence_order as convergence_order
from latentdiff.testing._weak_order import sample_moments as sample_moments
from latentdiff.testing._weak_order import weak_convergence as weak_convergence
from latentdiff.testing._weak_order import weak_order as weak_order

__all__ = [
    "Convergence",
    "DiscretizedGaussianDenoiser",
    "GaussianDenoiser",
    "MixtureDenoiser",
    "Oracle",
    "assert_order",
    "check_condition_encoder",
    "check_denoiser",
    "check_schedule",
    "check_solver",
    "convergence",
    "convergence_order",
    "integrate_flow",
    "sample_moments",
    "weak_convergence",
    "weak_order",
]
