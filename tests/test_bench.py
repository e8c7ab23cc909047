"""The benchmark's arithmetic, whom it refuses, and that every workload runs."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("bench", reason="the benchmark is not part of an archive of the sources")

from bench import figures, report
from bench.__main__ import WORKLOADS, main, title
from bench.goals import Case, Goal, Standing, figures_of, judge
from bench.memory import peak_bytes
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import Ratio, in_turns, ratio

QUICK = Settings(rounds=3, seconds=1.0, quick=True)
SLOW_WORKLOADS = {"unet_compiled", "imports", "train", "decode"}
"""Which compile, start processes, or are many seconds even when tiny."""


def contestant(name: str, value: Tensor, reserve: str = "") -> Contestant:
    return Contestant(name, lambda: lambda: value.clone(), reserve)


def test_quotients_are_taken_pair_by_pair() -> None:
    """The second round is ten times as slow for both: the quotient of the medians would be another."""
    found = ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    assert found == Ratio(median=3.0, low=2.5, high=3.5)  # of 2, 3, 4, quartiles between them


def test_every_round_times_everybody_once_and_begins_with_another() -> None:
    order: list[str] = []
    clock = itertools.count()

    def timed(call: Callable[[], object]) -> float:
        call()
        return float(next(clock))

    times = in_turns({name: (lambda n=name: order.append(n)) for name in "abc"}, 2, timed)  # type: ignore[misc]
    assert order == ["a", "b", "c", "b", "c", "a"]
    assert times == {"a": [0.0, 5.0], "b": [1.0, 3.0], "c": [2.0, 4.0]}


def test_a_contestant_that_computes_something_else_is_refused_with_its_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = torch.tensor([1.0, -4.0, 2.0])
    wrong = contestant("wrong", value + torch.tensor([0.0, 0.0, 0.5]))
    case = race("case", [contestant("ours", value), contestant("right", value), wrong], QUICK)
    ours, right, refused = case.standings
    assert ours.seconds is not None
    assert right.ratio is not None
    assert right.error == 0
    assert (refused.seconds, refused.error) == (None, 0.125)  # 0.5 of 4
    assert "refused: its output differs by 1.2e-01" in capsys.readouterr().out


@pytest.mark.parametrize("value", [torch.ones(4), torch.full((3,), torch.nan)])
def test_another_shape_and_no_number_are_refused_too(value: Tensor) -> None:
    case = race("case", [contestant("ours", torch.ones(3)), contestant("wrong", value)], QUICK)
    assert case.standings[1].seconds is None


def test_another_function_is_timed_with_its_reserve_and_is_not_the_best_peer() -> None:
    case = race(
        "case", [contestant("ours", torch.ones(3)), contestant("other", torch.ones(5), "other function")], QUICK
    )
    assert case.standings[1].ratio is not None
    assert "best peer / ours, time" not in figures_of(case.standings)


def test_a_missing_package_is_skipped_in_words() -> None:
    def build() -> Callable[[], object]:
        raise ImportError("No module named 'peer'")

    case = race("case", [contestant("ours", torch.ones(3)), Contestant("peer", build)], QUICK)
    assert case.standings[1] == Standing("peer", note="skipped: No module named 'peer'")


def test_goals_stand_beside_their_figures() -> None:
    fast, slow = Ratio(1.3, 1.2, 1.4), Ratio(2.0, 1.9, 2.1)
    standings = [Standing("ours", 1.0, mib=1.0), Standing("a", 1.3, fast, mib=4.0), Standing("b", 2.0, slow)]
    goals = [
        Goal("a / ours, time", cpu=1.25),
        Goal("best peer / ours, time", cpu=1.5),
        Goal("ours / a, memory", cpu=0.25, at_most=True),
        Goal("c / ours, time", cpu=1.0),
        Goal("b / ours, time", cuda=1.0),
    ]
    judged = judge(goals, figures_of(standings), QUICK)
    assert [one.verdict for one in judged] == ["met", "short", "met", "not measured"]  # none for CUDA on a CPU


def test_memory_is_what_a_call_holds_at_once() -> None:
    x = torch.zeros(256)
    assert peak_bytes(lambda: (x + 1) * 2) == 2 * 256 * 4
    assert peak_bytes(lambda: x.view(16, 16)) == 0


def test_figures_come_back_from_a_file_and_other_workloads_stay(tmp_path: Path) -> None:
    case = race("case", [contestant("ours", torch.ones(3)), contestant("peer", torch.ones(3))], QUICK, memory=True)
    judged = judge([Goal("peer / ours, time", cpu=1e9, reason="a billion is many")], figures_of(case.standings), QUICK)
    case = Case(case.name, case.standings, {"share": Ratio(1.0, 1.0, 1.0)}, judged)
    path = tmp_path / "figures.json"
    figures.write(path, {"unet": ("a machine", [case])})
    figures.write(path, {"train": ("another", [])})
    assert figures.read(path) == {"unet": ("a machine", [case]), "train": ("another", [])}
    page = report.page({"unet": "a machine"}, {"unet": ("Title.", [case])})
    assert "Machine: a machine." in page
    assert "| short |" in page
    assert "- unet, peer / ours, time: a billion is many." in page


@pytest.mark.filterwarnings("ignore")  # what peers say
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_WORKLOADS else []) for name in WORKLOADS]
)
def test_every_workload_runs_and_nobody_is_refused(name: str) -> None:
    cases: list[Case] = importlib.import_module(f"bench.{name}").run(QUICK)
    assert title(name).endswith(".")
    assert cases
    assert all(case.judged for case in cases)
    notes = [standing.note for case in cases for standing in case.standings]
    assert not [note for note in notes if note.startswith("refused")]


@pytest.mark.filterwarnings("ignore")
def test_the_command_keeps_figures_and_writes_the_page(tmp_path: Path) -> None:
    kept, page = tmp_path / "figures.json", tmp_path / "page.md"
    main(["solvers", "--quick", "--json", str(kept), "--markdown", str(page)])
    assert list(json.loads(kept.read_text())) == ["solvers"]
    assert page.read_text().startswith("# Performance\n")
    with pytest.raises(SystemExit):
        main(["no_such_workload"])
