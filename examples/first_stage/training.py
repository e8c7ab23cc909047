"""How a first stage is trained: what it is made of, and the steps of autoencoder and discriminator in turn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from data import Photographs, spread, to_images
from torch import Tensor

import latentdiff as ld
from latentdiff.training import LearningRate, Trainer, first_stage_objectives

LATENT_CHANNELS = {1: 3, 2: 2, 4: 3, 8: 4}
"""By downsampling factor, as in the paper's zoo (Rombach et al. 2022, arXiv:2112.10752, table 8)."""

FIGURES = {
    "generator/reconstruction": "mean absolute error",
    "generator/perceptual": "perceptual distance",
    "generator/kl": "KL, nats per element",
    "generator/codebook": "codebook loss",
    "discriminator/real": "answers for real",
    "discriminator/fake": "answers for made up",
    "generator/adversarial_weight": "weight of the adversary",
}
"""What the trainer logs, and what it is called in the pictures."""


@dataclass(frozen=True)
class Preset:
    """How large and how long.

    Attributes:
        steps: Of training.
        batch_size: Photographs in a step.
        base_channels: Of the autoencoder at full size.
        blocks_per_level: Of the autoencoder.
        codebook_size: Of the VQ models.
        discriminator_channels: After its first convolution.
        learning_rate: Of the autoencoder at its highest; a quarter of it for the discriminator.
        evaluated: Photographs that are measured, and that calibrate the latents.
        limit: Photographs that are read of each class; None for all.
    """

    steps: int
    batch_size: int
    base_channels: int
    blocks_per_level: int
    codebook_size: int
    discriminator_channels: int
    learning_rate: float
    evaluated: int
    limit: int | None = None


PRESETS = {
    "smoke": Preset(6, 8, 8, 1, 32, 8, 1e-3, 60, limit=20),
    "cpu": Preset(1600, 16, 16, 1, 512, 24, 2e-3, 2000),
    "gpu": Preset(30000, 128, 96, 2, 1024, 64, 4e-4, 5000),
}


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one first stage from another.

    Attributes:
        bottleneck: `"kl"` or `"vq"`.
        factor: Downsampling factor: 1, 2, 4 or 8.
        perceptual: Whether the pyramid distance is part of the loss.
        adversary: Whether a discriminator is, in the second half of training.
        codes: How a codebook learns: `"average"` is a moving average from a start at k-means, dead codes restarting;
            `"gradient"` is none of these.
    """

    bottleneck: Literal["kl", "vq"]
    factor: int = 4
    perceptual: bool = True
    adversary: bool = True
    codes: Literal["average", "gradient"] = "average"


@dataclass(frozen=True)
class Trained:
    """What has come of a training.

    Attributes:
        autoencoder: Calibrated to unit latents.
        steps: That were made.
        seconds: Spent in them.
        history: Figures of the steps, by what they are.
    """

    autoencoder: ld.Autoencoder
    steps: int
    seconds: float
    history: dict[str, list[float]]


def build(recipe: Recipe, preset: Preset, device: torch.device) -> tuple[ld.Autoencoder, ld.losses.AutoencoderLoss]:
    """A first stage and its loss, at the start; the same weights each time."""
    torch.manual_seed(0)
    is_average = recipe.bottleneck == "vq" and recipe.codes == "average"
    levels = int(math.log2(recipe.factor)) + 1
    autoencoder = ld.Autoencoder(
        latent_channels=LATENT_CHANNELS[recipe.factor],
        base_channels=preset.base_channels,
        channel_multipliers=(1, 2, 2, 4)[:levels],
        blocks_per_level=preset.blocks_per_level,
        middle_attention=False,  # as in the published vq-f4-noattn: it works at any size of picture
        bottleneck=recipe.bottleneck,
        codebook_size=preset.codebook_size if recipe.bottleneck == "vq" else None,
        codebook_decay=0.99 if is_average else None,
        restart_below=0.1 if is_average else 0.0,
    )
    loss = ld.losses.AutoencoderLoss(
        perceptual=ld.losses.PyramidLoss() if recipe.perceptual else None,
        discriminator=discriminator(preset) if recipe.adversary else None,
        start_step=preset.steps // 2 if recipe.adversary else 0,
    )
    return autoencoder.to(device), loss.to(device)


def discriminator(preset: Preset) -> ld.PatchDiscriminator:
    """Patches of 34 pixels: about a whole photograph of CIFAR-10."""
    return ld.PatchDiscriminator(base_channels=preset.discriminator_channels, num_layers=2)


def train(recipe: Recipe, preset: Preset, photographs: Photographs, folder: Path | None) -> Trained:
    """Train to the end, from the checkpoint in `folder` if there is one; then calibrate to unit latents."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder, loss = build(recipe, preset, device)
    if recipe.bottleneck == "vq" and recipe.codes == "average" and not (folder and folder.exists()):
        start = photographs.batch(start_size(recipe, preset, photographs), 0, device)
        autoencoder.initialize_codebook(start, generator=torch.Generator(device).manual_seed(0))
    trainer = make_trainer(autoencoder, loss, preset, photographs, folder)
    history = trainer.train()
    autoencoder.eval().calibrate(in_batches(spread(photographs.train, preset.evaluated), device))
    figures = {name: [x for x in history[key] if not math.isnan(x)] for key, name in FIGURES.items() if key in history}
    return Trained(autoencoder, trainer.step, trainer.seconds, figures)


def start_size(recipe: Recipe, preset: Preset, photographs: Photographs) -> int:
    """Photographs that have forty latents for each code of the codebook."""
    return 1 + 40 * preset.codebook_size * recipe.factor**2 // photographs.train[0, 0].numel()


def make_trainer(
    autoencoder: ld.Autoencoder,
    loss: ld.losses.AutoencoderLoss,
    preset: Preset,
    photographs: Photographs,
    folder: Path | None,
) -> Trainer:
    """A step of the autoencoder and one of the discriminator in turn; a checkpoint every tenth of the steps."""
    device = autoencoder.last_layer.device
    rate, adversary_rate = (
        LearningRate(peak, warm_up=max(1, preset.steps // 20), decay="cosine", steps=preset.steps)
        for peak in (preset.learning_rate, preset.learning_rate / 4)
    )
    objectives = first_stage_objectives(
        autoencoder, loss, learning_rate=rate, discriminator_learning_rate=adversary_rate
    )
    batches = partial(photographs.batch, preset.batch_size, device=device)
    return Trainer(objectives, batches, steps=preset.steps, folder=folder, save_every=max(1, preset.steps // 10))


def in_batches(pictures: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Pictures as images in [-1, 1], some at a time."""
    return (to_images(part.to(device)) for part in pictures.split(100))
