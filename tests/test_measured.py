"""The tables of the page "Measured" are what the code of today measures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import diffusers
import pytest

from measured import TABLES, main, rewritten, rows_on

PAGE = (Path(__file__).parent.parent / "docs" / "measured.md").read_text()
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?")

QUICK: dict[str, tuple[str, ...]] = {
    "orders": ("ddim", "heun", "lms", "deis", "dpmpp_2m", "dpmpp_3m, published", "unipc"),
    "weak orders": ("ddpm, fixed_large", "euler_ancestral", "dpmpp_2m_sde"),
    "diffusers": ("ddim", "ddpm", "plms", "dpmpp_2m", "unipc"),
    "formulas": ("ddim, eta 0.7", "dpmpp_3m_sde"),
    "spacing, scaled_linear": ("dpmpp_2m",),
    "spacing, flow": ("ddim",),
    "guidance, flow": ("deis",),
}
SLOW_DIFFERENCES = ("two draws of a step", "the path's time")
"""Two seconds each."""


def unlike(table: str, page: list[str], today: list[str]) -> list[tuple[str, str]]:
    """Cells that differ in their words, or in a number by more than another machine's rounding.

    Numbers are printed to two digits or more: they may differ by one of the last. A deviation is rounding itself and
    may be ten times as large as that of the machine that wrote the page.
    """
    differing = []
    for written, found in zip(page, today, strict=True):
        (words, numbers), (new_words, new_numbers) = ((NUMBER.sub("#", c), NUMBER.findall(c)) for c in (written, found))
        if table in ("diffusers", "formulas") and written is page[-1]:
            is_same = float(found) <= max(10 * float(written), 1e-14)
        else:
            is_same = words == new_words and all(map(is_near, numbers, new_numbers))
        if not is_same:
            differing.append((written, found))
    return differing


def is_near(written: str, found: str) -> bool:
    """Whether two printed numbers are equal to one of the last digit."""
    mantissa, _, exponent = written.partition("e")
    last = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return math.isclose(float(written), float(found), rel_tol=0, abs_tol=1.01 * last)


@pytest.mark.parametrize("table", TABLES)
def test_the_page_has_every_row_that_is_measured_and_no_other(table: str) -> None:
    assert list(rows_on(PAGE, table)) == list(TABLES[table][1])


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers', with numpy 2
@pytest.mark.parametrize(("table", "row"), [(table, row) for table, rows in QUICK.items() for row in rows])
def test_what_the_page_says_is_measured_today(table: str, row: str) -> None:
    skip_beside_another_version(table)
    assert not unlike(table, rows_on(PAGE, table)[row], TABLES[table][1][row]())


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("row", [row for row in TABLES["differences"][1] if row not in SLOW_DIFFERENCES])
def test_the_differences_are_there_today(row: str) -> None:
    skip_beside_another_version("differences")
    assert not unlike("differences", rows_on(PAGE, "differences")[row], TABLES["differences"][1][row]())


def skip_beside_another_version(table: str) -> None:
    """The numbers of a peer are those of the version that the page names."""
    if table in ("differences", "diffusers") and f"diffusers {diffusers.__version__}" not in PAGE:
        pytest.skip(f"the page was written beside another version than diffusers {diffusers.__version__}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("table", TABLES)
def test_the_whole_page_is_measured_today(table: str) -> None:
    skip_beside_another_version(table)
    page = rows_on(PAGE, table)
    assert not {row: bad for row, cells in TABLES[table][1].items() if (bad := unlike(table, page[row], cells()))}


def test_defaults_on_the_page_are_those_of_the_solvers() -> None:
    """Each row of a spacing table has one cell in bold."""
    for table in (name for name in TABLES if name.startswith("spacing")):
        for cells in rows_on(PAGE, table).values():
            assert sum(cell.startswith("**") for cell in cells) == 1


def test_rewriting_changes_tables_alone() -> None:
    text = "Before.\n\n<!-- measured: a -->\n| old |\n<!-- end of a -->\n\nAfter.\n"
    once = rewritten(text, {"a": "| x | y |\n| --- | --- |\n| r | 1.5 |"})
    assert once.startswith("Before.")
    assert once.endswith("After.\n")
    assert rows_on(once, "a") == {"r": ["1.5"]}
    assert rewritten(once, {"a": "| x | y |\n| --- | --- |\n| r | 1.5 |"}) == once
    with pytest.raises(ValueError, match="page must have one place for 'b'"):
        rewritten(text, {"b": ""})


def test_the_command_rewrites_the_table_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("Words.\n<!-- measured: one -->\n<!-- end of one -->\n")
    monkeypatch.setitem(TABLES, "one", (("name", "value"), {"row": lambda: ["7"]}))
    main(page, "one")
    assert rows_on(page.read_text(), "one") == {"row": ["7"]}
    assert page.read_text().startswith("Words.")


def test_a_changed_number_is_noticed() -> None:
    assert not unlike("orders", ["2.01", "0.016", "`beta`"], ["2.02", "0.016", "`beta`"])
    assert unlike("orders", ["2.01"], ["2.04"])
    assert unlike("orders", ["1.2e-05"], ["1.4e-05"])
    assert unlike("orders", ["`beta`"], ["`karras`"])
    assert unlike("orders", ["**0.2, 0.1**"], ["0.2, 0.1"])
    assert not unlike("formulas", ["`X`", "3e-15"], ["`X`", "9e-15"])
    assert unlike("formulas", ["`X`", "3e-13"], ["`X`", "5e-12"])
