"""What README, pages and docstrings show is run, and what README promises is what CI does."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import downstream_sample
import latentdiff as ld

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    "Autoencoder",
    "VectorQuantizer",
    "NoiseSchedule",
    "UNet",
    "CrossAttention",
    "Sampler",
    "ConditionEncoder",
]


def run(examples: doctest.DocTest) -> None:
    """Run a doctest and fail with what it reports."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(examples, out=report.append, clear_globs=False)
    if report:
        pytest.fail("".join(report), pytrace=False)


def docstrings() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in [None, *pkgutil.walk_packages(ld.__path__, "latentdiff.")]:
        module = importlib.import_module(info.name if info else "latentdiff")
        yield from (found for found in finder.find(module) if found.examples)


@pytest.mark.parametrize("examples", list(docstrings()), ids=lambda examples: str(examples.name))
def test_examples_in_docstrings_are_true(examples: doctest.DocTest) -> None:
    run(examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_code_on_pages_runs(page: Path) -> None:
    """The blocks of a page share their names, as a reader who types them in order would see it."""
    text, names = page.read_text(), dict[str, Any]()
    for fence in FENCE.finditer(text):
        line = text[: fence.start()].count("\n") + 1
        examples = doctest.DocTestParser().get_doctest(fence[1], names, page.name, str(page), line)
        assert examples.examples, f"{page.name}:{line} shows Python that nobody runs: write it with >>>"
        run(examples)
        names = examples.globs


def section(title: str) -> str:
    """The text of README's section of that title."""
    found = re.search(rf"^#+ `?{title}`?\n(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section {title}"
    return found[1]


@pytest.mark.parametrize("block", BLOCKS)
def test_readme_shows_each_block_in_at_most_five_lines(block: str) -> None:
    code = "".join(FENCE.findall(section(block)))
    assert f"ld.{block}" in code or block == "ConditionEncoder"
    lines = [line for line in code.splitlines() if line.startswith((">>>", "..."))]
    assert 1 <= len(lines) <= 5


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    [command] = [text.strip() for text in commands if "nox -s tests" in text]
    assert command in (ROOT / ".ci" / "run").read_text()


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    missing = [name for name in ld.__all__ if not re.search(rf"latentdiff\.{name}\b", reference)]
    assert not [name for name in missing if not name.startswith("__")]


def test_code_of_a_typed_user_runs(tmp_path: Path) -> None:
    assert downstream_sample.use_the_mathematics_alone().shape == (2, 3, 16)
    assert downstream_sample.use_the_networks_alone().shape == (2, 2, 4, 6)
    assert downstream_sample.use_the_whole(tmp_path).shape == (2, 1, 8, 8)
