"""One self-describing safetensors file: the weights, and in its metadata the constructor calls that make the module."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentdiff._attention import CrossAttention
from latentdiff._autoencoder import Autoencoder
from latentdiff._condition import ClassEncoder
from latentdiff._discriminator import PatchDiscriminator
from latentdiff._errors import CheckpointError
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._lpips import LPIPS
from latentdiff._module import Module, describe
from latentdiff._quantizer import VectorQuantizer
from latentdiff._residual_quantizer import ResidualQuantizer
from latentdiff._scalar_quantizer import FiniteScalarQuantizer
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import JSON
from latentdiff._unet import UNet
from latentdiff.losses import AutoencoderLoss, PyramidLoss

METADATA_KEY: Final = "latentdiff"
FORMAT: Final = 1
CLASSES: Final[tuple[type[Module], ...]] = (
    LPIPS,
    Autoencoder,
    AutoencoderLoss,
    ClassEncoder,
    CrossAttention,
    FiniteScalarQuantizer,
    LatentDiffusion,
    ResidualQuantizer,
    PatchDiscriminator,
    PyramidLoss,
    UNet,
    VectorQuantizer,
)


def save(module: Module, path: str | os.PathLike[str]) -> None:
    """Write a module to one safetensors file from which `load` builds it again.

    The file is complete or not there: it is written beside `path`, flushed to disk, then renamed.

    Args:
        module: Any module of latentdiff, or a subclass of `Module` of one's own.
        path: Usually `*.safetensors`; overwritten.

    Raises:
        TypeError: If the module's arguments cannot be written as JSON.
    """
    path = Path(path)
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, "module": describe(module)})}
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(_unshared(tensors), beside, metadata)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    classes: Iterable[type[Module]] = (),
) -> Module:
    """Build a module again from a file that `save` wrote, in evaluation mode.

    Args:
        path: The file.
        device: Where the weights go.
        classes: Classes of one's own that the file names.

    Returns:
        The module, of the class that was saved.

    Raises:
        CheckpointError: If the file is missing, damaged, truncated, not written by `save`, names an unknown class,
            or its tensors do not fit the module.
    """
    path = Path(path)
    description, tensors = _read(path, device)
    known = {cls.__name__: cls for cls in (*CLASSES, *classes)}
    try:
        with torch.device("meta"):
            module = build(description, known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes a module that cannot be built: {error}") from error
    if not isinstance(module, Module):
        raise CheckpointError(f"{path} must describe a module, got {type(module).__name__}")
    _check_keys(path, module.state_dict(), tensors)
    module.load_state_dict(tensors, assign=True)
    return module.eval()


def build(description: JSON, known: Mapping[str, type[Module]]) -> object:
    """The object of a description made by `describe`; parts are built first.

    Raises:
        CheckpointError: If a class is not known.
    """
    if isinstance(description, Mapping) and "class" in description:
        name, config = description["class"], description["config"]
        if name == NoiseSchedule.__name__ and isinstance(config, Mapping):
            return NoiseSchedule.from_config(config)
        if name not in known or not isinstance(config, Mapping):
            raise CheckpointError(f"unknown class {name!r}; give classes of your own to load(..., classes=[...])")
        return known[str(name)](**{key: build(value, known) for key, value in config.items()})
    if isinstance(description, Mapping):
        return {key: build(value, known) for key, value in description.items()}
    if isinstance(description, list):
        return tuple(build(item, known) for item in description)
    return description


def _read(path: Path, device: torch.device | str) -> tuple[JSON, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path} must be a file written by latentdiff.save, but there is no such file")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no complete safetensors file (damaged or truncated): {error}") from error
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} has no {METADATA_KEY!r} metadata: latentdiff.save did not write it")
    try:
        header = json.loads(metadata[METADATA_KEY])
        version, description = header["format"], header["module"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has damaged metadata: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version of latentdiff reads {FORMAT}")
    return description, tensors


def _check_keys(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    misshapen = [
        f"{name}: {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    problems = [f"{kind}: {', '.join(names)}" for kind, names in lists if names]
    if problems:
        raise CheckpointError(f"{path} does not fit the module it describes; {'; '.join(problems)}")


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with an earlier one, which the file format does not allow."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result
