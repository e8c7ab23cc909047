"""How likely a model finds data: bounds and densities."""

from __future__ import annotations

from latentdiff.likelihood._bound import Bound as Bound
from latentdiff.likelihood._bound import RateDistortion as RateDistortion
from latentdiff.likelihood._bound import rate_distortion as rate_distortion
from latentdiff.likelihood._bound import variational_bound as variational_bound
from latentdiff.likelihood._ode import ode_log_likelihood as ode_log_likelihood

__all__ = ["Bound", "RateDistortion", "ode_log_likelihood", "rate_distortion", "variational_bound"]
