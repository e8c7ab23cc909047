"""A module that knows the arguments that build it again."""

from __future__ import annotations

import inspect
from typing import Protocol, runtime_checkable

from torch import nn

from latentdiff._typing import JSON


@runtime_checkable
class Configured(Protocol):
    """Anything that can be written down as JSON and built again from it."""

    @property
    def config(self) -> dict[str, JSON]:
        """The arguments that build this object again."""
        ...  # pragma: no cover


def describe(value: object) -> JSON:
    """`value` as JSON: plain values as they are, configured objects as their class name and config."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Configured):
        return {"class": type(value).__name__, "config": value.config}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    raise TypeError(f"a configuration must be made of JSON values and latentdiff objects, got {type(value).__name__}")


class Module(nn.Module):
    """A module whose constructor arguments are keyword-only and attributes of the same name."""

    @property
    def config(self) -> dict[str, JSON]:
        """The arguments that build this module again: `type(self)(**self.config)` where all are plain values."""
        return {name: describe(getattr(self, name)) for name in inspect.signature(type(self)).parameters}

    def extra_repr(self) -> str:
        """The configuration, in `repr`; parts are shown as children."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items() if not isinstance(value, dict))
