"""Packages that only some encoders need, imported when they are asked for."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_extra(name: str) -> ModuleType:
    """The optional package `name`.

    Raises:
        ImportError: If it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} must be installed for this: pip install 'latentdiff[interop]'") from error
