"""Files of tensors: read as data alone and lazily, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentdiff._errors import CheckpointError

INERT: Final = ("pytorch_lightning.", "lightning.", "numpy.", "_codecs.encode")
"""How names of what stands beside the weights in old checkpoints begin: a trainer's state, of which nothing is used."""


class Inert:
    """What an object of training becomes when a checkpoint is read without the package that it belongs to."""

    def __init__(self, *arguments: object) -> None:
        """Take whatever the object was made of, and forget it."""

    def __setstate__(self, state: object) -> None:
        """Forget the state too."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file, or of the `state_dict` of a file written by `torch.save`.

    Their memory is the file, mapped: what is not used is not read. A pickle is read as data, with `weights_only`.

    Raises:
        CheckpointError: If the file is missing, damaged, or asks for code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} must be a checkpoint, but there is no such file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file that is complete or not there."""
    content = _unshared({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    replace(path, lambda beside: save_file(content, beside, None if metadata is None else dict(metadata)))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a `.safetensors` file, or for another suffix as the `state_dict` that `torch.save` writes."""
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors)
        return
    state = {"state_dict": {name: tensor.detach().cpu() for name, tensor in tensors.items()}}
    replace(path, lambda beside: torch.save(state, beside))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file beside `path`, flush it to the disk, then give it its name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no complete safetensors file (damaged or truncated): {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(path)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
    inert: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (Inert, name) for name in names if name.startswith(INERT)
    ]
    try:
        with torch.serialization.safe_globals(inert):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if (asked := sorted(name for name in names if not name.startswith(INERT))) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} must hold tensors and plain values only, as nothing in a pickle is run, got "
                f"{', '.join(asked) or 'others'}"
            ) from None
        raise CheckpointError(f"{path} is no complete checkpoint (damaged or truncated)") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no complete checkpoint (damaged or truncated): {error}") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} must hold a mapping of tensors, got {type(state).__name__}")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with an earlier one, which the file format does not allow."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result
