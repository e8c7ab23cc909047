"""First stage, denoising network, schedule and condition encoder in one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentdiff._autoencoder import Autoencoder
from latentdiff._condition import Condition, ConditionEncoder
from latentdiff._denoiser import Denoiser, Variance
from latentdiff._dit import DiT
from latentdiff._module import Module
from latentdiff._network_inputs import check_latents
from latentdiff._noise import draw_noise
from latentdiff._sampler import Sampler
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Generator, Images, Latents, Prediction
from latentdiff._unet import UNet
from latentdiff.guidance import ClassifierFree
from latentdiff.losses import DiffusionLoss


class LatentDiffusion(Module):
    """Diffusion in the latent space of an autoencoder (Rombach et al. 2022, arXiv 2112.10752).

    The autoencoder is trained before and stays as it is: it remains in evaluation mode and gets no gradient from
    `loss`.
    """

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        unet: UNet | DiT,
        schedule: NoiseSchedule,
        condition_encoder: ConditionEncoder | None = None,
        prediction: Prediction = "epsilon",
        variance: Variance | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        """Join the parts.

        Args:
            autoencoder: Images to latents of unit size and back.
            unet: Noisy latents, time and condition to a prediction: a `UNet`, or a network with its interface.
            schedule: How much noise there is at which time.
            condition_encoder: From what a user gives (labels, text, ...) to a `Condition`; None for an
                unconditional model.
            prediction: What the output of `unet` means.
            variance: What is known of the variance of the reverse step, see `Denoiser`; where it is learned `unet` has
                twice as many channels out as in.
            image_size: Spatial size that `generate` makes where none is given, one number or one for each axis.

        Raises:
            ValueError: If epsilon is to be predicted from pure noise, there is no such prediction, or the network's
                latents are not those of the autoencoder.
        """
        super().__init__()
        check_latents(unet, autoencoder.latent_channels, autoencoder.spatial_dims)
        self.autoencoder: Autoencoder = autoencoder.eval()
        self.unet: UNet | DiT = unet
        self.schedule = schedule
        self.condition_encoder = condition_encoder
        self.prediction: Prediction = prediction
        self.variance: Variance | None = variance
        self.image_size = image_size
        Denoiser(unet, schedule, prediction, variance)  # refuses what cannot be trained

    @property
    def denoiser(self) -> Denoiser:
        """The network as a denoiser of latents."""
        return Denoiser(self.unet, self.schedule, self.prediction, self.variance)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the mode of all but the autoencoder."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    @torch.no_grad()
    def encode(self, images: Images, generator: Generator = None) -> Latents:
        """Draw latents of images, without gradients.

        Args:
            images: `[batch, channels, *spatial]`, floats in [-1, 1].
            generator: Where the posterior's noise comes from.

        Returns:
            `[batch, latent_channels, *spatial / f]`, of unit size.
        """
        return self.autoencoder.encode(images).sample(generator)

    def decode(self, latents: Latents) -> Images:
        """Images of latents: `[batch, channels, *spatial]`."""
        return self.autoencoder.decode(latents)

    def loss(
        self,
        images: Images,
        y: object = None,
        *,
        objective: DiffusionLoss | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The denoising loss of images; while training, conditions are dropped as their encoder says.

        Args:
            images: `[batch, channels, *spatial]`, floats in [-1, 1].
            y: What the condition encoder takes.
            objective: Which loss; None is `DiffusionLoss()`.
            generator: Where latents, drop-out, times and noise come from.

        Returns:
            Mean over the batch, `[]`.

        Raises:
            ValueError: If `y` is given to an unconditional model, or missing for a conditional one.
        """
        return self.loss_of_latents(self.encode(images, generator), y, objective=objective, generator=generator)

    def loss_of_latents(
        self,
        latents: Latents,
        y: object = None,
        *,
        objective: DiffusionLoss | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The denoising loss of latents that are known already, such as those of `training.LatentCache`.

        Args:
            latents: `[batch, latent_channels, *spatial]`, of unit size: drawn from the posteriors that `encode` draws
                from, anew each time.
            y: What the condition encoder takes.
            objective: Which loss; None is `DiffusionLoss()`.
            generator: Where drop-out, times and noise come from.

        Returns:
            Mean over the batch, `[]`.

        Raises:
            ValueError: As for `loss`.
        """
        condition = self._condition(y, len(latents), generator)
        return (objective or DiffusionLoss())(self.denoiser, latents, condition, generator=generator).loss

    @torch.no_grad()
    def generate(
        self,
        y: object = None,
        *,
        batch: int | None = None,
        size: int | Sequence[int] | None = None,
        sampler: Sampler | None = None,
        guidance_scale: float = 1.0,
        generator: Generator = None,
        progress: bool = False,
    ) -> Images:
        """Draw images.

        Args:
            y: What the condition encoder takes; None draws from the unconditional model.
            batch: How many, where `y` does not say it.
            size: Spatial size of the images; None is `image_size`.
            sampler: None is `Sampler("dpmpp_2m", steps=25)`.
            guidance_scale: 1 is none; above 1 follows the condition more closely.
            generator: Where noise comes from.
            progress: Whether to show a progress bar.

        Returns:
            `[batch, channels, *spatial]`, in the range of the autoencoder's data.

        Raises:
            ValueError: If the number or size of the images is not known, `y` does not fit the model, or guidance is
                asked of a model that never learned without condition.
        """
        was_training = self.training
        self.eval()
        try:
            latent_size = self._latent_size(size)
            asked = batch or 0
            if y is None and asked < 1:
                raise ValueError(f"batch must be given, at least 1, where y does not say it, got {batch}")
            is_null = y is None and self.condition_encoder is not None
            condition = self._null(asked, latent_size) if is_null else self._condition(y, batch)
            count = asked if condition is None else len(condition)
            null = None if guidance_scale == 1 else self._null(count, latent_size)
            denoiser = self.denoiser if null is None else ClassifierFree(self.denoiser, guidance_scale, negative=null)
            shape = (count, self.autoencoder.latent_channels, *latent_size)
            noise = draw_noise(shape, generator, device=next(self.unet.parameters()).device)
            sampler = sampler or Sampler("dpmpp_2m", steps=25)
            latents = sampler.sample(denoiser, noise, condition, generator=generator, progress=progress)
            return self.autoencoder.clamp(self.decode(latents))
        finally:
            self.train(was_training)

    def _condition(
        self, y: object, batch: int | None = None, generator: torch.Generator | None = None
    ) -> Condition | None:
        """The condition of `y`, which must be given exactly where there is an encoder; dropped while training."""
        if (encoder := self.condition_encoder) is None:
            if y is not None:
                raise ValueError("y must be None for a model without condition_encoder; build it with one")
            return None
        if y is None:
            raise ValueError("y must be given to a model with a condition_encoder, got None")
        condition: Condition = encoder.for_training(y, generator) if self.training else encoder(y)
        if batch is not None and len(condition) != batch:
            raise ValueError(f"y must have the {batch} samples of images, got {len(condition)}")
        return condition

    def _null(self, batch: int, size: tuple[int, ...]) -> Condition:
        """The null, its `concat`, if it has one, of the spatial size of the latents."""
        if self.condition_encoder is None:
            raise ValueError("guidance_scale must be 1 for a model without condition_encoder")
        self.condition_encoder.require_null()
        return self.condition_encoder.null(batch).expand(size)

    def _latent_size(self, size: int | Sequence[int] | None) -> tuple[int, ...]:
        """The spatial size of latents of images of `size`."""
        if (size := self.image_size if size is None else size) is None:
            raise ValueError("size must be given to a model without image_size")
        dims, factor = self.autoencoder.spatial_dims, self.autoencoder.downsampling_factor
        axes = (size,) * dims if isinstance(size, int) else tuple(size)
        if len(axes) != dims or any(n < 1 or n % factor for n in axes):
            raise ValueError(f"size must be {dims} positive multiples of {factor}, the downsampling factor, got {size}")
        return tuple(n // factor for n in axes)
