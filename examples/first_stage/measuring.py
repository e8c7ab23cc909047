"""What a first stage is measured by, on photographs that it was not trained on."""

from __future__ import annotations

import math

import torch
from data import to_images
from torch import Tensor, nn
from torch.nn import functional as F
from training import in_batches

import latentdiff as ld
from latentdiff.evaluation import codebook_use, frechet_distance, latent_statistics, psnr, ssim


@torch.no_grad()
def evaluate(autoencoder: ld.Autoencoder, pictures: Tensor) -> dict[str, float]:
    """Figures of reconstruction, of the latents and of the codebook."""
    device = autoencoder.last_layer.device
    outputs = [autoencoder(images) for images in in_batches(pictures, device)]
    images = to_images(pictures)
    made = torch.cat([autoencoder.clamp(output.reconstruction) for output in outputs]).float().cpu()
    latents = latent_statistics(output.posterior for output in outputs)
    pixels, positions = images[0, 0].numel(), images[0, 0].numel() // autoencoder.downsampling_factor**2
    figures = {
        "psnr": psnr(made, images).mean().item(),
        "ssim": ssim(made, images).mean().item(),
        "frechet": frechet_distance(features(made), features(images)),
        "latent_numbers": positions * autoencoder.latent_channels,
        "pixel_values": 3 * pixels,
        "latent_std": latents.std.mean().item(),
        "latent_noise": latents.noise.mean().item(),
    }
    if autoencoder.codebook_size is not None:
        indices = (output.indices for output in outputs if output.indices is not None)
        use = codebook_use(indices, autoencoder.codebook_size)
        figures |= {"codebook_size": autoencoder.codebook_size, "codebook_use": use.usage, "perplexity": use.perplexity}
        figures |= {"bits_per_pixel": positions * math.log2(autoencoder.codebook_size) / pixels}
    return figures


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """Means and spreads of the maps of a convolutional network with fixed random weights: `[images, 448]`.

    Random features need no trained network (Naeem et al. 2020, arXiv:2002.09797, propose them where ImageNet's do not
    fit). A distance of them is no FID: it compares models on the same photographs only.
    """
    generator, width, found = torch.Generator().manual_seed(0), 3, list[Tensor]()
    for out_width in (32, 64, 128):
        weight = nn.init.orthogonal_(torch.empty(out_width, width, 3, 3), gain=2**0.5, generator=generator)
        images, width = F.relu(F.conv2d(images, weight, stride=2, padding=1)), out_width
        found += [images.mean((2, 3)), images.std((2, 3))]
    return torch.cat(found, 1)
