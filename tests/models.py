"""Small models for tests: every weight random, so that nothing is zero by its start."""

from __future__ import annotations

import torch

import latentdiff as ld


def small_model(*, classes: int | None = 5, spatial_dims: int = 2, seed: int = 0) -> ld.LatentDiffusion:
    """A latent diffusion model of 1-channel images, f = 2, whose null counts as trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ld.LatentDiffusion(
            autoencoder=ld.Autoencoder(
                in_channels=1, latent_channels=3, base_channels=4, channel_multipliers=(1, 2), blocks_per_level=1,
                spatial_dims=spatial_dims, scaling_factor=0.7, shift_factor=0.1,
            ),
            unet=ld.UNet(
                in_channels=3, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,),
                head_dim=4, context_dim=None if classes is None else 6, spatial_dims=spatial_dims,
            ),
            schedule=ld.NoiseSchedule.cosine(100),
            condition_encoder=None if classes is None else ld.ClassEncoder(num_classes=classes, dim=6),
            prediction="v_prediction",
        )  # fmt: skip
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        if model.condition_encoder is not None:
            model.condition_encoder.null_trained.fill_(True)
    return model.eval()
