"""Variants of blocks that no published model has and a configuration may ask for: their laws, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentdiff as ld
from compvis import CODERS, UNET, built, config, exported
from latentdiff._attention import SpatialSelfAttention
from latentdiff._checkpoints._compvis_config import build_module, build_unet
from latentdiff._checkpoints._node import Node
from latentdiff._layers import Downsample, Upsample, downsample_average, upsample_nearest
from latentdiff._linear_attention import SpatialLinearAttention
from latentdiff._typing import SpatialDims
from networks import normal, randomised

RANKS = pytest.mark.parametrize("spatial_dims", [1, 2, 3])
VARIANTS: dict[str, Any] = {"linear_attention": True, "conv_resampling": False, "tanh_output": True}


def autoencoder(spatial_dims: SpatialDims = 2, **arguments: Any) -> ld.Autoencoder:
    sizes: dict[str, Any] = {"latent_channels": 2, "base_channels": 4, "channel_multipliers": (1, 2, 2)}
    model = ld.Autoencoder(**sizes, blocks_per_level=1, spatial_dims=spatial_dims, **(VARIANTS | arguments))
    return randomised(model).double().eval()


def unet(**arguments: Any) -> ld.UNet:
    sizes: dict[str, Any] = {"in_channels": 3, "base_channels": 4, "channel_multipliers": (1, 2, 1)}
    return randomised(ld.UNet(**sizes, blocks_per_level=1, attention_levels=(1,), **arguments)).double()


# Resampling without weights.


@RANKS
def test_without_a_convolution_pairs_are_averaged_and_points_repeated(spatial_dims: SpatialDims) -> None:
    x = normal((2, 3, *(5, 6, 7)[:spatial_dims]))
    down = Downsample(channels=3, spatial_dims=spatial_dims, use_conv=False)
    up = Upsample(channels=3, spatial_dims=spatial_dims, use_conv=False)
    assert not [*down.parameters(), *up.parameters()]
    assert torch.equal(down(x), downsample_average(x))
    assert torch.equal(up(down(x), tuple(x.shape[2:])), upsample_nearest(down(x), tuple(x.shape[2:])))
    for layer in (down, up):
        assert type(layer)(**layer.config).config == layer.config  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [Downsample, Upsample])
def test_only_a_convolution_changes_the_channels(layer: type[Downsample | Upsample]) -> None:
    with pytest.raises(ValueError, match="out_channels must be 3, the channels, without use_conv, got 4"):
        layer(channels=3, out_channels=4, use_conv=False)


@given(size=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_any_size_comes_back_from_a_network_without_such_convolutions(size: list[int]) -> None:
    network = unet(conv_resampling=False, spatial_dims=len(size))
    names = [name for name, part in network.named_modules() if isinstance(part, Downsample | Upsample)]
    assert len(names) == 4
    assert not [key for key in network.state_dict() if key.startswith(tuple(names))]
    assert network(normal((2, 3, *size)), 5).shape == (2, 3, *size)


# Heads on the way up.


@pytest.mark.parametrize("context_dim", [None, 5])
def test_the_way_up_may_have_other_heads(context_dim: int | None) -> None:
    network = unet(num_heads=2, num_heads_up=4, context_dim=context_dim)
    heads = {
        name: part.num_heads
        for name, part in network.named_modules()
        if isinstance(part, SpatialSelfAttention | ld.CrossAttention)
    }
    assert {name.partition(".")[0]: number for name, number in heads.items()} == {"down": 2, "middle": 2, "up": 4}
    assert network.state_dict().keys() == unet(num_heads=2, context_dim=context_dim).state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_heads_up": 2},
            "num_heads_up must be None unless num_heads is given and head_dim is not, got 2 with num",
        ),
        ({"num_heads": 2, "head_dim": 4, "num_heads_up": 2}, "got 2 with num_heads=2 and head_dim=4"),
        ({"num_heads": 2, "num_heads_up": 0}, "num_heads_up must be at least 1, got 0"),
        ({"num_heads": 2, "num_heads_up": 3}, "num_heads_up times head_dim must be the 8 channels .*num_heads_up=3"),
        ({"conv_resampling": False, "residual_resampling": True}, "conv_resampling must be True with residual_resampl"),
    ],
)
def test_a_network_refuses_what_does_not_fit_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(**arguments)


# Linear attention.


def linear_attention(channels: int = 6) -> SpatialLinearAttention:
    return randomised(SpatialLinearAttention(channels=channels)).double()


@RANKS
def test_linear_attention_follows_its_formula(spatial_dims: SpatialDims) -> None:
    block, x = linear_attention(), normal((2, 6, *(3, 4, 5)[:spatial_dims]))
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ w.T for w in block.to_qkv.weight.split(6))
    weights = k.exp() / k.exp().sum(dim=1, keepdim=True)
    mixed = torch.stack([q[b] @ (weights[b].T @ v[b]) for b in range(2)])
    expected = (mixed @ block.to_out.weight.T + block.to_out.bias).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-11)
    assert SpatialLinearAttention(**block.config).config == block.config  # type: ignore[arg-type]


def test_linear_attention_sees_points_and_no_axes() -> None:
    block, x, order = linear_attention(), normal((2, 6, 12)), torch.randperm(12)
    torch.testing.assert_close(block(x[..., order]), block(x)[..., order], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(block(x.reshape(2, 6, 3, 4)).flatten(2), block(x), rtol=1e-11, atol=1e-11)


# First stages.


@RANKS
@torch.no_grad()
def test_a_first_stage_has_all_of_them_in_one_and_keeps_its_shape(spatial_dims: SpatialDims, tmp_path: Path) -> None:
    model = autoencoder(spatial_dims, attention_levels=(1,))
    x = normal((2, 3, *(8, 12, 4)[:spatial_dims])).tanh()
    y = model(x).reconstruction
    assert y.shape == x.shape
    unlimited = autoencoder(spatial_dims, attention_levels=(1,), tanh_output=False)
    unlimited.load_state_dict(model.state_dict())
    torch.testing.assert_close(y, unlimited(x).reconstruction.tanh())
    ld.save(model, tmp_path / "model.safetensors")
    again = ld.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert torch.equal(again(x).reconstruction, y)


@pytest.mark.parametrize("attention_levels", [(), (1,)])
@torch.no_grad()
def test_a_first_stage_in_pieces_is_the_whole(attention_levels: tuple[int, ...]) -> None:
    model = autoencoder(attention_levels=attention_levels)
    x = normal((2, 3, 44, 68)).tanh()
    latents = model.encode(x).mode()
    torch.testing.assert_close(model.encode(x, tile=16).mode(), latents, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.decode(latents, tile=16), model.decode(latents), rtol=1e-9, atol=1e-9)


def test_a_first_stage_refuses_what_has_no_use() -> None:
    with pytest.raises(ValueError, match="linear_attention must be False without attention, got True"):
        autoencoder(middle_attention=False)
    with pytest.raises(ValueError, match=r"value_range must be \(-1, 1\) or None with tanh_output, got \(0, 1\)"):
        autoencoder(value_range=(0, 1))
    assert autoencoder(value_range=None).value_range is None


# Configurations.


@pytest.mark.parametrize(
    ("change", "heads"),
    [
        ({"num_heads_upsample": 4}, 4),
        ({"num_heads_upsample": -1}, None),
        ({"num_heads_upsample": 2}, None),
        ({"num_heads_upsample": 4, "legacy": False}, None),
        ({"num_heads_upsample": 4, "num_head_channels": 4}, None),
        ({"num_heads_upsample": 4, "use_spatial_transformer": True, "context_dim": 5}, None),
    ],
)
def test_heads_on_the_way_up_are_read_where_the_original_listens_to_them(
    change: dict[str, Any], heads: int | None
) -> None:
    node = Node({"unet_config": {"target": "UNetModel", "params": UNET | change}}, "")
    assert build_unet(node, 3).num_heads_up == heads


def test_residual_resampling_has_no_convolutions_to_leave_out() -> None:
    params = UNET | {"conv_resample": False, "resblock_updown": True}
    network = build_unet(Node({"unet_config": {"target": "UNetModel", "params": params}}, ""), 3)
    assert network.residual_resampling
    assert network.conv_resampling


def test_linear_attention_has_two_names() -> None:
    for change in ({"use_linear_attn": True}, {"attn_type": "linear"}, {"use_linear_attn": True, "attn_type": "none"}):
        model = _first_stage(change)
        assert model.linear_attention
        assert model.middle_attention
    assert not _first_stage({"use_linear_attn": False}).linear_attention


def _first_stage(change: dict[str, Any]) -> ld.Autoencoder:
    described = config("unconditional")
    described["model"]["params"]["first_stage_config"]["params"]["ddconfig"] = CODERS | change
    model = build_module(Node(described, ""))
    assert isinstance(model, ld.LatentDiffusion)
    return model.autoencoder


def test_linear_attention_has_the_originals_names_and_resampling_none(tmp_path: Path) -> None:
    tensors = exported(built("variants"), tmp_path / "model.safetensors")
    prefix = "first_stage_model.encoder.mid.attn_1."
    shapes = {key.removeprefix(prefix): [*tensors[key].shape] for key in tensors if key.startswith(prefix)}
    assert shapes == {"to_qkv.weight": [48, 16, 1, 1], "to_out.weight": [16, 16, 1, 1], "to_out.bias": [16]}
    assert not [key for key in tensors if "sample.conv" in key or ".op." in key or key.endswith(".conv.weight")]
