"""Names of weights in checkpoints of the CompVis family: counted by hand, unique, and the same as others have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentdiff as ld
from compvis import built, exported
from latentdiff._checkpoints._places import autoencoder_places, key_map, unet_places
from latentdiff._typing import SpatialDims
from networks import normal, randomised

# Names: what the original's counting gives for networks small enough to count by hand.


def test_the_layers_of_a_unet_are_counted_as_the_original_counts(tmp_path: Path) -> None:
    """Three levels of one block: the way down has 1 + 2 + 2 + 1 steps, the way up 2 + 2 + 2, upsampling within."""
    names = exported(built("unconditional"), tmp_path / "m.safetensors").keys()
    steps = {
        name.removeprefix("model.diffusion_model.").rsplit(".", 1)[0] for name in names if "diffusion_model" in name
    }
    down = [
        f"input_blocks.{step}" for step in ("0.0", "2.0.op", "4.0.op", "3.1.qkv", "3.1.proj_out", "1.0.in_layers.2")
    ]
    up = ("1.1.conv", "2.1.qkv", "3.1.qkv", "3.2.conv", "5.0.out_layers.3", "2.0.skip_connection", "5.0.emb_layers.1")
    assert steps >= {*down, *(f"output_blocks.{step}" for step in up), "middle_block.1.norm", "out.2", "time_embed.2"}
    assert not {step for step in steps if step.startswith(("input_blocks.6", "output_blocks.6", "output_blocks.0.1"))}


def test_the_layers_of_a_first_stage_are_counted_from_full_size_down(tmp_path: Path) -> None:
    names = exported(built("kl"), tmp_path / "m.safetensors")
    assert names["decoder.up.0.block.0.conv1.weight"].shape == (8, 16, 3, 3)
    assert names["decoder.up.1.upsample.conv.weight"].shape == (16, 16, 3, 3)
    assert names["encoder.down.1.attn.0.q.weight"].shape == (16, 16, 1, 1)
    assert {
        "encoder.mid.block_1.norm1.bias",
        "decoder.mid.attn_1.proj_out.bias",
        "encoder.down.0.downsample.conv.bias",
    } <= names.keys()
    assert names["quant_conv.weight"].shape == (8, 10, 1, 1)


def test_two_layers_of_the_original_are_one_block_of_text(tmp_path: Path) -> None:
    names = exported(built("text"), tmp_path / "m.safetensors")
    text = {name.removeprefix("cond_stage_model.transformer.") for name in names if name.startswith("cond_stage_model")}
    assert {
        "token_emb.weight", "pos_emb.emb.weight", "attn_layers.layers.2.1.to_q.weight", "attn_layers.layers.2.0.bias",
        "attn_layers.layers.3.1.net.0.0.weight", "attn_layers.layers.3.1.net.2.bias", "norm.bias", "to_logits.weight",
    } <= text  # fmt: skip


# Any network of the family, and the names that others found for it.


@given(
    levels=st.integers(1, 4),
    blocks=st.integers(1, 3),
    attention=st.sets(st.integers(0, 3)),
    context_dim=st.sampled_from([None, 3]),
    residual_resampling=st.booleans(),
    spatial_dims=st.sampled_from([1, 2, 3]),
    condition=st.sampled_from([{}, {"num_classes": 3}, {"embedding_dim": 3}]),
)
def test_every_tensor_of_any_unet_has_a_name_of_its_own(
    levels: int,
    blocks: int,
    attention: set[int],
    context_dim: int | None,
    residual_resampling: bool,
    spatial_dims: SpatialDims,
    condition: dict[str, int],
) -> None:
    with torch.device("meta"):
        unet = ld.UNet(
            in_channels=3,
            base_channels=4,
            channel_multipliers=(1, 2, 2, 1)[:levels],
            blocks_per_level=tuple(range(blocks, blocks + levels)),
            attention_levels=[level for level in attention if level < levels],
            context_dim=context_dim,
            transformer_depth=2,
            residual_resampling=residual_resampling,
            spatial_dims=spatial_dims,
            num_classes=condition.get("num_classes"),
            embedding_dim=condition.get("embedding_dim"),
        )
    names = key_map(unet.state_dict(), unet_places(unet))
    assert names.keys() == unet.state_dict().keys()
    assert len({place.theirs for place in names.values()}) == len(names)


@given(
    levels=st.integers(1, 4),
    blocks=st.integers(1, 3),
    attention=st.sets(st.integers(0, 3)),
    bottleneck=st.sampled_from(["kl", "vq", "none"]),
    middle_attention=st.booleans(),
)
def test_every_tensor_of_any_first_stage_has_a_name_of_its_own(
    levels: int, blocks: int, attention: set[int], bottleneck: Any, middle_attention: bool
) -> None:
    with torch.device("meta"):
        autoencoder = ld.Autoencoder(
            base_channels=4,
            channel_multipliers=(1, 2, 2, 1)[:levels],
            blocks_per_level=blocks,
            attention_levels=[level for level in attention if level < levels],
            middle_attention=middle_attention,
            bottleneck=bottleneck,
            codebook_size=5 if bottleneck == "vq" else None,
        )
    names = key_map(autoencoder.state_dict(), autoencoder_places(autoencoder))
    assert autoencoder.state_dict().keys() - names.keys() == {"latent_scaling", "latent_shift"}
    assert len({place.theirs for place in names.values()}) == len(names)


def test_names_of_a_unet_are_those_that_diffusers_converts() -> None:
    diffusers = pytest.importorskip("diffusers")
    converters = pytest.importorskip("diffusers.loaders.single_file_utils")
    unet = randomised(
        ld.UNet(
            in_channels=3,
            base_channels=32,
            channel_multipliers=(1, 2, 3),
            blocks_per_level=2,
            attention_levels=(1, 2),
            num_heads=2,
            context_dim=7,
        )
    )
    theirs = diffusers.UNet2DConditionModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,  # the number of heads, there
        cross_attention_dim=7,
    )
    state = unet.state_dict()
    names = key_map(state, unet_places(unet), "model.diffusion_model.")
    published = {place.theirs: state[key] for key, place in names.items()}
    theirs.load_state_dict(converters.convert_ldm_unet_checkpoint(published, dict(theirs.config)))
    unet.double(), theirs.double()
    x, t, context = normal((2, 3, 8, 12)), torch.tensor([3, 871]), normal((2, 6, 7), seed=1)
    with torch.no_grad():
        # float64 sums of some thousand terms, of outputs around 1
        torch.testing.assert_close(unet(x, t, context), theirs(x, t, context).sample, rtol=1e-10, atol=1e-10)


def test_names_of_a_first_stage_are_those_that_diffusers_converts() -> None:
    diffusers = pytest.importorskip("diffusers")
    converters = pytest.importorskip("diffusers.loaders.single_file_utils")
    autoencoder = randomised(ld.Autoencoder(base_channels=32, channel_multipliers=(1, 2, 3), blocks_per_level=1))
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    state = autoencoder.state_dict()
    names = key_map(state, autoencoder_places(autoencoder), "first_stage_model.")
    published = {
        place.theirs: state[key].reshape(*state[key].shape, *(1,) * place.axes) for key, place in names.items()
    }
    theirs.load_state_dict(converters.convert_ldm_vae_checkpoint(published, dict(theirs.config)))
    autoencoder.double(), theirs.double()
    x = normal((1, 3, 16, 24)).clamp(-1, 1)
    with torch.no_grad():
        latents = autoencoder.encode(x).mode()
        torch.testing.assert_close(latents, theirs.encode(x).latent_dist.mode(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(autoencoder.decode(latents), theirs.decode(latents).sample, rtol=1e-10, atol=1e-10)
