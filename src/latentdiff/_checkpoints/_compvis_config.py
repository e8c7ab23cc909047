"""A configuration of the CompVis family to the module it describes.

The file is data: `target` names a class of the original code by its dotted name, of which the last part is looked up
here and nothing is imported; `params` are that class's arguments. Arguments that would change what is computed in a
way that this library has no part for are refused, and so are unknown ones where networks are described. What concerns
training, logging and data is passed over.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

import torch
from torch import nn

from latentdiff._autoencoder import Autoencoder
from latentdiff._checkpoints._node import Node
from latentdiff._condition import (
    ClassEncoder,
    ConditionEncoder,
    FrozenEncoder,
    LayoutEncoder,
    SpatialEncoder,
    TextEncoder,
)
from latentdiff._errors import CheckpointError
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import JSON, Prediction
from latentdiff._unet import UNet

PREDICTIONS: Final[dict[str, Prediction]] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
RESIZES: Final[dict[str, Literal["linear", "nearest", "area", "cubic"]]] = {
    "bilinear": "linear",
    "linear": "linear",
    "trilinear": "linear",
    "nearest": "nearest",
    "area": "area",
    "bicubic": "cubic",
}
EMPTY_BERT_PROMPT: Final = (101, 102)
"""[CLS] and [SEP] of `bert-base-uncased`, the tokenizer of the published text encoders."""

DEFAULT_CLASSES: Final = 1000
"""Classes of the original's class embedder where none are named: all of them real, none for "no class"."""


def read_config(config: str | os.PathLike[str] | Mapping[str, JSON]) -> Node:
    """The root of a configuration, from a YAML file (which needs PyYAML) or from what was read of one.

    Raises:
        ImportError: If PyYAML is needed and not installed.
        TypeError: If `config` is neither.
        CheckpointError: If the file is missing or holds no mapping.
    """
    if isinstance(config, Mapping):
        return Node(config, "")
    if not isinstance(config, str | os.PathLike):
        raise TypeError(f"config must be a YAML file or what it holds, a mapping, got {type(config).__name__}")
    path = Path(config)
    if not path.is_file():
        raise CheckpointError(f"config must be a YAML file, but there is no file {path}")
    yaml = _yaml()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path} must hold a mapping, got {type(values).__name__}")
    return Node(values, "")


def build_module(root: Node) -> LatentDiffusion | Autoencoder:
    """The module that a configuration describes, untrained.

    Raises:
        CheckpointError: If the configuration lacks something, or describes what cannot be built here.
    """
    target, params = (root.node("model") if "model" in root else root).target()
    try:
        if target in FIRST_STAGES:
            return FIRST_STAGES[target](params)
        if target in {"LatentDiffusion", "LatentInpaintDiffusion"}:
            return _latent_diffusion(params)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the configuration describes a model that cannot be built: {error}") from error
    known = ", ".join(sorted([*FIRST_STAGES, "LatentDiffusion"]))
    raise CheckpointError(f"model.target must be one of {known}, got {target}")


def measures_scale(root: Node) -> bool:
    """Whether the configuration says that the checkpoint holds the latents' scale factor."""
    return root.node("model").node("params").flag("scale_by_std", False)


# First stages


def _vq(params: Node) -> Autoencoder:
    params.require("remap")
    return _autoencoder(
        params, bottleneck="vq", codebook_size=params.integer("n_embed"), commitment_weight=1.0, codebook_weight=0.25
    )


def _kl(params: Node) -> Autoencoder:
    return _autoencoder(params, bottleneck="kl")


FIRST_STAGES: Final[dict[str, Callable[[Node], Autoencoder]]] = {
    "AutoencoderKL": _kl,
    "VQModel": _vq,
    "VQModelInterface": _vq,
}


def _autoencoder(
    params: Node,
    *,
    bottleneck: Literal["kl", "vq"],
    codebook_size: int | None = None,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
) -> Autoencoder:
    coders = params.node("ddconfig")
    coders.know(
        *("ch", "out_ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "in_channels", "resolution"),
        *("z_channels", "double_z", "attn_type", "resamp_with_conv", "use_linear_attn", "tanh_out", "give_pre_end"),
    )
    coders.require("double_z", bottleneck == "kl")
    coders.require("attn_type", "vanilla", "none", "vanilla-xformers", "linear")
    coders.require("give_pre_end", False)
    multipliers = coders.integers("ch_mult", (1, 2, 4, 8))
    resolution, attended = coders.integer("resolution"), coders.integers("attn_resolutions")
    is_linear = coders.flag("use_linear_attn", False)
    kind = "linear" if is_linear else coders.text("attn_type", "vanilla")
    has_attention = kind != "none"
    return Autoencoder(
        in_channels=coders.integer("in_channels"),
        out_channels=coders.integer("out_ch"),
        latent_channels=params.integer("embed_dim"),
        z_channels=coders.integer("z_channels"),
        base_channels=coders.integer("ch"),
        channel_multipliers=multipliers,
        blocks_per_level=coders.integer("num_res_blocks"),
        attention_levels=[i for i in range(len(multipliers)) if has_attention and resolution // 2**i in attended],
        middle_attention=has_attention,
        linear_attention=kind == "linear",
        conv_resampling=coders.flag("resamp_with_conv", True),
        tanh_output=coders.flag("tanh_out", False),
        bottleneck=bottleneck,
        codebook_size=codebook_size,
        commitment_weight=commitment_weight,
        codebook_weight=codebook_weight,
        dropout=coders.number("dropout", 0.0),
    )


# The whole


def _latent_diffusion(params: Node) -> LatentDiffusion:
    autoencoder = _first_stage(params.node("first_stage_config"))
    autoencoder.scaling_factor = params.number("scale_factor", 1.0)
    unet = build_unet(params, autoencoder.latent_channels)
    parameterization = params.text("parameterization", "eps")
    if parameterization not in PREDICTIONS:
        raise CheckpointError(
            f"{params.path}.parameterization must be one of {', '.join(PREDICTIONS)}, got {parameterization}"
        )
    size = params.one_or_more("image_size", 256)
    factor = autoencoder.downsampling_factor
    return LatentDiffusion(
        autoencoder=autoencoder,
        unet=unet,
        schedule=_schedule(params),
        condition_encoder=_encoder(params, unet, autoencoder),
        prediction=PREDICTIONS[parameterization],
        image_size=size * factor if isinstance(size, int) else tuple(n * factor for n in size),
    )


def _first_stage(node: Node) -> Autoencoder:
    target, params = node.target()
    if target not in FIRST_STAGES:
        raise CheckpointError(f"{node.path}.target must be one of {', '.join(sorted(FIRST_STAGES))}, got {target}")
    return FIRST_STAGES[target](params)


def _schedule(params: Node) -> NoiseSchedule:
    """The schedule; what the original calls linear is linear in the square root, and it has no curve of 1000 steps."""
    params.require("given_betas")
    steps, kind = params.integer("timesteps", 1000), params.text("beta_schedule", "linear")
    start, end = params.number("linear_start", 1e-4), params.number("linear_end", 2e-2)
    match kind:
        case "linear":
            return NoiseSchedule.from_betas(_line(start**0.5, end**0.5, steps).square())
        case "sqrt_linear":
            return NoiseSchedule.from_betas(_line(start, end, steps))
        case "sqrt":
            return NoiseSchedule.from_betas(_line(start, end, steps).sqrt())
        case "cosine":
            return NoiseSchedule.cosine(steps, offset=params.number("cosine_s", 8e-3))
        case _:
            raise CheckpointError(
                f"{params.path}.beta_schedule must be linear, sqrt_linear, sqrt or cosine, got {kind}"
            )


def _line(start: float, end: float, steps: int) -> torch.Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


def build_unet(model: Node, latent_channels: int) -> UNet:
    target, params = model.node("unet_config").target()
    if target != "UNetModel":
        raise CheckpointError(f"{model.path}.unet_config.target must be UNetModel, got {target}")
    params.know(
        *("image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions"),
        *("dropout", "channel_mult", "conv_resample", "dims", "num_classes", "use_checkpoint", "use_fp16", "num_heads"),
        *("num_head_channels", "num_heads_upsample", "use_scale_shift_norm", "resblock_updown"),
        *("use_new_attention_order", "use_spatial_transformer", "transformer_depth", "context_dim", "n_embed"),
        *("legacy", "use_linear_in_transformer", "adm_in_channels", "use_bf16"),
    )
    params.require("n_embed")
    params.require("dims", 2)  # as the latents of every first stage; volumes keep their depth in the original
    multipliers = params.integers("channel_mult", (1, 2, 4, 8))
    attended = params.integers("attention_resolutions")
    is_transformer = params.flag("use_spatial_transformer", False)
    classes = params.entries.get("num_classes")
    in_channels = params.integer("in_channels")
    head_dim = params.integer("num_head_channels", -1)
    residual_resampling = params.flag("resblock_updown", False)
    return UNet(
        in_channels=latent_channels,
        concat_channels=in_channels - latent_channels,
        out_channels=params.integer("out_channels"),
        base_channels=params.integer("model_channels"),
        channel_multipliers=multipliers,
        blocks_per_level=params.one_or_more("num_res_blocks"),
        attention_levels=[level for level in range(len(multipliers)) if 2**level in attended],
        num_heads=params.integer("num_heads") if head_dim == -1 else None,
        head_dim=None if head_dim == -1 else head_dim,
        num_heads_up=_heads_up(params),
        context_dim=params.integer("context_dim") if is_transformer else None,
        transformer_depth=params.one_or_more("transformer_depth", 1),
        use_linear_projection=params.flag("use_linear_in_transformer", False),
        qkv_order="new" if params.flag("use_new_attention_order", False) else "legacy",
        embedding_dim=params.integer("adm_in_channels") if classes == "sequential" else None,
        num_classes=params.integer("num_classes") if classes not in {None, "sequential"} else None,
        scale_shift_norm=params.flag("use_scale_shift_norm", False),
        residual_resampling=residual_resampling,
        conv_resampling=residual_resampling or params.flag("conv_resample", True),
        dropout=params.number("dropout", 0.0),
    )


def _heads_up(params: Node) -> int | None:
    """Heads on the way up, where the original listens to them: in plain attention that is told the number of heads."""
    heads = params.integer("num_heads_upsample", -1)
    is_told = params.integer("num_head_channels", -1) == -1 and params.flag("legacy", True)
    is_heard = is_told and not params.flag("use_spatial_transformer", False)
    return heads if is_heard and heads not in {-1, params.integer("num_heads")} else None


# Condition encoders


def _encoder(model: Node, unet: UNet, autoencoder: Autoencoder) -> ConditionEncoder | None:
    """The condition encoder, or none; two of the original's are no classes but words."""
    given = model.entries.get("cond_stage_config")
    if given == "__is_unconditional__":
        return None
    if given == "__is_first_stage__":
        has_mask = unet.concat_channels == autoencoder.latent_channels + 1
        # the authors' inpainting script gives the network a mask of -1 and 1
        mask_range = (-1.0, 1.0) if has_mask else (0.0, 1.0)
        channels = autoencoder.latent_channels
        return SpatialEncoder(in_channels=channels, has_mask=has_mask, mask_range=mask_range, dropout=0.0)
    target, params = model.node("cond_stage_config").target()
    match target:
        case "Identity":
            return _identity(unet)
        case "ClassEmbedder":
            return _classes(params)
        case "BERTEmbedder" | "TransformerEmbedder":
            is_layout = target == "BERTEmbedder" and not params.flag("use_tokenizer", True)
            return _layout(params) if is_layout else _text(params)
        case "SpatialRescaler":
            return _rescaler(params)
        case _:
            raise CheckpointError(
                f"{model.path}.cond_stage_config.target must be Identity, ClassEmbedder, BERTEmbedder, "
                f"TransformerEmbedder or SpatialRescaler, got {target}"
            )


def _identity(unet: UNet) -> ConditionEncoder | None:
    """What is given is the condition: a map beside the latents, or context tokens."""
    if unet.concat_channels:
        return SpatialEncoder(in_channels=unet.concat_channels, dropout=0.0)
    if unet.context_dim is not None:
        return FrozenEncoder(module=nn.Identity(), null_kind="zeros", dim=unet.context_dim, dropout=0.0)
    return None


def _classes(params: Node) -> ClassEncoder:
    """A table of classes. Where their number is given, the last one stands for none, else all are classes."""
    rows, dim = params.integer("n_classes", DEFAULT_CLASSES), params.integer("embed_dim")
    if rows == DEFAULT_CLASSES:
        return ClassEncoder(num_classes=rows, dim=dim, null_kind="zeros", dropout=0.0)
    return ClassEncoder(num_classes=rows - 1, dim=dim)


def _text(params: Node) -> TextEncoder:
    return TextEncoder(
        vocabulary_size=params.integer("vocab_size", 30522),
        dim=params.integer("n_embed"),
        depth=params.integer("n_layer"),
        max_length=params.integer("max_seq_len", 77),
        empty_prompt=EMPTY_BERT_PROMPT if params.integer("vocab_size", 30522) > max(EMPTY_BERT_PROMPT) else (),
        mask_padding=False,
        vocabulary_head=True,
    )


def _layout(params: Node) -> LayoutEncoder:
    """Tokens of boxes: three for an object, two more for the crop, which says how many objects there are room for."""
    vocabulary, length = params.integer("vocab_size", 30522), params.integer("max_seq_len", 77)
    if length % 3 == 1:
        raise CheckpointError(
            f"{params.path}.max_seq_len must be three tokens an object, or two more for the crop, got {length}"
        )
    return LayoutEncoder(
        num_classes=vocabulary - 1,
        dim=params.integer("n_embed"),
        depth=params.integer("n_layer"),
        max_objects=length // 3,
        sections=isqrt(vocabulary - 1),
        vocabulary_size=vocabulary,
        encode_crop=length % 3 == 2,
        mask_padding=False,
        vocabulary_head=True,
        dropout=0.0,
    )


def _rescaler(params: Node) -> SpatialEncoder:
    method = params.text("method", "bilinear")
    if method not in RESIZES:
        raise CheckpointError(f"{params.path}.method must be one of {', '.join(RESIZES)}, got {method}")
    return SpatialEncoder(
        in_channels=params.integer("in_channels", 3),
        out_channels=params.integer("out_channels") if "out_channels" in params else None,
        num_stages=params.integer("n_stages", 1),
        factor=params.number("multiplier", 0.5),
        resize=RESIZES[method],
        bias=params.flag("bias", False),
        dropout=0.0,
    )


def _yaml() -> ModuleType:
    try:
        return importlib.import_module("yaml")
    except ImportError as error:
        raise ImportError(
            "reading a YAML file needs PyYAML, which the extra brings: pip install 'latentdiff[interop]'; or give the "
            "configuration as a mapping"
        ) from error
