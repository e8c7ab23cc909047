"""Figures as a page of the documentation: goals beside figures first, then every contestant of every case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.goals import Case, Judged, Standing
from bench.timing import Ratio

HEAD = """# Performance

Written by `python -m bench --markdown docs/performance.md` (`nox -s bench`). The contestants of a case take turns in
one process, so that what disturbs a shared machine disturbs all of them. Figures are medians of quotients pair by pair,
with their quartiles; above 1 we are faster, and only such quotients compare from one machine to another. Before the
clock runs networks get equal weights and their outputs are compared with ours: a contestant that computes something
else is not timed, or marked. Every package is taken as it comes.
"""


def page(machines: Mapping[str, str], workloads: Mapping[str, tuple[str, Sequence[Case]]]) -> str:
    """The page: `machines` by workload, and a title and the cases of each."""
    lines = [HEAD, *_machine_lines(machines), "", "## Goals", ""]
    lines += ["| workload | case | figure | goal | found (quartiles) | |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [line for name, (_, cases) in workloads.items() for line in _goal_rows(name, cases)]
    reasons = list(dict.fromkeys(_reasons(workloads)))
    if reasons:
        lines += ["", "What falls short, and why:", "", *reasons]
    for name, (title, cases) in workloads.items():
        lines += ["", f"## {name}", "", title]
        for case in cases:
            lines += ["", *_case_lines(case)]
    return "\n".join(lines).rstrip() + "\n"


def _machine_lines(machines: Mapping[str, str]) -> Iterator[str]:
    for machine in dict.fromkeys(machines.values()):
        names = [name for name, on in machines.items() if on == machine]
        of = "" if len(names) == len(machines) else f" ({', '.join(names)})"
        yield f"Machine{of}: {machine}."


def _goal_rows(name: str, cases: Sequence[Case]) -> Iterator[str]:
    for case in cases:
        for judged in case.judged:
            sign = "≤" if judged.at_most else "≥"
            found = "" if judged.value is None else _shown(judged.value)
            yield (
                f"| {name} | {case.name} | {judged.figure} | {sign} {judged.bound:.2f} | {found} | {judged.verdict} |"
            )


def _reasons(workloads: Mapping[str, tuple[str, Sequence[Case]]]) -> Iterator[str]:
    for name, (_, cases) in workloads.items():
        for case in cases:
            for judged in case.judged:
                if judged.verdict == "short":
                    yield f"- {name}, {judged.figure}: {judged.reason or 'not explained yet'}."


def _shown(value: Ratio) -> str:
    return f"{value.median:.2f}" if value.low == value.high else str(value)


def _case_lines(case: Case) -> list[str]:
    """A table with those columns that have an entry."""
    columns = [(head, [_cell(head, s) for s in case.standings]) for head in HEADS]
    columns = [(head, cells) for head, cells in columns if any(cells)]
    lines = [f"**{case.name}**{_work(case)}", ""]
    lines += ["| " + " | ".join(head for head, _ in columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cells[row] for _, cells in columns) + " |" for row in range(len(case.standings))]
    for name, figure in case.figures.items():
        lines += ["", f"{name}: {_shown(figure)}"] if "matrix" not in name else []
    shares = [
        f"{name.removesuffix(', share of the matrix rate')} {100 * figure.median:.0f} %"
        for name, figure in case.figures.items()
        if "matrix" in name
    ]
    return lines + (
        ["", f"Share of the rate of a matrix product in the same rounds: {', '.join(shares)}."] if shares else []
    )


def _work(case: Case) -> str:
    return "" if case.gflop is None else f", {case.gflop:,.1f} GFLOP a call"


HEADS = ("contestant", "time over ours", "MiB", "output's difference", "synchronisations", "kernels", "note")


def _cell(head: str, standing: Standing) -> str:
    match head:
        case "contestant":
            return standing.name
        case "time over ours":
            if standing.ratio is not None:
                return _shown(standing.ratio)
            return "1" if standing.seconds is not None else ""
        case "MiB":
            return "" if standing.mib is None else f"{standing.mib:,.1f}"
        case "output's difference":
            return "" if standing.error is None else f"{standing.error:.0e}"
        case "synchronisations":
            return "" if standing.synchronisations is None else str(standing.synchronisations)
        case "kernels":
            return "" if standing.launches is None else str(standing.launches)
        case _:
            return standing.note


def summary(cases: Sequence[Case]) -> Iterator[str]:
    """Lines for a terminal: contestants with times and ratios, then goals."""
    for case in cases:
        yield f"  {case.name}{_work(case)}"
        for s in case.standings:
            seconds = "" if s.seconds is None else f"{s.seconds:9.4f} s"
            mib = "" if s.mib is None else f"{s.mib:9.1f} MiB"
            yield f"    {s.name:<28}{seconds:>12} {s.ratio or ''!s:<24} {mib:>13} {s.note}"
        for name, figure in case.figures.items():
            yield f"      {name}: {figure}"
        for judged in case.judged:
            yield f"      {_goal(judged)}"


def _goal(judged: Judged) -> str:
    sign = "<=" if judged.at_most else ">="
    return f"goal: {judged.figure} {sign} {judged.bound:.2f}, found {judged.value}: {judged.verdict}"
