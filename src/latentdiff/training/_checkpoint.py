"""Checkpoints of a training: folders that are complete or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import torch
import torch.distributed as dist
from torch import Tensor

from latentdiff._checkpoints._files import read_tensors, replace, write_safetensors
from latentdiff._distributed import is_distributed
from latentdiff._errors import CheckpointError
from latentdiff.training._sharding import fill, is_sharded

FORMAT: Final = 1
TENSORS: Final = "tensors.safetensors"
SHARDS: Final = "shards"
PLAIN: Final = "training.json"
NAME: Final = re.compile(r"step-(\d{9})")


@dataclass
class State:
    """All that a training needs to go on, flat.

    Attributes:
        tensors: Of any shape, sharded or not, by name.
        plain: What JSON can write.
        loader: State of a data loader of this process, if it has one.
    """

    tensors: dict[str, Tensor]
    plain: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] | None = None


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:09}"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and (path / PLAIN).is_file())


def write(folder: Path, step: int, state: State, keep: int) -> Path:
    """Write a checkpoint beside the others, flush it, give it its name, and remove old ones beyond `keep`.

    To be called on every process.
    """
    path, beside = path_of(folder, step), folder / f".step-{step:09}.tmp"
    is_first = not is_distributed() or dist.get_rank() == 0
    if is_first:
        for left in folder.glob(".step-*.tmp"):
            shutil.rmtree(left)
        beside.mkdir(parents=True)
    _wait()
    if any(is_sharded(tensor) for tensor in state.tensors.values()):
        _engine().save(dict(state.tensors), checkpoint_id=beside / SHARDS)
    elif is_first:
        write_safetensors(beside / TENSORS, state.tensors)
    if state.loader is not None:
        loader = state.loader
        rank = dist.get_rank() if is_distributed() else 0
        replace(beside / f"loader-{rank}.pt", lambda path: torch.save(loader, path))
    _wait()
    if is_first:
        _name(path, beside, state.plain)
        for old in checkpoints(folder)[:-keep]:
            _remove(old)
    _wait()
    return path


def _name(path: Path, beside: Path, plain: dict[str, Any]) -> None:
    """Make a written folder a checkpoint: until the last line there is none."""
    text = json.dumps({"format": FORMAT, **plain}, indent=1)
    replace(beside / PLAIN, lambda file: file.write_text(text))
    for file in (beside / SHARDS).glob("*"):
        _flush(file)
    _flush(beside)
    if path.exists():
        _remove(path)
    beside.rename(path)
    _flush(path.parent)


def read_plain(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: If it is damaged or of another format.
    """
    try:
        plain: dict[str, Any] = json.loads((path / PLAIN).read_text())
        version = plain["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no complete checkpoint of a training: {error!r}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version of latentdiff reads {FORMAT}")
    return plain


def read_loader(path: Path) -> dict[str, Any] | None:
    """The state of this process's data loader, if one was kept."""
    file = path / f"loader-{dist.get_rank() if is_distributed() else 0}.pt"
    return cast("dict[str, Any]", torch.load(file, weights_only=True)) if file.is_file() else None


def shapes(path: Path) -> dict[str, torch.Size]:
    """By name, the shape of each tensor in a checkpoint.

    Raises:
        CheckpointError: If it is damaged.
    """
    if not (path / SHARDS).is_dir():
        return {name: tensor.shape for name, tensor in read_tensors(path / TENSORS).items()}
    engine = _engine()
    entries = engine.FileSystemReader(path / SHARDS).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in entries.items() if isinstance(entry, engine.TensorStorageMetadata)}


@torch.no_grad()
def read_into(path: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors of any shape, sharded or not, from a checkpoint, whatever number of processes wrote it.

    Raises:
        CheckpointError: If it is damaged or does not fit.
    """
    found = shapes(path)
    missing, unexpected = sorted(targets.keys() - found.keys()), sorted(found.keys() - targets.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not fit what is trained: it lacks {_some(missing)} and has {_some(unexpected)} besides",
            missing=missing,
            unexpected=unexpected,
        )
    if wrong := {n: (tuple(found[n]), tuple(t.shape)) for n, t in targets.items() if found[n] != t.shape}:
        name, (there, here) = next(iter(wrong.items()))
        raise CheckpointError(f"{path} has {name} of {list(there)}, not {list(here)}", misshapen=wrong)
    if (path / SHARDS).is_dir():
        with warnings.catch_warnings():  # that this process is alone
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            _engine().load(dict(targets), checkpoint_id=path / SHARDS)
        return
    stored = read_tensors(path / TENSORS)
    for name, target in targets.items():
        fill(target, stored[name])


def _engine() -> ModuleType:
    """PyTorch's distributed checkpoints, whose import takes a second: only where weights are sharded."""
    from torch.distributed import checkpoint

    return checkpoint


def _some(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more if names else "nothing"


def _remove(path: Path) -> None:
    """Take a checkpoint's name away first, so that a half-removed one is none."""
    away = path.with_name(f".{path.name}.tmp")
    if away.exists():
        shutil.rmtree(away)
    path.rename(away)
    shutil.rmtree(away)


def _flush(path: Path) -> None:
    if os.name == "nt":  # pragma: no cover
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait() -> None:
    if is_distributed():
        dist.barrier()
