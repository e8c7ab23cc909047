"""Everything that is done with this repository: `nox -l` lists it, `nox -s tests` runs the tests.

Nox makes each environment itself. A constraints file named by `PIP_CONSTRAINT` (or `UV_CONSTRAINT`) is honoured, so a
machine that must have a certain build of torch can say so.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types", "docs"]
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")


def install(session: nox.Session, *packages: str) -> None:
    """Install under the constraints of whoever called nox, whichever of the two variables named them."""
    constraint = os.environ.get("PIP_CONSTRAINT") or os.environ.get("UV_CONSTRAINT")
    session.install(*packages, env={"PIP_CONSTRAINT": constraint, "UV_CONSTRAINT": constraint} if constraint else None)


def group(name: str) -> tuple[str, ...]:
    """The tools of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train a latent diffusion model on handwritten digits; pictures and figures go to out/."""
    install(session, "-e", ".[examples]")
    session.run("python", "examples/quickstart/main.py", "--output", "out", *session.posargs)


@nox.session
def first_stage(session: nox.Session) -> None:
    """Train a KL and a VQ first stage on photographs; say `-- --preset smoke`, or `-- --data photographs.zip`."""
    install(session, "-e", ".[examples]")
    session.run("python", "examples/first_stage/main.py", "--output", "out/first_stage", *session.posargs)


@nox.session
def task(session: nox.Session) -> None:
    """Train one of the tasks in examples/; `-- photographs/inpainting.py --preset cpu --data photographs.zip`."""
    if not session.posargs:
        session.error("name an example, such as `nox -s task -- any_rank/main.py --preset smoke`")
    install(session, "-e", ".[examples]")
    program, *arguments = session.posargs
    session.run("python", f"examples/{program}", *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the fast tests, the docstrings' examples and the code of README and docs."""
    install(session, "-e", ".[test,examples]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests."""
    install(session, "-e", ".[test,examples,onnx]")
    session.run("python", "-m", "pytest", "-m", "slow and not cuda", *session.posargs)


@nox.session
def cuda(session: nox.Session) -> None:
    """Run the tests that need a CUDA device."""
    install(session, "-e", ".[test,examples]")
    found = session.run("python", "-c", "import torch; print(torch.cuda.is_available())", silent=True)
    if "True" not in str(found):
        session.skip("torch finds no CUDA device")
    session.run("python", "-m", "pytest", "-m", "cuda", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the fast tests and say which lines and branches of the library they miss."""
    install(session, "-e", ".[test,examples]")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format with ruff."""
    install(session, *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the library, of a user's code, and that the public face is typed throughout."""
    install(session, ".", *group("types"))
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "latentdiff", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, warnings as errors, into docs/_build/html."""
    install(session, ".[docs]")
    session.run("sphinx-build", "-W", "-n", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def measured(session: nox.Session) -> None:
    """Compute the tables of the page "Measured" anew (minutes)."""
    install(session, "-e", ".[test]")
    session.run("python", "tests/measured.py", "docs/measured.md", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time networks, solvers and search beside their peers on this machine; `-- unet` times one, `-- --quick` tries."""
    install(session, "-e", ".[test]")
    for peer in group("bench"):  # each where it can be had: without it its rows are skipped
        session.run("python", "-m", "pip", "install", peer, success_codes=[0, 1], silent=True)
    session.run("python", "-m", "bench", "--json", "bench.json", *session.posargs)


@nox.session
def zoo(session: nox.Session) -> None:
    """Compare the published models with recorded outputs, in the folder LATENTDIFF_ZOO names; write docs/zoo.md."""
    if "LATENTDIFF_ZOO" not in os.environ:
        session.skip("LATENTDIFF_ZOO names no folder of published models")
    install(session, "-e", ".[test,interop]")
    session.run("python", "-m", "pytest", "tests/test_zoo.py", "tests/test_blocks.py")
    session.run("python", "tests/zoo_parity.py", "--write", "docs/zoo.md", *session.posargs)
