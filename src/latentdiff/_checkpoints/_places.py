"""Where the weights of a network stand in a checkpoint of the CompVis family.

The original code numbers layers as it builds them, so a name there is arithmetic on level, block and side. The
functions here walk a network of ours in that order and say, for each layer, what the original calls it. Nothing is
kept by model: whatever network can be built has its names.

References:
    Rombach et al. 2022, arXiv:2112.10752; the naming is that of the published checkpoints of latent diffusion, VQGAN
    and Stable Diffusion 1 and 2.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, cast

from torch import Tensor, nn

from latentdiff._attention import SpatialTransformer
from latentdiff._autoencoder import Autoencoder
from latentdiff._coders import CoderLevel, CoderStage, Decoder, Encoder
from latentdiff._condition import ClassEncoder, ConditionEncoder, LayoutEncoder, SpatialEncoder, TextEncoder
from latentdiff._layers import ResidualBlock
from latentdiff._linear_attention import SpatialLinearAttention
from latentdiff._unet import UNet
from latentdiff._unet_levels import Attention, DownLevel, Stage, UpLevel


class Place(NamedTuple):
    """One layer, or one tensor, in both layouts.

    Attributes:
        ours: Its name here.
        theirs: Its name in the checkpoint.
        axes: Axes of size 1 that its weight has at the end there, and not here: a convolution of size 1 is a linear
            layer.
    """

    ours: str
    theirs: str
    axes: int = 0


RESIDUAL: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
PLAIN_ATTENTION: Final = {"to_qkv": "qkv", "to_out": "proj_out"}
TRANSFORMER_BLOCK: Final = {
    "norm1": "norm1",
    "self_attention.to_q": "attn1.to_q",
    "self_attention.to_k": "attn1.to_k",
    "self_attention.to_v": "attn1.to_v",
    "self_attention.to_out": "attn1.to_out.0",
    "norm2": "norm2",
    "cross_attention.to_q": "attn2.to_q",
    "cross_attention.to_k": "attn2.to_k",
    "cross_attention.to_v": "attn2.to_v",
    "cross_attention.to_out": "attn2.to_out.0",
    "norm3": "norm3",
    "feed_forward.proj_in": "ff.net.0.proj",
    "feed_forward.proj_out": "ff.net.2",
}
TOKEN_ATTENTION: Final = {name: name for name in ("to_q", "to_k", "to_v", "to_out")}
CODER_BLOCK: Final = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "nin_shortcut",
}
LINEAR_ATTENTION: Final = {name: name for name in ("to_qkv", "to_out")}
CODER_ATTENTION: Final = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}


def unet_places(unet: UNet) -> Iterator[Place]:
    """The layers of a UNet, in the original's order: input blocks, middle block, output blocks, each numbered through.

    A number is a step of the way: the first convolution, a residual block with its attention, a downsampling. On the
    way up an upsampling has no number of its own but follows its level's last block.
    """
    yield Place("conv_in", "input_blocks.0.0")
    yield from renamed("time_embedding", "time_embed", {"linear1": "0", "linear2": "2"})
    yield from renamed("vector_embedding", "label_emb.0", {"linear1": "0", "linear2": "2"})
    yield Place("class_embedding", "label_emb")
    number = 1
    for level, down in enumerate(cast(Sequence[DownLevel], unet.down)):
        for index, stage in enumerate(cast(Sequence[Stage], down.stages)):
            yield from _stage_places(stage, f"down.{level}.stages.{index}", f"input_blocks.{number}", 0)
            number += 1
        if down.downsample is not None:
            yield from _resampling(down.downsample, f"down.{level}.downsample", f"input_blocks.{number}.0", "op")
            number += 1
    first, last = cast(Sequence[Stage], unet.middle)
    steps = yield from _stage_places(first, "middle.0", "middle_block", 0)
    yield from _stage_places(last, "middle.1", "middle_block", steps)
    number = 0
    for level, up in reversed(list(enumerate(cast(Sequence[UpLevel], unet.up)))):
        for index, stage in enumerate(cast(Sequence[Stage], up.stages)):
            steps = yield from _stage_places(stage, f"up.{level}.stages.{index}", f"output_blocks.{number}", 0)
            number += 1
        if up.upsample is not None:
            theirs = f"output_blocks.{number - 1}.{steps}"
            yield from _resampling(up.upsample, f"up.{level}.upsample", theirs, "conv")
    yield from renamed("", "out", {"norm_out": "0", "conv_out": "2"})


def autoencoder_places(autoencoder: Autoencoder) -> Iterator[Place]:
    """The layers of a first stage; the original counts the levels of both coders from full size down, as we do not."""
    levels, axes = len(autoencoder.channel_multipliers), autoencoder.spatial_dims
    for side, path, resampling in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        coder = cast(Encoder | Decoder, getattr(autoencoder, side))
        yield from renamed(side, side, {name: name for name in ("conv_in", "norm_out", "conv_out")})
        for index, level in enumerate(cast(Sequence[CoderLevel], getattr(coder, path))):
            ours = f"{side}.{path}.{index}"
            theirs = f"{side}.{path}.{index if path == 'down' else levels - 1 - index}"
            for number, stage in enumerate(cast(Sequence[CoderStage], level.stages)):
                names = (f"{ours}.stages.{number}", theirs, f"block.{number}", f"attn.{number}")
                yield from _coder_places(stage, *names, axes)
            yield Place(f"{ours}.resample.conv", f"{theirs}.{resampling}.conv")
        first, last = cast(Sequence[CoderStage], coder.middle.stages)
        yield from _coder_places(first, f"{side}.middle.stages.0", f"{side}.mid", "block_1", "attn_1", axes)
        yield from _coder_places(last, f"{side}.middle.stages.1", f"{side}.mid", "block_2", "", axes)
    yield from renamed("", "", {name: name for name in ("quant_conv", "post_quant_conv")})
    yield Place("quantizer.codebook", "quantize.embedding.weight")


def encoder_places(encoder: ConditionEncoder) -> Iterator[Place]:
    """The layers of a condition encoder.

    In the transformer over tokens each block is two layers of the original, a norm and attention, a norm and an MLP.
    """
    if isinstance(encoder, ClassEncoder):
        yield Place("embedding", "embedding")
    if isinstance(encoder, SpatialEncoder):
        yield Place("to_channels", "channel_mapper")
    if isinstance(encoder, TextEncoder | LayoutEncoder):
        names = {
            "token_embedding": "token_emb",
            "position_embedding": "pos_emb.emb",
            "norm": "norm",
            "to_logits": "to_logits",
        }
        yield from renamed("transformer", "transformer", names)
        for index in range(encoder.depth):
            ours, theirs = f"transformer.blocks.{index}", "transformer.attn_layers.layers"
            yield from renamed(ours, f"{theirs}.{2 * index}", {"norm1": "0"})
            yield from renamed(f"{ours}.attention", f"{theirs}.{2 * index}.1", TOKEN_ATTENTION)
            names = {"norm2": "0", "linear1": "1.net.0.0", "linear2": "1.net.2"}
            yield from renamed(ours, f"{theirs}.{2 * index + 1}", names)


def key_map(state: Mapping[str, Tensor], places: Iterator[Place], prefix: str = "") -> dict[str, Place]:
    """What each tensor of `state` is called in the checkpoint, where all names begin with `prefix`.

    Tensors that have no place there are left out.
    """
    layers = {place.ours: place for place in places}
    found: dict[str, Place] = {}
    for key in state:
        layer, _, kind = key.rpartition(".")
        if key in layers:
            found[key] = Place(key, f"{prefix}{layers[key].theirs}")
        elif layer in layers:
            axes = layers[layer].axes if kind == "weight" else 0
            found[key] = Place(key, f"{prefix}{layers[layer].theirs}.{kind}", axes)
    return found


def attention_places(attention: Attention, ours: str, theirs: str) -> Iterator[Place]:
    """Attention among the points of a UNet's map: plain, with projections of size 1, or a transformer."""
    yield from renamed(ours, theirs, {name: name for name in ("norm", "proj_in", "proj_out")})
    yield from renamed(ours, theirs, PLAIN_ATTENTION, axes=1)
    if isinstance(attention, SpatialTransformer):
        for index in range(attention.depth):
            yield from renamed(f"{ours}.blocks.{index}", f"{theirs}.transformer_blocks.{index}", TRANSFORMER_BLOCK)


def renamed(ours: str, theirs: str, names: Mapping[str, str], axes: int = 0) -> Iterator[Place]:
    """One place for each of `names`, ours to theirs, below a prefix on either side, which may be empty."""
    for name, other in names.items():
        yield Place(f"{ours}.{name}".lstrip("."), f"{theirs}.{other}".lstrip("."), axes)


def _stage_places(stage: Stage, ours: str, theirs: str, step: int) -> Generator[Place, None, int]:
    """A block and its attention, steps `step` and `step + 1` of `theirs`; returns the step after them."""
    yield from renamed(f"{ours}.block", f"{theirs}.{step}", RESIDUAL)
    if stage.attention is None:
        return step + 1
    yield from attention_places(stage.attention, f"{ours}.attention", f"{theirs}.{step + 1}")
    return step + 2


def _resampling(layer: nn.Module, ours: str, theirs: str, name: str) -> Iterator[Place]:
    """A change of resolution: a residual block, or the convolution that the original calls `name`."""
    if isinstance(layer, ResidualBlock):
        yield from renamed(ours, theirs, RESIDUAL)
    else:
        yield Place(f"{ours}.conv", f"{theirs}.{name}")


def _coder_places(stage: CoderStage, ours: str, theirs: str, block: str, attention: str, axes: int) -> Iterator[Place]:
    """A block and its attention of a first stage, whose projections are convolutions of size 1 there."""
    yield from renamed(f"{ours}.block", f"{theirs}.{block}", CODER_BLOCK)
    yield Place(f"{ours}.attention.norm", f"{theirs}.{attention}.norm")
    projections = LINEAR_ATTENTION if isinstance(stage.attention, SpatialLinearAttention) else CODER_ATTENTION
    yield from renamed(f"{ours}.attention", f"{theirs}.{attention}", projections, axes=axes)
