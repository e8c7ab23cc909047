"""Objectives for what this library is made of: a diffusion model, and a first stage with or without an adversary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import torch
from torch import Tensor, nn

from latentdiff._autoencoder import Autoencoder, AutoencoderOutput
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff.losses import AutoencoderLoss, DiffusionLoss
from latentdiff.training._learning_rate import LearningRate
from latentdiff.training._objective import Objective
from latentdiff.training._step import Step

KEPT: Final = "first stage"
"""Under which images and reconstruction wait for the discriminator."""


def diffusion_objective(
    model: LatentDiffusion,
    *,
    loss: DiffusionLoss | None = None,
    latents: bool = False,
    learning_rate: float | LearningRate = 1e-4,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = 1.0,
) -> Objective:
    """The denoising loss of a latent diffusion model: trains its network and condition encoder.

    A batch is images `[batch, channels, *spatial]`, or a pair of them and what the condition encoder takes.

    Args:
        model: Its autoencoder is trained already, and stays as it is.
        loss: Which loss; None is `DiffusionLoss()`.
        latents: Whether a batch has latents in place of images, such as those of `LatentCache`.
        learning_rate: A number for a constant one.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        clip: Largest norm of the gradient; None for any.
    """
    module = _Denoising(model, loss or DiffusionLoss(), latents)
    return Objective(module, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas, clip=clip)


def first_stage_objectives(
    autoencoder: Autoencoder,
    loss: AutoencoderLoss,
    *,
    learning_rate: float | LearningRate = 1e-4,
    discriminator_learning_rate: float | LearningRate | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.5, 0.9),
    clip: float | None = None,
) -> list[Objective]:
    """The loss of a first stage, and that of its discriminator if there is one, from the same reconstruction.

    A batch is images `[batch, channels, *spatial]`, or a tuple or list that begins with them. The discriminator sits
    out the steps before the loss's `start_step`.

    Args:
        autoencoder: What is trained; calibrate it afterwards.
        loss: As it was made, its discriminator included.
        learning_rate: A number for a constant one.
        discriminator_learning_rate: None for the same.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        clip: Largest norm of each gradient; None for any.

    Returns:
        One objective, `"generator"`, or two, `"generator"` and `"discriminator"`.
    """
    rates = (learning_rate, learning_rate if discriminator_learning_rate is None else discriminator_learning_rate)
    modules: dict[str, nn.Module] = {"generator": _Reconstruction(autoencoder, loss)}
    if loss.discriminator is not None:
        modules["discriminator"] = _Discrimination(loss)
    return [
        Objective(module, name=name, learning_rate=rate, weight_decay=weight_decay, betas=betas, clip=clip)
        for (name, module), rate in zip(modules.items(), rates, strict=False)
    ]


class _Denoising(nn.Module):
    """Holds what is trained; the model itself stands beside it, so that the autoencoder is none of its parts."""

    def __init__(self, model: LatentDiffusion, loss: DiffusionLoss, latents: bool) -> None:
        super().__init__()
        self.unet = model.unet
        self.condition_encoder = model.condition_encoder
        self.uncertainty = loss.uncertainty if isinstance(loss.uncertainty, nn.Module) else None
        self._beside = (model, loss)
        self._latents = latents

    def forward(self, batch: Tensor | tuple[Tensor, object], step: Step) -> Tensor:
        model, loss = self._beside
        x, y = (batch[0], batch[1]) if isinstance(batch, tuple | list) else (batch, None)
        latents = x if self._latents else model.encode(x, step.generator)
        generator = cast(torch.Generator, step.generator)  # encoders pass it on to `draw_uniform` and `draw_noise`
        return model.loss_of_latents(latents, y, objective=loss, generator=generator)


class _Reconstruction(nn.Module):
    """The generator's side; the loss stands beside, so that the discriminator is none of its parts."""

    def __init__(self, autoencoder: Autoencoder, loss: AutoencoderLoss) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        if isinstance(loss.log_variance, nn.Parameter):
            self.log_variance = loss.log_variance
        self._beside = (loss,)

    def forward(self, batch: Tensor | tuple[Tensor, ...], step: Step) -> Mapping[str, Tensor]:
        (loss,), images = self._beside, batch if isinstance(batch, Tensor) else batch[0]
        output = self.autoencoder(images, step.generator)
        last_layer = self.autoencoder.last_layer if loss.is_adversarial(step.number) else None
        answer = loss.generator_loss(images, output, step=step.number, last_layer=last_layer)
        step.kept[KEPT] = (images, output)
        figures = {
            "loss": answer.loss,
            "reconstruction": answer.reconstruction,
            "perceptual": answer.perceptual,
            "nll": answer.nll,
            "kl": answer.kl,
            "codebook": answer.codebook,
        }
        if loss.is_adversarial(step.number):
            figures |= {"adversarial": answer.adversarial, "adversarial_weight": answer.adversarial_weight}
        return figures


class _Discrimination(nn.Module):
    """The discriminator's side, of the reconstruction that the generator's side left."""

    def __init__(self, loss: AutoencoderLoss) -> None:
        super().__init__()
        self.discriminator = loss.discriminator
        self._beside = (loss,)

    def forward(self, batch: object, step: Step) -> Mapping[str, Tensor] | None:
        (loss,) = self._beside
        if not loss.is_adversarial(step.number):
            return None
        images, output = cast("tuple[Tensor, AutoencoderOutput]", step.kept[KEPT])
        answer = loss.discriminator_loss(images, output, step=step.number)
        return {"loss": answer.loss, "real": answer.real, "fake": answer.fake}
