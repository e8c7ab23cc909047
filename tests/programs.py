"""Help for the tests of examples, which run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(example: Path, *command: str | Path) -> None:
    """Run Python with the modules of an example at hand; what it wrote is shown if it fails.

    Args:
        example: The folder of the example.
        command: What Python is given: a file, or `-c` and a program, and their arguments.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(example), *sys.path])}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
