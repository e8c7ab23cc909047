"""Blocks of the published code, one by one: outputs recorded with its modules, on normal inputs and on tiny ones.

On tiny inputs the epsilon of a norm decides. Conditioners have their own tests (`test_text_encoder` and others).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latentdiff as ld
from latentdiff._attention import FeedForward, SpatialSelfAttention, SpatialTransformer, TransformerBlock
from latentdiff._checkpoints._compvis_config import FIRST_STAGES, build_unet
from latentdiff._checkpoints._node import Node
from latentdiff._checkpoints._places import (
    CODER_ATTENTION,
    CODER_BLOCK,
    LINEAR_ATTENTION,
    RESIDUAL,
    TRANSFORMER_BLOCK,
    Place,
    attention_places,
    autoencoder_places,
    key_map,
    renamed,
    unet_places,
)
from latentdiff._layers import Downsample, ResidualBlock, Upsample, timestep_embedding
from latentdiff._linear_attention import SpatialLinearAttention
from published import TOLERANCE, error, facts, goldens, needs_zoo, weights

CROSS_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
FEED_FORWARD = {"proj_in": "net.0.proj", "proj_out": "net.2"}
AUTOENCODER_EPS = 1e-6

Block = tuple[nn.Module, Iterator[Place]]


def residual(**arguments: Any) -> Block:
    module = ResidualBlock(embedding_dim=48, **arguments)
    return module, renamed("", "", RESIDUAL)


def coder_residual(**arguments: Any) -> Block:
    module = ResidualBlock(eps=AUTOENCODER_EPS, **arguments)
    return module, renamed("", "", CODER_BLOCK | {"embedding": "temb_proj"})


def plain(order: Any = "legacy", heads: int = 4) -> Block:
    module = SpatialSelfAttention(channels=64, num_heads=heads, qkv_order=order)
    return module, attention_places(module, "", "")


def coder_attention() -> Block:
    module = SpatialSelfAttention(channels=64, eps=AUTOENCODER_EPS, qkv_order="separate")
    return module, renamed("", "", CODER_ATTENTION | {"norm": "norm"}, axes=2)


def transformer(**arguments: Any) -> Block:
    module = SpatialTransformer(channels=64, num_heads=2, **arguments)
    return module, attention_places(module, "", "")


def convolution(module: nn.Module, theirs: str) -> Block:
    return module, renamed("", "", {"conv": theirs})


def cross_attention(**arguments: Any) -> Block:
    return ld.CrossAttention(query_dim=64, **arguments), renamed("", "", CROSS_ATTENTION)


def coder(unit: str) -> Block:
    """The encoder or decoder that the unit's arguments describe, out of a first stage."""
    arguments = facts("blocks")["units"][unit]["kwargs"]
    kind = "AutoencoderKL" if arguments.get("double_z", True) else "VQModel"
    params = {"embed_dim": 4, "n_embed": 5, "ddconfig": arguments}
    autoencoder = FIRST_STAGES[kind](Node(params, unit))
    side = "encoder" if "encoder" in unit else "decoder"
    places = (
        Place(place.ours.removeprefix(f"{side}."), place.theirs.removeprefix(f"{side}."), place.axes)
        for place in autoencoder_places(autoencoder)
        if place.ours.startswith(side)
    )
    return getattr(autoencoder, side), places


def unet(unit: str) -> Block:
    arguments = facts("blocks")["units"][unit]["kwargs"]
    arguments = arguments.get("unet", arguments)
    module = build_unet(Node({"unet_config": {"target": "UNetModel", "params": arguments}}, unit), 4)
    prefix = "diffusion_model." if unit == "wrapper_hybrid" else ""
    return module, (place._replace(theirs=prefix + place.theirs) for place in unet_places(module))


BLOCKS: dict[str, Callable[[], Block]] = {
    "unet_res_same": lambda: residual(in_channels=64),
    "unet_res_wider": lambda: residual(in_channels=32, out_channels=96),
    "unet_res_scale_shift": lambda: residual(in_channels=64, scale_shift=True),
    "unet_res_down": lambda: residual(in_channels=64, resample="down"),
    "unet_res_up": lambda: residual(in_channels=64, resample="up"),
    "unet_res_down_scale_shift": lambda: residual(in_channels=64, resample="down", scale_shift=True),
    "unet_down_conv": lambda: convolution(Downsample(channels=32), "op"),
    "unet_down_pool": lambda: (Downsample(channels=32, use_conv=False), iter(())),
    "unet_up_conv": lambda: convolution(Upsample(channels=32), "conv"),
    "unet_attn_heads4": plain,
    "unet_attn_headch32": lambda: plain(heads=2),
    "unet_attn_heads4_neworder": lambda: plain("new"),
    "cross_attention": lambda: cross_attention(context_dim=40, num_heads=4, head_dim=24),
    "cross_attention_mask": lambda: cross_attention(context_dim=40, num_heads=4, head_dim=24),
    "self_attention": lambda: cross_attention(num_heads=2, head_dim=32),
    "ff_geglu": lambda: (FeedForward(dim=48), renamed("", "", FEED_FORWARD)),
    "basic_transformer_block": lambda: (
        TransformerBlock(dim=64, num_heads=2, head_dim=32, context_dim=40),
        renamed("", "", TRANSFORMER_BLOCK),
    ),
    "spatial_transformer": lambda: transformer(head_dim=32, depth=2, context_dim=40),
    "spatial_transformer_nocontext": lambda: transformer(head_dim=24),
    "ae_res_same": lambda: coder_residual(in_channels=64),
    "ae_res_nin": lambda: coder_residual(in_channels=32, out_channels=64),
    "ae_res_temb": lambda: coder_residual(in_channels=64, embedding_dim=48),
    "ae_attn": coder_attention,
    "ae_lin_attn": lambda: (SpatialLinearAttention(channels=64), renamed("", "", LINEAR_ATTENTION, axes=2)),
    "ae_down_conv": lambda: convolution(Downsample(channels=32, asymmetric=True), "conv"),
    "ae_down_conv_odd": lambda: convolution(Downsample(channels=32, asymmetric=True), "conv"),
    "ae_up_conv": lambda: convolution(Upsample(channels=32), "conv"),
    **{
        name: lambda name=name: coder(name)
        for name in (
            *("ae_encoder_tiny", "ae_encoder_tiny_noattn", "ae_encoder_tiny_linear", "ae_encoder_tiny_noresampconv"),
            *("ae_decoder_tiny", "ae_decoder_tiny_noresampconv", "ae_decoder_tiny_tanh"),
        )
    },
    **{
        f"unet_tiny_{name}": lambda name=name: unet(f"unet_tiny_{name}")
        for name in (
            *("heads", "heads_upsample", "neworder", "pool", "updown", "classes"),
            *("st_heads", "st_heads_nolegacy", "st_headch"),
        )
    },
    "wrapper_hybrid": lambda: unet("wrapper_hybrid"),
}

ELSEWHERE = {"timestep_embedding", "gaussian"}
"""Tested below, as they have no weights."""

CONDITIONERS = {
    *("text_transformer", "text_encoder_layers", "class_embedder", "rescaler_bilinear", "rescaler_odd", "rescaler_map"),
    *("rescaler_map_bias", "rescaler_bicubic", "rescaler_nearest_up", "rescaler_area"),
}
"""Tested with their encoders."""

NOT_BUILT = {
    "unet_res_conv_skip": "a shortcut of size 3: no argument of a network in the original's configurations leads there",
    "ae_res_convskip": "likewise",
    "ff_gelu": "a feed-forward without a gate: likewise",
}


@needs_zoo
def test_every_recorded_block_is_accounted_for() -> None:
    accounted = {*BLOCKS, *ELSEWHERE, *CONDITIONERS, *NOT_BUILT}
    assert set(facts("blocks")["units"]) == accounted


@needs_zoo
@pytest.mark.parametrize("unit", BLOCKS)
@torch.no_grad()
def test_a_block_gives_what_the_original_gave(unit: str) -> None:
    module, places = BLOCKS[unit]()
    published, state = weights("blocks", f"{unit}."), module.state_dict()
    names = key_map(state, places)
    assert {place.theirs for place in names.values()} == published.keys()
    module.load_state_dict({key: published[place.theirs].reshape(state[key].shape) for key, place in names.items()})
    module.eval()
    recorded = goldens("blocks")
    tags = [tag for tag in ("n", "lo") if f"{unit}/{tag}/out" in recorded]
    assert tags
    for tag in tags:
        arguments = [
            recorded.get(f"{unit}/{tag}/{name}", recorded.get(f"{unit}/n/{name}"))
            for name in facts("blocks")["units"][unit]["args"]
        ]
        assert error(_called(module, unit, arguments), recorded[f"{unit}/{tag}/out"]) < TOLERANCE


def _called(module: nn.Module, unit: str, arguments: list[Any]) -> Tensor:
    """The module's output, its condition in our words."""
    y: Tensor
    if unit == "unet_tiny_classes":
        x, t, labels = arguments
        y = module(x, t, ld.Condition(embedding=labels))
    elif unit == "wrapper_hybrid":
        x, t, concat, context = arguments
        y = module(x, t, ld.Condition(concat=concat, context=context))
    elif unit == "unet_down_pool":
        [x] = arguments
        y = module(x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2])  # the original drops the last of an odd axis
    else:
        y = module(*arguments)
    return y


@needs_zoo
@pytest.mark.parametrize("dim", [7, 32, 320])
def test_times_are_embedded_as_the_original_did(dim: int) -> None:
    recorded = goldens("blocks")
    found = timestep_embedding(recorded["timestep_embedding/t"], dim)
    assert error(found, recorded[f"timestep_embedding/out_{dim}"]) < TOLERANCE


@needs_zoo
def test_the_posterior_is_the_originals() -> None:
    recorded = {name.removeprefix("gaussian/"): value for name, value in goldens("blocks").items()}
    one = ld.DiagonalGaussian(*recorded["moments"].chunk(2, dim=1))
    for found, name in ((one.mean, "mean"), (one.log_variance, "logvar"), (one.variance, "var"), (one.kl(), "kl")):
        torch.testing.assert_close(found, recorded[name], rtol=1e-5, atol=1e-6)
    extreme = ld.DiagonalGaussian(*recorded["extreme"].chunk(2, dim=1))
    torch.testing.assert_close(extreme.log_variance, recorded["extreme_logvar"], rtol=0, atol=0)
    torch.testing.assert_close(extreme.variance.sqrt(), recorded["extreme_std"], rtol=1e-5, atol=0)


@needs_zoo
@pytest.mark.parametrize(("kind", "commitment", "codebook"), [("legacy", 1.0, 0.25), ("fixed_beta", 0.25, 1.0)])
def test_quantisation_and_its_gradients_are_the_originals(kind: str, commitment: float, codebook: float) -> None:
    recorded = goldens("quantizer")
    quantizer = ld.VectorQuantizer(codebook_size=64, dim=4, commitment_weight=commitment, codebook_weight=codebook)
    [table] = weights("quantizer", "quantize.").values()
    quantizer.load_state_dict({"codebook": table})
    z = recorded["z"].clone().requires_grad_()
    quantized = quantizer(z)
    assert recorded["margin"].min() > 1e-5
    assert torch.equal(quantized.indices.flatten(), recorded[f"{kind}/idx"])
    assert torch.equal(quantized.latents, recorded[f"{kind}/zq"])
    torch.testing.assert_close(quantized.loss, recorded[f"{kind}/loss"][0], rtol=1e-6, atol=0)
    ((quantized.latents * recorded["g"]).sum() + quantized.loss).backward()
    assert error(z.grad, recorded[f"{kind}/grad_z"]) < TOLERANCE  # type: ignore[arg-type]
    assert error(quantizer.codebook.grad, recorded[f"{kind}/grad_codebook"]) < TOLERANCE  # type: ignore[arg-type]
    assert torch.equal(quantizer.lookup(recorded["sane/idx"]), recorded["entry"])
