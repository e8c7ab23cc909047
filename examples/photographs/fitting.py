"""How everything here is trained: photographs half of them mirrored, bfloat16, averaged weights at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from photos import Labelled, to_images
from torch import Tensor, nn

from latentdiff.training import EMA, Batches, LearningRate, Objective, Trainer

Batch = tuple[Tensor, Tensor]
"""Images `[batch, 3, height, width]` in [-1, 1] and labels `[batch]`."""

Transform = Callable[[Batch, torch.Generator], object]
"""What becomes of a batch of bytes before a step of training sees it."""

Trained = TypeVar("Trained", bound=nn.Module)

DECAY = 0.995
"""Of the moving average of weights: it reaches two hundred steps back."""


def mirrored(batch: Batch, generator: torch.Generator) -> Batch:
    """Bytes as numbers in [-1, 1], each picture mirrored or not."""
    pictures, labels = batch
    flipped = torch.rand(len(pictures), generator=generator) < 0.5
    return to_images(torch.where(flipped[:, None, None, None], pictures.flip(-1), pictures)), labels


def rate(peak: float, steps: int) -> LearningRate:
    """Up in the first twentieth of the steps, then down along a cosine."""
    return LearningRate(peak, warm_up=max(1, steps // 20), decay="cosine", steps=steps)


def trainer(
    model: Trained,
    objective: Objective | list[Objective],
    photos: Labelled,
    *,
    steps: int,
    batch_size: int,
    transform: Transform = mirrored,
    folder: Path | None = None,
    progress: bool = True,
) -> tuple[Trainer, EMA[Trained]]:
    """A trainer of `model`, and the averages that it keeps."""
    average = EMA(model, DECAY)
    batches = Batches((photos.pictures, photos.labels), min(batch_size, len(photos)), transform=transform)
    made = Trainer(
        objective,
        batches,
        steps=steps,
        folder=folder,
        averages=[(average, model)],
        save_every=max(1, steps // 5),
        precision="bfloat16",
        progress=progress,
    )
    return made, average


def fit(
    model: nn.Module,
    objective: Objective | list[Objective],
    photos: Labelled,
    *,
    steps: int,
    batch_size: int,
    transform: Transform = mirrored,
    folder: Path | None = None,
) -> dict[str, list[float]]:
    """Train to the end, from a checkpoint in `folder` if there is one; the model ends with its averaged weights."""
    made, average = trainer(
        model, objective, photos, steps=steps, batch_size=batch_size, transform=transform, folder=folder
    )
    history = made.train()
    average.copy_to(model)
    model.eval()
    return history
