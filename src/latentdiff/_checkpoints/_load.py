"""Reading and writing models, whatever the layout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn

from latentdiff._checkpoints._compvis import read_compvis, write_compvis
from latentdiff._checkpoints._native import read_native
from latentdiff._checks import check_choice
from latentdiff._module import Module
from latentdiff._typing import JSON

Layout: TypeAlias = Literal["compvis"]
"""How other people's code lays a model out on the disk."""


def load(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | Mapping[str, JSON] | None = None,
    ema: bool = True,
    device: torch.device | str = "cpu",
    classes: Iterable[type[Module]] = (),
) -> Module:
    """Build a module again from a file, in evaluation mode.

    Without `config` the file is one that `save` wrote. With it, the file is a checkpoint of CompVis' latent diffusion
    or taming-transformers: `LatentDiffusion` or `Autoencoder`, as the configuration says. Of such a file

    - the averaged weights are taken where there are any, as the original samples with them;
    - the latents' scale factor is that of the file, else that of the configuration;
    - the schedule is that of the configuration, in float64;
    - a guided draw is allowed where the model has an empty prompt or a class for none;
    - weights are float32, and their memory is the file, mapped, so that unused parts of it cost none. Do not overwrite
      it in place while the model is in use; `save` and `export` replace files.

    Args:
        path: The file: `*.safetensors`, or for a checkpoint also what `torch.save` wrote (`*.ckpt`), which is read with
            `weights_only=True`.
        config: The YAML file that belongs to the checkpoint (needs the extra `interop`), or what it holds.
        ema: Whether averaged weights are taken; False for the raw ones, to go on training. For checkpoints only.
        device: Where the weights go.
        classes: Classes of one's own that a file of `save` names.

    Returns:
        The module, of the class that was saved.

    Raises:
        CheckpointError: If the file is missing, damaged, truncated, of another kind, names an unknown class, or its
            tensors do not fit the module; says which are missing, unexpected and misshapen.
        ImportError: If a YAML file is given and PyYAML is not installed.
        TypeError: If `config` is neither a path nor a mapping.
        ValueError: If an argument has no use with the others.
    """
    if config is None:
        if not ema:
            raise ValueError("ema must be left out without config, as files of save have no averages, got False")
        return read_native(Path(path), device=device, classes=classes)
    if named := [cls.__name__ for cls in classes]:
        raise ValueError(f"classes must be left out with config, which names none of them, got {', '.join(named)}")
    return read_compvis(Path(path), config, device=device, ema=ema)


def export(model: nn.Module, path: str | os.PathLike[str], *, layout: Layout, ema: nn.Module | None = None) -> None:
    """Write a model for other people's code, as its authors would have written it, key for key.

    The layout "compvis" is that of latent diffusion's and taming's checkpoints. It holds the weights and the tables of
    the noise schedule; everything else is in the model's YAML file, the latents' scale factor too unless float32 holds
    it exactly. `load` reads the file again, with that YAML file.

    Args:
        model: A `LatentDiffusion`, or an `Autoencoder` alone.
        path: `*.safetensors`, or `*.ckpt` for what `torch.save` writes; replaced when it is complete.
        layout: Which layout.
        ema: The same model with averaged weights, written beside the others; without it there are no averages.

    Raises:
        TypeError: If `model` is another module.
        ValueError: If it has a part that the layout has no place for, or the layout is unknown.
    """
    check_choice("layout", layout, ("compvis",))
    write_compvis(model, Path(path), ema=ema)
