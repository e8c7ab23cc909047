"""One mapping of a configuration file, read with checks: an entry with its type, or an error that names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentdiff._errors import CheckpointError
from latentdiff._typing import JSON


@dataclass(frozen=True)
class Node:
    """A mapping and its path from the root of the file, such as `model.params.unet_config`.

    Every method takes the name of an entry and what to return where there is none; without that, or with an entry of
    another type, it raises a `CheckpointError`.
    """

    entries: Mapping[str, JSON]
    path: str

    def __contains__(self, name: str) -> bool:
        """Whether there is an entry of that name that is not null."""
        return self.entries.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number; YAML 1.1 reads `1e-4` as text, which is taken too."""
        value = self._get(name, default)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                raise self._wrong(name, "a number", value) from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """Text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._get(name, default)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self._wrong(name, "a list of whole numbers", value)
        numbers = [item for item in value if isinstance(item, int) and not isinstance(item, bool)]
        if len(numbers) != len(value):
            raise self._wrong(name, "a list of whole numbers", value)
        return tuple(numbers)

    def one_or_more(self, name: str, default: int | None = None) -> int | tuple[int, ...]:
        """A whole number, or a list of them."""
        value = self._get(name, default)
        return self.integers(name) if isinstance(value, Sequence) else self.integer(name, default)

    def node(self, name: str) -> Node:
        """A mapping below this one; left out, it is empty."""
        value = self._get(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, "a mapping", value)
        return Node(value, f"{self.path}.{name}".lstrip("."))

    def target(self) -> tuple[str, Node]:
        """The class that this mapping asks for, without its module, and the arguments for it."""
        return self.text("target").rpartition(".")[2], self.node("params")

    def require(self, name: str, *values: JSON) -> None:
        """Refuse an entry that is there and is none of `values`: a variant that cannot be built here."""
        value = self._get(name, None) if name in self else None
        if value is not None and value not in values:
            allowed = " or ".join(map(repr, values)) or "left out"
            raise CheckpointError(f"{self.path}.{name} must be {allowed} to be built here, got {value!r}")

    def know(self, *names: str) -> None:
        """Refuse entries whose meaning is not known, as they might change what is built."""
        if unknown := sorted(set(self.entries) - set(names)):
            raise CheckpointError(f"{self.path} must have no entries of unknown meaning, got {', '.join(unknown)}")

    def _get(self, name: str, default: JSON) -> JSON:
        value = self.entries.get(name)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.path} must have an entry {name!r}")
        return value

    def _wrong(self, name: str, kind: str, value: JSON) -> CheckpointError:
        return CheckpointError(f"{self.path}.{name} must be {kind}, got {value!r}")
