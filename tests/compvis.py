"""Configurations in the original's words, small: one of each kind of model that the family has."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import latentdiff as ld
from latentdiff._checkpoints._compvis_config import build_module
from latentdiff._checkpoints._node import Node

CODERS: dict[str, Any] = {
    "double_z": False,
    "z_channels": 3,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}
VQ: dict[str, Any] = {
    "target": "ldm.models.autoencoder.VQModelInterface",
    "params": {"embed_dim": 3, "n_embed": 11, "ddconfig": CODERS, "lossconfig": {"target": "torch.nn.Identity"}},
}
KL: dict[str, Any] = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {"embed_dim": 4, "ddconfig": {**CODERS, "double_z": True, "z_channels": 5, "ch_mult": [1, 2, 1]}},
}
NO_ATTENTION: dict[str, Any] = {
    "target": "taming.models.vqgan.VQModel",
    "params": {**VQ["params"], "ddconfig": {**CODERS, "attn_type": "none"}},
}
VARIANTS: dict[str, Any] = {"attn_type": "linear", "resamp_with_conv": False, "tanh_out": True}
"""What no published first stage has."""

UNET: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 8,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2, 2],
    "num_heads": 2,
}
CONTEXT: dict[str, Any] = {"use_spatial_transformer": True, "context_dim": 12, "transformer_depth": 2}


def whole(
    condition: Any = "__is_unconditional__",
    first_stage: dict[str, Any] = VQ,
    unet: dict[str, Any] | None = None,
    **params: Any,
) -> dict[str, Any]:
    """The configuration of a latent diffusion model."""
    return {
        "model": {
            "base_learning_rate": 1e-6,
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "linear_start": 0.0015,
                "linear_end": 0.0195,
                "timesteps": 1000,
                "image_size": 8,
                "channels": 3,
                "unet_config": {
                    "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                    "params": UNET | (unet or {}),
                },
                "first_stage_config": first_stage,
                "cond_stage_config": condition,
                **params,
            },
        }
    }


def encoder(name: str, **params: Any) -> dict[str, Any]:
    """The configuration of a condition encoder."""
    return {"target": f"ldm.modules.encoders.modules.{name}", "params": params}


CONFIGS: dict[str, dict[str, Any]] = {
    "kl": {"model": KL},
    "vq": {"model": VQ},
    "vqgan": {"model": NO_ATTENTION},
    "unconditional": whole(),
    "measured scale": whole(
        first_stage=KL,
        unet={"in_channels": 4, "out_channels": 4, "resblock_updown": True, "use_scale_shift_norm": True},
        scale_by_std=True,
    ),
    "classes": whole(encoder("ClassEmbedder", embed_dim=12), unet=CONTEXT),
    "classes and none": whole(encoder("ClassEmbedder", embed_dim=12, n_classes=7), unet=CONTEXT, use_ema=False),
    "text": whole(
        encoder("BERTEmbedder", n_embed=12, n_layer=2, vocab_size=120, max_seq_len=9),
        unet=CONTEXT | {"use_linear_in_transformer": True, "transformer_depth": [1, 1, 2]},
        scale_factor=0.18215,
    ),
    "layout": whole(
        encoder("BERTEmbedder", n_embed=12, n_layer=1, vocab_size=50, max_seq_len=11, use_tokenizer=False), unet=CONTEXT
    ),
    "semantic": whole(
        encoder("SpatialRescaler", n_stages=1, in_channels=6, out_channels=2), unet={"in_channels": 5}, concat_mode=True
    ),
    "super-resolution": whole({"target": "torch.nn.Identity"}, unet={"in_channels": 6}),
    "inpainting": whole("__is_first_stage__", first_stage=NO_ATTENTION, unet={"in_channels": 7}),
    "retrieval": whole({"target": "torch.nn.Identity"}, unet=CONTEXT | {"num_head_channels": 4}),
    "signals": whole(unet={"dims": 2, "num_res_blocks": [1, 2, 1], "use_new_attention_order": True}),
    "variants": whole(
        first_stage={**VQ, "params": {**VQ["params"], "ddconfig": {**CODERS, **VARIANTS}}},
        unet={"conv_resample": False, "num_heads_upsample": 4},
    ),
}


def config(name: str) -> dict[str, Any]:
    """A configuration that a test may change."""
    return copy.deepcopy(CONFIGS[name])


def built(name: str, seed: int = 0) -> ld.LatentDiffusion | ld.Autoencoder:
    """The module of a configuration, every weight random."""
    module = build_module(Node(CONFIGS[name], ""))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    if isinstance(module, ld.LatentDiffusion) and name == "measured scale":
        module.autoencoder.scaling_factor = float(torch.tensor(0.37))
    return module.eval()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states have the same tensors under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def exported(model: torch.nn.Module, path: Path, **arguments: Any) -> dict[str, Tensor]:
    """The tensors that `export` writes."""
    ld.export(model, path, layout="compvis", **arguments)
    return load_file(path)
