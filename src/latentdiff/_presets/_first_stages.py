"""The published first stages (Rombach et al. 2022, arXiv:2112.10752, table 8; Esser et al. 2021, arXiv:2012.09841)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from latentdiff._autoencoder import Autoencoder


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """A published first stage: 128 channels, two blocks a level, attention in the middle unless it says otherwise.

    Attributes:
        published: The name of its checkpoint.
        about: What it is, in a line.
        multipliers: Channels of each level over 128.
        channels: Of the latents, and between the coders and their 1x1 convolutions.
        codes: Size of the codebook; None for a Gaussian posterior.
        attention_levels: Levels with attention.
        middle_attention: Whether there is attention in the middle.
    """

    published: str
    about: str
    multipliers: tuple[int, ...]
    channels: int
    codes: int | None = None
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True

    def build(self) -> Autoencoder:
        """The untrained module; codebooks were trained with the weights of the two terms exchanged."""
        return Autoencoder(
            latent_channels=self.channels,
            channel_multipliers=self.multipliers,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            bottleneck="kl" if self.codes is None else "vq",
            codebook_size=self.codes,
            commitment_weight=0.25 if self.codes is None else 1.0,
            codebook_weight=1.0 if self.codes is None else 0.25,
        )


# First stages: f = 2 ** (levels - 1). Published attention stands at resolutions of a 256 x 256 image.

_F4, _F8, _F16 = (1, 2, 4), (1, 2, 2, 4), (1, 1, 2, 2, 4)

FIRST_STAGES: Final = {
    "kl-4": FirstStage(published="kl-f4", about="Gaussian latents, 3 channels", multipliers=_F4, channels=3),
    "kl-8": FirstStage(published="kl-f8", about="Gaussian latents, 4 channels", multipliers=(1, 2, 4, 4), channels=4),
    "kl-16": FirstStage(
        published="kl-f16", about="Gaussian latents, 16 channels", multipliers=_F16, channels=16, attention_levels=(4,)
    ),
    "kl-32": FirstStage(
        published="kl-f32",
        about="Gaussian latents, 64 channels",
        multipliers=(1, 1, 2, 2, 4, 4),
        channels=64,
        attention_levels=(4, 5),
    ),
    "vq-4": FirstStage(published="vq-f4", about="8192 codes, 3 channels", multipliers=_F4, channels=3, codes=8192),
    "vq-4-noattn": FirstStage(
        published="vq-f4-noattn",
        about="8192 codes, 3 channels, no attention",
        multipliers=_F4,
        channels=3,
        codes=8192,
        middle_attention=False,
    ),
    "vq-8": FirstStage(
        published="vq-f8",
        about="16384 codes, 4 channels",
        multipliers=_F8,
        channels=4,
        codes=16384,
        attention_levels=(3,),
    ),
    "vq-8-n256": FirstStage(
        published="vq-f8-n256",
        about="256 codes, 4 channels",
        multipliers=_F8,
        channels=4,
        codes=256,
        attention_levels=(3,),
    ),
    "vq-16": FirstStage(
        published="vq-f16",
        about="16384 codes, 8 channels",
        multipliers=_F16,
        channels=8,
        codes=16384,
        attention_levels=(4,),
    ),
    "vqgan-16-imagenet": FirstStage(
        published="taming-vqgan-imagenet",
        about="VQGAN of ImageNet, 1024 codes, 256 channels",
        multipliers=_F16,
        channels=256,
        codes=1024,
        attention_levels=(4,),
    ),
}
