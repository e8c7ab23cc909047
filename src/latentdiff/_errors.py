"""Errors that Python has no name for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class CheckpointError(RuntimeError):
    """A model file is missing, damaged, truncated, unknown, or does not fit the model.

    Attributes:
        missing: Names of the tensors that the model needs and the file lacks; all of them, where the message shows a
            few.
        unexpected: Names of those that the file has and the model has no place for.
        misshapen: By name, the shape in the file and the shape in the model.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        """Say what is wrong, and which tensors are concerned."""
        super().__init__(message)
        self.missing: tuple[str, ...] = tuple(missing)
        self.unexpected: tuple[str, ...] = tuple(unexpected)
        self.misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = dict(misshapen or {})
