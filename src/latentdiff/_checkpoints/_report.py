"""Whether the tensors of a file are those that a module needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from latentdiff._errors import CheckpointError

NAMES_SHOWN: Final = 20
"""Names of a kind that a message lists."""

Shape = tuple[int, ...]


def check_fit(path: Path, described: str, wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Require that a file holds exactly the tensors that are wanted, in their shapes.

    Args:
        path: The file.
        described: What the file should fit, for the message.
        wanted: Shapes by name.
        found: Shapes by name.

    Raises:
        CheckpointError: If not; lists what is missing, unexpected and misshapen.
    """
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    both = sorted(wanted.keys() & found.keys())
    misshapen = {name: (found[name], wanted[name]) for name in both if found[name] != wanted[name]}
    shapes = [f"{name}: {list(got)} instead of {list(want)}" for name, (got, want) in misshapen.items()]
    lists = (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
    problems = [f"{kind}: {_shown(names)}" for kind, names in lists if names]
    if problems:
        raise CheckpointError(
            f"{path} does not fit {described}; {'; '.join(problems)}",
            missing=missing,
            unexpected=unexpected,
            misshapen=misshapen,
        )


def _shown(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
