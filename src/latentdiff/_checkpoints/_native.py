"""One self-describing safetensors file: the weights, and in its metadata the constructor calls that make the module."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentdiff._attention import CrossAttention
from latentdiff._autoencoder import Autoencoder
from latentdiff._checkpoints._files import write_safetensors
from latentdiff._checkpoints._report import check_fit
from latentdiff._condition import (
    ClassEncoder,
    FrozenEncoder,
    LayoutEncoder,
    MultiEncoder,
    SpatialEncoder,
    TextEncoder,
)
from latentdiff._discriminator import PatchDiscriminator
from latentdiff._dit import DiT
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
    DiT,
    FiniteScalarQuantizer,
    FrozenEncoder,
    LatentDiffusion,
    LayoutEncoder,
    MultiEncoder,
    PatchDiscriminator,
    PyramidLoss,
    ResidualQuantizer,
    SpatialEncoder,
    TextEncoder,
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
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, "module": describe(module)})}
    write_safetensors(Path(path), module.state_dict(), metadata)


def read_native(path: Path, *, device: torch.device | str, classes: Iterable[type[Module]]) -> Module:
    """The module of a file that `save` wrote, in evaluation mode; see `load`."""
    description, tensors = _read(path, device)
    known = {cls.__name__: cls for cls in (*CLASSES, *classes)}
    try:
        with torch.device("meta"):
            module = build(description, known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes a module that cannot be built: {error}") from error
    if not isinstance(module, Module):
        raise CheckpointError(f"{path} must describe a module, got {type(module).__name__}")
    wanted, found = ({k: tuple(v.shape) for k, v in state.items()} for state in (module.state_dict(), tensors))
    check_fit(path, "the module it describes", wanted, found)
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
