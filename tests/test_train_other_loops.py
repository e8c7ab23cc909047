"""The examples of other loops run, and what they train learns."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LOOPS = Path(__file__).parent.parent / "examples" / "other_loops"


@pytest.mark.parametrize(
    ("file", "package"),
    [
        ("plain.py", "torch"),
        pytest.param("with_lightning.py", "lightning", marks=pytest.mark.slow),
        pytest.param("with_accelerate.py", "accelerate", marks=pytest.mark.slow),
    ],
)
def test_models_learn_in_loops_of_others(file: str, package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    done = subprocess.run(
        [sys.executable, str(LOOPS / file), "--steps", "40"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss (\S+) -> (\S+); drawn: \[10, 1, 8, 8\]", done.stdout)
    assert found, done.stdout
    first, last = map(float, found.groups())
    assert 0.5 < first < 2  # what the network is to say has unit size
    assert last < 0.95 * first
