"""How a first stage is trained: what it is made of, and the steps of autoencoder and discriminator in turn."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from data import Photographs, spread, to_images
from torch import Tensor
from torch.optim import Adam
from tqdm import tqdm

import latentdiff as ld

LATENT_CHANNELS = {1: 3, 2: 2, 4: 3, 8: 4}
"""By downsampling factor, as in the paper's zoo (Rombach et al. 2022, arXiv:2112.10752, table 8)."""


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

    @property
    def rates(self) -> tuple[float, float]:
        """Of autoencoder and discriminator."""
        return self.learning_rate, self.learning_rate / 4


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


@dataclass
class Progress:
    """What a run has come to, all that is needed to go on: batches and noise are functions of the step."""

    autoencoder: ld.Autoencoder
    loss: ld.losses.AutoencoderLoss
    optimizers: list[Adam]
    step: int = 0
    seconds: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)


def build(recipe: Recipe, preset: Preset, device: torch.device) -> Progress:
    """A first stage, its loss and its optimisers, at the start; the same weights each time."""
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
    ).to(device)
    loss = ld.losses.AutoencoderLoss(
        perceptual=ld.losses.PyramidLoss() if recipe.perceptual else None,
        discriminator=discriminator(preset) if recipe.adversary else None,
        start_step=preset.steps // 2 if recipe.adversary else 0,
    ).to(device)
    pairs = zip(loss.parameter_groups(autoencoder), preset.rates, strict=True)
    # all of a group in one call on the CPU too
    optimizers = [Adam(group, lr=rate, betas=(0.5, 0.9), fused=True) for group, rate in pairs if group]
    return Progress(autoencoder, loss, optimizers)


def discriminator(preset: Preset) -> ld.PatchDiscriminator:
    """Patches of 34 pixels: about a whole photograph of CIFAR-10."""
    return ld.PatchDiscriminator(base_channels=preset.discriminator_channels, num_layers=2)


def train(recipe: Recipe, preset: Preset, photographs: Photographs, checkpoint: Path, resume: bool) -> Progress:
    """Train to the end, from the checkpoint if there is one and it is wanted; then calibrate to unit latents."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    progress = build(recipe, preset, device)
    if resume and checkpoint.exists():
        restore(progress, checkpoint)
    autoencoder = progress.autoencoder.train()
    if recipe.bottleneck == "vq" and recipe.codes == "average" and not progress.step:
        start = photographs.batch(
            1 + 40 * preset.codebook_size * recipe.factor**2 // photographs.train[0, 0].numel(), 0, device
        )
        autoencoder.initialize_codebook(start, generator=torch.Generator(device).manual_seed(0))
    started, every = time.perf_counter() - progress.seconds, max(1, preset.steps // 10)
    title = f"{recipe.bottleneck} f={recipe.factor}"
    bar = tqdm(total=preset.steps, initial=progress.step, desc=title, unit="step")
    while progress.step < preset.steps:
        bar.set_postfix(one_step(progress, preset, photographs, device), refresh=False)
        bar.update()
        progress.seconds = time.perf_counter() - started
        if progress.step % every == 0:
            save(progress, checkpoint)
    bar.close()
    autoencoder.eval().calibrate(in_batches(spread(photographs.train, preset.evaluated), device))
    return progress


def one_step(progress: Progress, preset: Preset, photographs: Photographs, device: torch.device) -> dict[str, str]:
    """A step of the autoencoder and one of the discriminator; what the bar shows."""
    step, loss, autoencoder = progress.step, progress.loss, progress.autoencoder
    images = photographs.batch(preset.batch_size, step, device)
    set_rates(progress, preset)
    with autocast(device):
        output = autoencoder(images, torch.Generator(device).manual_seed(step))
        generator = loss.generator_loss(images, output, step=step, last_layer=autoencoder.last_layer)
    update(progress.optimizers[0], generator.loss, step)
    figures = {
        "mean absolute error": generator.reconstruction,
        "perceptual distance": generator.perceptual,
        "KL, nats per element": generator.kl,
        "codebook loss": generator.codebook,
    }
    if loss.is_adversarial(step):
        with autocast(device):
            discriminator = loss.discriminator_loss(images, output, step=step)
        update(progress.optimizers[1], discriminator.loss, step)
        figures |= {"answers for real": discriminator.real, "answers for made up": discriminator.fake}
        figures |= {"weight of the adversary": generator.adversarial_weight}
    for name, value in figures.items():
        progress.history.setdefault(name, []).append(value.item())
    progress.step += 1
    return {"error": f"{generator.reconstruction.item():.4f}"}


def set_rates(progress: Progress, preset: Preset) -> None:
    """Learning rates of this step: up in the first twentieth of the steps, then down along a cosine."""
    share = (progress.step + 1) / preset.steps
    factor = min(20 * share, 0.5 + 0.5 * math.cos(math.pi * share))
    for optimizer, rate in zip(progress.optimizers, preset.rates, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = factor * rate


def update(optimizer: Adam, loss: Tensor, step: int) -> None:
    """One step of an optimiser."""
    if not loss.isfinite():
        raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 on a GPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def in_batches(pictures: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Pictures as images in [-1, 1], some at a time."""
    return (to_images(part.to(device)) for part in pictures.split(100))


def save(progress: Progress, path: Path) -> None:
    """Write a checkpoint beside the old one, then take its place."""
    state = {
        "step": progress.step,
        "seconds": progress.seconds,
        "history": progress.history,
        "autoencoder": progress.autoencoder.state_dict(),
        "loss": progress.loss.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in progress.optimizers],
    }
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def restore(progress: Progress, path: Path) -> None:
    """Go on from a checkpoint."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    progress.step, progress.seconds, progress.history = state["step"], state["seconds"], state["history"]
    progress.autoencoder.load_state_dict(state["autoencoder"])
    progress.loss.load_state_dict(state["loss"])
    for optimizer, kept in zip(progress.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
