"""The published latent diffusion models.

References:
    Rombach et al. 2022, arXiv:2112.10752, tables 12 to 15; Blattmann et al. 2022, arXiv:2204.11824 (retrieval). Numbers
    are those of the published configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from torch import nn

from latentdiff._condition import (
    ClassEncoder,
    ConditionEncoder,
    FrozenEncoder,
    LayoutEncoder,
    SpatialEncoder,
    TextEncoder,
)
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._presets._first_stages import FIRST_STAGES
from latentdiff._schedule import NoiseSchedule
from latentdiff._unet import UNet


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """A published latent diffusion model: two blocks a level, attention in the middle.

    Attributes:
        published: The name of its checkpoint.
        about: What it is, in a line.
        first_stage: The name of its first stage.
        width: Channels of the UNet before the multiplier.
        multipliers: Channels of each level over `width`.
        attention_levels: Levels with attention.
        beta_end: Last beta; the first is 0.0015 unless `beta_start` says otherwise.
        beta_start: First beta.
        image_size: Of the training images.
        num_heads: Heads of attention, or None for heads of 32 channels.
        context_dim: Size of the context's tokens.
        transformer_depth: Transformer blocks at a place of attention.
        concat_channels: Channels beside the latents.
        resampling: Whether residual blocks change the resolution.
        scale_shift: Whether time scales and shifts the norms.
        scaling_factor: Of the latents.
        encoder: Builds the condition encoder.
    """

    published: str
    about: str
    first_stage: str
    width: int
    multipliers: tuple[int, ...]
    attention_levels: tuple[int, ...]
    beta_end: float
    beta_start: float = 0.0015
    image_size: int = 256
    num_heads: int | None = None
    context_dim: int | None = None
    transformer_depth: int = 1
    concat_channels: int = 0
    resampling: bool = False
    scale_shift: bool = False
    scaling_factor: float = 1.0
    encoder: Callable[[], ConditionEncoder] | None = None

    def build(self) -> LatentDiffusion:
        """The untrained model."""
        autoencoder = FIRST_STAGES[self.first_stage].build()
        autoencoder.scaling_factor = self.scaling_factor
        unet = UNet(
            in_channels=autoencoder.latent_channels,
            concat_channels=self.concat_channels,
            base_channels=self.width,
            channel_multipliers=self.multipliers,
            attention_levels=self.attention_levels,
            num_heads=self.num_heads,
            head_dim=32 if self.num_heads is None else None,
            context_dim=self.context_dim,
            transformer_depth=self.transformer_depth,
            residual_resampling=self.resampling,
            scale_shift_norm=self.scale_shift,
        )
        return LatentDiffusion(
            autoencoder=autoencoder,
            unet=unet,
            schedule=NoiseSchedule.scaled_linear(1000, self.beta_start, self.beta_end),
            condition_encoder=self.encoder() if self.encoder is not None else None,
            image_size=self.image_size,
        )


def _bert(dim: int) -> TextEncoder:
    """32 blocks over the tokens of `bert-base-uncased`, of whose empty prompt there is a beginning and an end."""
    return TextEncoder(
        vocabulary_size=30522,
        dim=dim,
        depth=32,
        empty_prompt=(101, 102),
        mask_padding=False,
        vocabulary_head=True,
    )


def _boxes() -> LayoutEncoder:
    """16 blocks over 30 objects and the crop."""
    return LayoutEncoder(
        num_classes=8191,
        dim=512,
        depth=16,
        max_objects=30,
        sections=90,
        vocabulary_size=8192,
        encode_crop=True,
        mask_padding=False,
        vocabulary_head=True,
        dropout=0.0,
    )


_UNCONDITIONAL: Final = Diffusion(
    published="celeba256",
    about="faces, CelebA-HQ 256",
    first_stage="vq-4",
    width=224,
    multipliers=(1, 2, 3, 4),
    attention_levels=(1, 2, 3),
    beta_end=0.0195,
)
_SEMANTIC: Final = Diffusion(
    published="semantic_synthesis256",
    about="landscapes of semantic maps with 182 classes, 256",
    first_stage="vq-4",
    width=128,
    multipliers=(1, 4, 8),
    attention_levels=(),
    num_heads=8,
    concat_channels=3,
    beta_end=0.0205,
    encoder=lambda: SpatialEncoder(in_channels=182, out_channels=3, num_stages=2, dropout=0.0),
)

DIFFUSION: Final = {
    "ldm-vq-4-celebahq": _UNCONDITIONAL,
    "ldm-vq-4-ffhq": replace(_UNCONDITIONAL, published="ffhq256", about="faces, FFHQ 256"),
    "ldm-vq-4-lsun-bedrooms": replace(_UNCONDITIONAL, published="lsun_beds256", about="bedrooms, LSUN 256"),
    "ldm-kl-8-lsun-churches": Diffusion(
        published="lsun_churches256",
        about="churches, LSUN 256; its checkpoint holds the scale of its latents",
        first_stage="kl-8",
        width=192,
        multipliers=(1, 2, 2, 4, 4),
        attention_levels=(0, 1, 2, 3),
        num_heads=8,
        resampling=True,
        scale_shift=True,
        beta_end=0.0155,
    ),
    "ldm-vq-8-imagenet": Diffusion(
        published="cin256",
        about="ImageNet 256 by class",
        first_stage="vq-8",
        width=256,
        multipliers=(1, 2, 4),
        attention_levels=(0, 1, 2),
        context_dim=512,
        beta_end=0.0195,
        encoder=lambda: ClassEncoder(num_classes=1000, dim=512, null_kind="zeros", dropout=0.0),
    ),
    "ldm-vq-4-imagenet": Diffusion(
        published="cin256-v2",
        about="ImageNet 256 by class, or none of them",
        first_stage="vq-4",
        width=192,
        multipliers=(1, 2, 3, 5),
        attention_levels=(1, 2, 3),
        num_heads=1,
        context_dim=512,
        beta_end=0.0195,
        encoder=lambda: ClassEncoder(num_classes=1000, dim=512),
    ),
    "ldm-vq-4-text": Diffusion(
        published="text2img256",
        about="captioned images, 256",
        first_stage="vq-4",
        width=192,
        multipliers=(1, 2, 3, 5),
        attention_levels=(1, 2, 3),
        context_dim=640,
        beta_end=0.0195,
        encoder=lambda: _bert(640),
    ),
    "ldm-kl-8-text": Diffusion(
        published="txt2img-1p4B",
        about="captioned images, 256; 1.45 billion parameters",
        first_stage="kl-8",
        width=320,
        multipliers=(1, 2, 4, 4),
        attention_levels=(0, 1, 2),
        num_heads=8,
        context_dim=1280,
        scaling_factor=0.18215,
        beta_start=0.00085,
        beta_end=0.012,
        encoder=lambda: _bert(1280),
    ),
    "ldm-vq-4-layout": Diffusion(
        published="layout2img-openimages256",
        about="OpenImages 256 of boxes and classes",
        first_stage="vq-4",
        width=128,
        multipliers=(1, 2, 3, 4),
        attention_levels=(1, 2, 3),
        context_dim=512,
        transformer_depth=3,
        beta_end=0.0205,
        encoder=_boxes,
    ),
    "ldm-vq-4-semantic-256": _SEMANTIC,
    "ldm-vq-4-semantic-512": replace(
        _SEMANTIC,
        published="semantic_synthesis512",
        about="landscapes of semantic maps with 182 classes, 512",
        image_size=512,
    ),
    "ldm-vq-4-superresolution": Diffusion(
        published="bsr_sr",
        about="images of four times their resolution",
        first_stage="vq-4",
        width=160,
        multipliers=(1, 2, 2, 4),
        attention_levels=(3,),
        concat_channels=3,
        beta_end=0.0155,
        encoder=lambda: SpatialEncoder(in_channels=3, dropout=0.0),
    ),
    "ldm-vq-4-inpainting": Diffusion(
        published="inpainting_big",
        about="what is missing in images, 256",
        first_stage="vq-4-noattn",
        width=256,
        multipliers=(1, 2, 3, 4),
        attention_levels=(1, 2, 3),
        num_heads=8,
        concat_channels=4,
        resampling=True,
        beta_end=0.0205,
        encoder=lambda: SpatialEncoder(in_channels=3, has_mask=True, mask_range=(-1.0, 1.0), dropout=0.0),
    ),
    "ldm-kl-16-retrieval": Diffusion(
        published="rdm768x768",
        about="images like others, of whose CLIP embeddings the context is made, 768",
        first_stage="kl-16",
        width=448,
        multipliers=(1, 2, 3, 4),
        attention_levels=(0, 1, 2),
        context_dim=768,
        scaling_factor=0.22765929,
        beta_end=0.015,
        image_size=768,
        encoder=lambda: FrozenEncoder(module=nn.Identity(), null_kind="zeros", dim=768, dropout=0.0),
    ),
}
