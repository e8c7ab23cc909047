"""Errors that Python has no name for."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A model file is missing, damaged, truncated, unknown, or does not fit the model."""
