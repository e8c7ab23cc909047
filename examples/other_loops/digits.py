"""What the loops of this folder train: scikit-learn's scans of digits, and a small model of them."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

import latentdiff as ld


def load() -> TensorDataset:
    """Pairs of an image `[1, 8, 8]` in [-1, 1] and its label."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    return TensorDataset(images, torch.tensor(data.target))


def build_model() -> ld.LatentDiffusion:
    """Small enough to be trained in a minute; its first stage is random here, see the quick start for a trained one."""
    autoencoder = ld.Autoencoder(
        in_channels=1,
        latent_channels=2,
        base_channels=8,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        bottleneck="vq",
        codebook_size=64,
    )
    autoencoder.requires_grad_(False).eval().calibrate([load().tensors[0]])
    return ld.LatentDiffusion(
        autoencoder=autoencoder,
        unet=ld.UNet(
            in_channels=2,
            base_channels=16,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_levels=(1,),
            head_dim=8,
            context_dim=16,
        ),
        schedule=ld.NoiseSchedule.cosine(),
        condition_encoder=ld.ClassEncoder(num_classes=10, dim=16, dropout=0.1),
        prediction="v_prediction",
        image_size=8,
    )
