"""What a look at a model found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What was looked at, such as `"latents"`.
        value: What was seen, in words and numbers.
        is_ok: Whether that is as it should be.
        advice: What to do about it; empty where nothing is to be done.
    """

    name: str
    value: str
    is_ok: bool
    advice: str = ""

    def __str__(self) -> str:
        """In one line, and a second one for the advice."""
        line = f"{'ok' if self.is_ok else 'look at this':<12}  {self.name:<15}  {self.value}"
        return line if self.is_ok or not self.advice else f"{line}\n{'':<31}-> {self.advice}"


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found; `str` of it is the report to read.

    Attributes:
        findings: In the order in which a sample goes through the model.
    """

    findings: tuple[Finding, ...]

    @property
    def is_ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.problems

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is not."""
        return tuple(finding for finding in self.findings if not finding.is_ok)

    def __str__(self) -> str:
        """One or two lines for each finding, then how many are to be looked at."""
        end = "nothing to look at" if self.is_ok else f"{len(self.problems)} of {len(self.findings)} to look at"
        return "\n".join([*map(str, self.findings), end])
