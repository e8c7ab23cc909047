r"""What training minimises.

**Denoising.** With \(y\) the network's target and \(\hat y\) its answer, the loss of one sample is a weight times the
mean of \((\hat y - y)^2\) over its values. Answers are recovered from the denoiser's estimates by the prediction's own
formula, so that any denoiser, a closed form too, has a loss.

**The first stage** is trained by two optimisers in turn: `AutoencoderLoss.generator_loss` for the autoencoder and,
where there is an adversary, `AutoencoderLoss.discriminator_loss` for the discriminator.
"""

from __future__ import annotations

from latentdiff.losses._adversarial import Adversarial as Adversarial
from latentdiff.losses._adversarial import adaptive_weight as adaptive_weight
from latentdiff.losses._adversarial import discriminator_loss as discriminator_loss
from latentdiff.losses._autoencoder import AutoencoderLoss as AutoencoderLoss
from latentdiff.losses._autoencoder import AutoencoderLossOutput as AutoencoderLossOutput
from latentdiff.losses._autoencoder import DiscriminatorLossOutput as DiscriminatorLossOutput
from latentdiff.losses._autoencoder import ParameterGroups as ParameterGroups
from latentdiff.losses._autoencoder import Perceptual as Perceptual
from latentdiff.losses._diffusion import KINDS as KINDS
from latentdiff.losses._diffusion import WEIGHTINGS as WEIGHTINGS
from latentdiff.losses._diffusion import DiffusionLoss as DiffusionLoss
from latentdiff.losses._diffusion import DiffusionLossOutput as DiffusionLossOutput
from latentdiff.losses._diffusion import Kind as Kind
from latentdiff.losses._diffusion import Weighting as Weighting
from latentdiff.losses._pyramid import PyramidLoss as PyramidLoss

__all__ = [
    "AutoencoderLoss",
    "AutoencoderLossOutput",
    "DiffusionLoss",
    "DiffusionLossOutput",
    "DiscriminatorLossOutput",
    "ParameterGroups",
    "Perceptual",
    "PyramidLoss",
    "adaptive_weight",
    "discriminator_loss",
]
