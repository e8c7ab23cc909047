"""The first stage of the tasks: that of examples/first_stage, trained as there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from data import Photographs
from photos import Photos
from torch import Tensor
from training import PRESETS, Recipe
from training import train as train_first_stage

import latentdiff as ld

__all__ = ["WIDER", "Recipe", "load", "reconstruct", "train"]

WIDER = {"cpu": {"steps": 800, "base_channels": 24}}
"""Steps and channels, by preset, of a first stage for tasks that are given colours and must meet them.

With the preset's 16 channels there are 32 in the smallest maps, each a group of its own in the norms: these take each
channel's mean over the picture away, and with it how bright and of what colour the picture is.
"""


def train(
    found: Photos,
    recipe: Recipe,
    preset: str,
    folder: Path | None,
    *,
    steps: int | None = None,
    base_channels: int | None = None,
) -> ld.Autoencoder:
    """A first stage with an adversary in the second half of training, calibrated to unit latents.

    The classes of the photographs are not told. The discriminator is left behind; checkpoints are kept in `folder`, if
    there is one. `steps` and `base_channels` are those of the preset unless they are given.
    """
    told = {"steps": steps, "base_channels": base_channels}
    settings = replace(PRESETS[preset], **{name: value for name, value in told.items() if value is not None})
    pictures = Photographs(found.train.pictures, found.validation.pictures, found.source)
    return train_first_stage(recipe, settings, pictures, folder).autoencoder.eval()


def load(path: Path, device: torch.device) -> ld.Autoencoder:
    """A first stage that was saved."""
    loaded = ld.load(path, device=device)
    if not isinstance(loaded, ld.Autoencoder):
        raise TypeError(f"{path} must hold an Autoencoder, got {type(loaded).__name__}")
    return loaded.eval()


@torch.no_grad()
def reconstruct(model: ld.Autoencoder, images: Tensor) -> Tensor:
    """Images in [-1, 1] through the first stage and back, on the CPU."""
    device = model.last_layer.device
    made = [model.clamp(model.decode(model.encode(part.to(device)).mode())) for part in images.split(100)]
    return torch.cat(made).float().cpu()
