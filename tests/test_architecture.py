"""The shape of the package: who imports whom, what the face shows, how long things may get, what docstrings say."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import latentdiff as ld
from latentdiff._denoised import Denoise

SOURCE = Path(ld.__file__).parent

# Each level imports only from levels above it in this list. A package counts as one module here.
LEVELS: list[set[str]] = [
    {"_typing", "_checks", "_errors", "_beta_tables", "_distributed", "_log_snr_table", "_ode", "_convolution"},
    {"_noise", "_module", "_code_subset", "_moments", "_narrow_attention"},
    {"_distributions", "_lpips", "_brownian", "_normalization"},
    {"_gathered_norm"},
    {"_fusion"},
    {"_schedule", "_layers", "_codebook", "_quantized", "_latent_space", "_value_range"},
    {"_denoised", "_attention", "_discriminator", "_quantizer", "_scalar_quantizer", "_bottleneck"},
    {"_prediction", "_variational", "_residual_quantizer", "_linear_attention", "_unet_levels", "_condition"},
    {"_coders", "_reach", "_streamed_attention"},
    {"_denoiser", "_tiled_denoiser", "_network_inputs", "_streaming", "guidance", "solvers"},
    {"_tiling"},
    {"_autoencoder"},
    {"_spacing", "_unet", "_dit"},
    {"_sampler", "losses", "likelihood"},
    {"_latent_diffusion"},
    {"_checkpoints", "_presets", "_doctor", "_accelerate"},
]
BESIDE = {"training", "evaluation", "testing", "checkpoints"}
"""Namespaces beside the face: they import public names, and nobody here imports them."""

LAZY = {"training", "evaluation", "testing"}
"""Those of them that are attributes of the face, imported when first asked for."""

MATHEMATICS = {
    "_schedule",
    "_denoised",
    "_prediction",
    "_variational",
    "_denoiser",
    "guidance",
    "solvers",
    "_spacing",
    "_sampler",
    "_ode",
    "likelihood",
}
NETWORKS = {
    "_module",
    "_convolution",
    "_fusion",
    "_normalization",
    "_layers",
    "_codebook",
    "_code_subset",
    "_quantized",
    "_attention",
    "_narrow_attention",
    "_linear_attention",
    "_discriminator",
    "_lpips",
    "_quantizer",
    "_scalar_quantizer",
    "_residual_quantizer",
    "_bottleneck",
    "_unet",
    "_unet_levels",
    "_network_inputs",
    "_dit",
    "_coders",
    "_reach",
    "_gathered_norm",
    "_streamed_attention",
    "_streaming",
    "_tiling",
    "_latent_space",
    "_autoencoder",
    "_condition",
}

LONGEST_FILE, LONGEST_FUNCTION = 600, 60
THE_WHOLE_AT_MOST = 150

TENSORS = re.compile(r"\b(Tensor|Images|Latents|Tokens|Times)\b")
SHAPE = re.compile(
    r"`\[[^`]*\]`|\b(same|any) shape\b|\bshaped (and typed )?(like|as)\b|\blikewise\b|\blike `\w+`|\bas for `"
    r"|\bbroadcasts\b",
    re.IGNORECASE,
)
"""A shape in words: `[batch, ...]`, or a reference to one given nearby."""


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def unit(module: str) -> str:
    """`latentdiff.solvers._base` belongs to `solvers`."""
    return module.split(".")[1] if "." in module else "__init__"


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module of this package that `tree` imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "latentdiff")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "latentdiff":
            module = node.module or ""
            submodules = [f"{module}.{a.name}" for a in node.names if module == "latentdiff"]
            yield from submodules or [module]


@pytest.mark.parametrize("file", files(), ids=module_name)
def test_imports_point_down(file: Path) -> None:
    here = unit(module_name(file))
    if here in {"__init__", *BESIDE}:
        return
    rank = {name: level for level, names in enumerate(LEVELS) for name in names}
    assert here in rank, f"{file.name} has no level: add it to LEVELS, as low as it can stand"
    for imported in imports(ast.parse(file.read_text())):
        there = unit(imported)
        if there != here:
            assert rank.get(there, 99) < rank[here], f"{module_name(file)} must not import {imported}"


@pytest.mark.parametrize("file", files(), ids=module_name)
def test_mathematics_and_networks_do_not_know_each_other(file: Path) -> None:
    here = unit(module_name(file))
    other = NETWORKS if here in MATHEMATICS else MATHEMATICS if here in NETWORKS else set()
    assert not {unit(name) for name in imports(ast.parse(file.read_text()))} & other


@pytest.mark.parametrize("file", files(), ids=module_name)
def test_no_function_imports_the_package_to_dodge_a_cycle(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert not list(imports(node)), f"{node.name} imports {list(imports(node))}"


def test_import_loads_nothing_beyond_the_core() -> None:
    program = (
        "import sys, torch, numpy, einops, safetensors.torch; before = set(sys.modules); import latentdiff;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= {"latentdiff", "einops", "safetensors", "typing_extensions"}


def test_the_face_is_its_sorted_list() -> None:
    assert list(ld.__all__) == sorted(ld.__all__)
    shown = {name for name in vars(ld) if not name.startswith("_")} - {"annotations", "TYPE_CHECKING"}
    assert shown | LAZY == set(ld.__all__) - {"__version__"}
    assert dir(ld) == list(ld.__all__)


@pytest.mark.parametrize("name", sorted(LAZY))
def test_what_stands_beside_the_face_is_imported_when_asked_for(name: str) -> None:
    program = (
        f"import sys, latentdiff as ld; assert 'latentdiff.{name}' not in sys.modules; ld.{name};"
        f"assert 'latentdiff.{name}' in sys.modules; print('hypothesis' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_names_that_the_package_lacks_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'latentdiff' has no attribute 'UNett'"):
        _ = ld.UNett  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_distribution() -> None:
    assert ld.__version__ == importlib.metadata.version("latentdiff")


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert (SOURCE / "py.typed").is_file()


@pytest.mark.parametrize("file", files(), ids=module_name)
def test_files_and_functions_stay_readable(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            code = node.body[1:] if ast.get_docstring(node) is not None else node.body
            length = code[-1].end_lineno - code[0].lineno + 1 if code and code[-1].end_lineno else 0
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def test_the_whole_stays_a_joint() -> None:
    file = SOURCE / "_latent_diffusion.py"
    if not file.exists():
        pytest.skip("not written yet")
    docstrings = sum(
        len((ast.get_docstring(node) or "").splitlines())
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    assert len(file.read_text().splitlines()) - docstrings <= THE_WHOLE_AT_MOST


# What is public: the face, its namespaces, and the public methods and properties of their classes.


def namespaces() -> list[ModuleType]:
    names = [info.name for info in pkgutil.iter_modules(ld.__path__) if not info.name.startswith("_")]
    return [ld, *(importlib.import_module(f"latentdiff.{name}") for name in names)]


@dataclass(frozen=True)
class Public:
    """A public class, function, method or property.

    Attributes:
        path: Such as `latentdiff.UNet.forward`.
        value: A class, or the function behind it.
        docstring: Its own, after those of what it overrides or implements.
    """

    path: str
    value: type | FunctionType
    docstring: str

    def __repr__(self) -> str:
        return self.path


def public() -> Iterator[Public]:
    """Everything public that is defined in this package."""
    for space in namespaces():
        for name in getattr(space, "__all__", [n for n in vars(space) if not n.startswith("_")]):
            value = getattr(space, name)
            path = f"{space.__name__}.{name}"
            if not getattr(value, "__module__", "").startswith("latentdiff"):
                continue
            if inspect.isfunction(value):
                yield Public(path, value, inspect.getdoc(value) or "")
            elif inspect.isclass(value):
                yield Public(path, value, inspect.getdoc(value) or "")
                yield from methods(path, value)


def methods(path: str, owner: type) -> Iterator[Public]:
    """The public methods and properties that a class defines itself."""
    above = [*reversed(owner.__mro__)]
    if hasattr(owner, "schedule"):
        above.insert(0, Denoise)  # denoisers implement the protocol without inheriting from it
    for name, member in vars(owner).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__"):
            docstrings = [inspect.getdoc(vars(base)[name]) or "" for base in above if name in vars(base)]
            yield Public(f"{path}.{name}", function, "\n\n".join(docstrings))


EVERYTHING = list(public())
FUNCTIONS = [item for item in EVERYTHING if inspect.isfunction(item.value)]


@pytest.mark.parametrize("item", EVERYTHING, ids=repr)
def test_no_public_function_swallows_unknown_arguments(item: Public) -> None:
    function = item.value if inspect.isfunction(item.value) else item.value.__init__
    if not str(getattr(function, "__module__", "")).startswith("latentdiff"):
        return  # a constructor that Python or torch brings along
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{item} takes **kwargs"


@pytest.mark.parametrize("item", EVERYTHING, ids=repr)
def test_everything_public_has_a_docstring(item: Public) -> None:
    assert item.docstring, f"{item} has no docstring"


@pytest.mark.parametrize("item", FUNCTIONS, ids=repr)
def test_docstrings_give_the_shape_of_every_tensor(item: Public) -> None:
    annotations = {name: str(value) for name, value in inspect.get_annotations(item.value).items()}
    tensors = {name for name, annotation in annotations.items() if TENSORS.search(annotation)}
    if not tensors:
        return
    assert SHAPE.search(item.docstring), f"{item} names no shape"
    entries = arguments(item.docstring)
    assert not entries or tensors - {"return"} <= entries.keys(), f"{item} leaves out {tensors - entries.keys()}"
    for name in tensors & entries.keys():
        assert SHAPE.search(entries[name]) or "number" in entries[name], f"{item} gives no shape for {name}"


def arguments(docstring: str) -> dict[str, str]:
    """The entries of a Google docstring's `Args:` section."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.split(r"^ {4}(\w+): ", section.group(1), flags=re.MULTILINE)[1:] if section else []
    return dict(zip(entries[::2], entries[1::2], strict=True))
