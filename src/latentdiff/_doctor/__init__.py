"""A look at a model and its data before training costs anything."""

from __future__ import annotations

from latentdiff._doctor._doctor import doctor as doctor
from latentdiff._doctor._report import Finding as Finding
from latentdiff._doctor._report import Report as Report

__all__ = ["Finding", "Report", "doctor"]
