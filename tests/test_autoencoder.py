from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pytest
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, VQModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from latentdiff import (
    Autoencoder,
    DiagonalGaussian,
    FiniteScalarQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from latentdiff._bottleneck import Bottleneck
from latentdiff._coders import CoderLevel
from latentdiff._distributions import PointMass
from latentdiff._typing import SpatialDims

SEEDS = st.integers(0, 2**31 - 1)
BOTTLENECKS: list[Bottleneck] = ["kl", "vq", "none"]


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform in [-1, 1]."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def tiny(
    bottleneck: Bottleneck = "kl",
    *,
    in_channels: int = 3,
    latent_channels: int = 2,
    channel_multipliers: Sequence[int] = (1, 2),
    spatial_dims: SpatialDims = 2,
    scaling_factor: float | Sequence[float] = 1.0,
    shift_factor: float | Sequence[float] = 0.0,
    codebook_decay: float | None = None,
    value_range: Sequence[float] | None = (-1.0, 1.0),
    dropout: float = 0.0,
    gradient_checkpointing: bool = False,
) -> Autoencoder:
    return Autoencoder(
        in_channels=in_channels,
        latent_channels=latent_channels,
        base_channels=4,
        channel_multipliers=channel_multipliers,
        blocks_per_level=1,
        attention_levels=(len(channel_multipliers) - 1,),
        bottleneck=bottleneck,
        codebook_size=16 if bottleneck == "vq" else None,
        codebook_decay=codebook_decay,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        spatial_dims=spatial_dims,
        dropout=dropout,
        value_range=value_range,
        gradient_checkpointing=gradient_checkpointing,
    )


# Parity with an independent implementation, in float64: what is left is the order of sums.


class Peer(TypedDict):
    """Arguments of diffusers' models."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]


PEER: Peer = {
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
}


def coder_keys(ours: str, levels: int, side: str) -> dict[str, str]:
    """Our prefixes of an encoder or decoder, and diffusers'."""
    keys = {f"{ours}.conv_in": f"{ours}.conv_in", f"{ours}.conv_out": f"{ours}.conv_out"}
    keys[f"{ours}.norm_out"] = f"{ours}.conv_norm_out"
    resampler = "downsamplers" if side == "down" else "upsamplers"
    stages = [(f"{side}.{i}", f"{side}_blocks.{i}", j) for i in range(levels) for j in range(3)]
    for mine, theirs, j in [*stages, ("middle", "mid_block", 0), ("middle", "mid_block", 1)]:
        stage, block = f"{ours}.{mine}.stages.{j}", f"{ours}.{theirs}"
        for part in ("norm1", "conv1", "norm2", "conv2"):
            keys[f"{stage}.block.{part}"] = f"{block}.resnets.{j}.{part}"
        keys[f"{stage}.block.shortcut"] = f"{block}.resnets.{j}.conv_shortcut"
        keys[f"{stage}.attention.norm"] = f"{block}.attentions.{j}.group_norm"
        for part in ("to_q", "to_k", "to_v"):
            keys[f"{stage}.attention.{part}"] = f"{block}.attentions.{j}.{part}"
        keys[f"{stage}.attention.to_out"] = f"{block}.attentions.{j}.to_out.0"
        keys[f"{ours}.{mine}.resample.conv"] = f"{block}.{resampler}.0.conv"
    return keys


def copy_weights(autoencoder: Autoencoder, peer: torch.nn.Module) -> None:
    """Fill our model with the peer's weights, leaving none out."""
    levels = len(autoencoder.channel_multipliers)
    keys = coder_keys("encoder", levels, "down") | coder_keys("decoder", levels, "up")
    keys |= {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    theirs = dict(peer.state_dict())
    mine = dict(autoencoder.state_dict())
    for name in mine:
        if name.startswith("latent_"):
            continue
        prefix, leaf = name.rsplit(".", 1)
        key = "quantize.embedding.weight" if leaf == "codebook" else f"{keys[prefix]}.{leaf}"
        mine[name] = theirs.pop(key)
    assert not theirs
    autoencoder.load_state_dict(mine)


def kl_pair() -> tuple[Autoencoder, AutoencoderKL]:
    peer = AutoencoderKL(**PEER, scaling_factor=0.18215).double().eval()
    autoencoder = Autoencoder(
        base_channels=32, channel_multipliers=(1, 2, 2), attention_levels=(2,), scaling_factor=0.18215
    )
    autoencoder = autoencoder.double().eval()
    copy_weights(autoencoder, peer)
    return autoencoder, peer


def vq_pair() -> tuple[Autoencoder, VQModel]:
    peer = VQModel(**PEER, num_vq_embeddings=50).double().eval()
    torch.nn.init.normal_(peer.quantize.embedding.weight)
    autoencoder = Autoencoder(
        base_channels=32,
        channel_multipliers=(1, 2, 2),
        attention_levels=(2,),
        bottleneck="vq",
        codebook_size=50,
        commitment_weight=1.0,
        codebook_weight=0.25,
    )
    autoencoder = autoencoder.double().eval()
    copy_weights(autoencoder, peer)
    return autoencoder, peer


@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
@pytest.mark.parametrize("amplitude", [1.0, 0.002])  # at 0.002 an epsilon of 1e-5 in a norm would show
def test_kl_model_is_that_of_diffusers(size: tuple[int, int], amplitude: float) -> None:
    autoencoder, peer = kl_pair()
    x = amplitude * images(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = autoencoder.encode(x), peer.encode(x).latent_dist
        torch.testing.assert_close(ours.mode(), 0.18215 * theirs.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.std, 0.18215 * theirs.std, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.kl(), theirs.kl(), rtol=1e-9, atol=1e-9)
        z = amplitude * theirs.mean
        expected = peer.decode(z).sample
        torch.testing.assert_close(autoencoder.decode(0.18215 * z), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_vq_model_is_that_of_diffusers(size: tuple[int, int]) -> None:
    autoencoder, peer = vq_pair()
    x = images(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        z = peer.encode(x).latents
        posterior = autoencoder.encode(x)
        torch.testing.assert_close(posterior.mode(), z, rtol=1e-9, atol=1e-9)
        decoded = peer.decode(z)
        out = autoencoder(x)
        torch.testing.assert_close(autoencoder.decode(z), decoded.sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.reconstruction, decoded.sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.regularization, peer.quantize(z)[1], rtol=1e-9, atol=1e-9)
        unquantized = peer.decode(z, force_not_quantize=True).sample
        torch.testing.assert_close(autoencoder.decode(z, quantize=False), unquantized, rtol=1e-9, atol=1e-9)
        assert (unquantized - decoded.sample).abs().max() > 1e-3


def test_gradients_are_those_of_diffusers() -> None:
    autoencoder, peer = kl_pair()
    x = images(1, 3, 16, 8, dtype=torch.float64)
    autoencoder(x).reconstruction.square().sum().backward()
    peer(x).sample.square().sum().backward()
    norms = [
        torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).sort().values
        for model in (autoencoder, peer)
    ]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-8, atol=1e-12)


# Published models: parameters of `encoder + decoder + codebook + 1x1 convolutions`, counted in their checkpoints.

PUBLISHED: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int | None, int]] = {
    "kl-f4": (3, (1, 2, 4), (), None, 55_312_063),
    "kl-f8": (4, (1, 2, 4, 4), (), None, 83_653_863),
    "kl-f16": (16, (1, 1, 2, 2, 4), (4,), None, 69_610_963),
    "kl-f32": (64, (1, 1, 2, 2, 4, 4), (4, 5), None, 103_880_131),
    "vq-f4": (3, (1, 2, 4), (), 8192, 55_322_782),
    "vq-f8": (4, (1, 2, 2, 4), (3,), 16384, 67_717_295),
    "vq-f8-n256": (4, (1, 2, 2, 4), (3,), 256, 67_652_783),
    "vq-f16": (8, (1, 1, 2, 2, 4), (4,), 16384, 69_593_371),
    "vqgan-imagenet-f16-1024": (256, (1, 1, 2, 2, 4), (4,), 1024, 72_141_699),
}


def count(autoencoder: Autoencoder) -> int:
    return sum(parameter.numel() for parameter in autoencoder.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_number_of_parameters(name: str) -> None:
    latent_channels, multipliers, levels, codebook_size, parameters = PUBLISHED[name]
    with torch.device("meta"):
        autoencoder = Autoencoder(
            latent_channels=latent_channels,
            channel_multipliers=multipliers,
            attention_levels=levels,
            bottleneck="kl" if codebook_size is None else "vq",
            codebook_size=codebook_size,
        )
    assert count(autoencoder) == parameters


def test_the_published_model_without_attention_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        autoencoder = Autoencoder(
            latent_channels=3,
            channel_multipliers=(1, 2, 4),
            middle_attention=False,
            bottleneck="vq",
            codebook_size=8192,
        )
    assert count(autoencoder) == 53_219_486


# Any rank, any channels, any factor


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_decoding_gives_back_the_shape(spatial_dims: SpatialDims, levels: int, channels: int) -> None:
    multipliers = (1, 2, 1, 2)[:levels]
    autoencoder = tiny(in_channels=channels, channel_multipliers=multipliers, spatial_dims=spatial_dims).eval()
    f = autoencoder.downsampling_factor
    assert f == 2 ** (levels - 1)
    x = images(2, channels, *(3 * f, f, 2 * f)[:spatial_dims])
    with torch.no_grad():
        out = autoencoder(x)
        latents = autoencoder.encode(x).mode()
    assert latents.shape == (2, 2, *(3, 1, 2)[:spatial_dims])
    assert out.reconstruction.shape == x.shape
    assert out.posterior.kl().shape == (2,)
    assert out.reconstruction.isfinite().all()


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_every_parameter_learns(bottleneck: Bottleneck, spatial_dims: SpatialDims) -> None:
    autoencoder = tiny(bottleneck, spatial_dims=spatial_dims)
    x = images(2, 3, *(4, 6, 2)[:spatial_dims])
    out = autoencoder(x)
    ((out.reconstruction - x).square().mean() + out.regularization).backward()
    silent = [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent


def test_out_channels_may_differ() -> None:
    autoencoder = Autoencoder(in_channels=2, out_channels=5, base_channels=4, channel_multipliers=(1, 2)).eval()
    assert autoencoder(images(1, 2, 4, 6)).reconstruction.shape == (1, 5, 4, 6)


def test_z_channels_may_differ_and_the_convolutions_may_be_left_out() -> None:
    wide = Autoencoder(latent_channels=2, z_channels=5, base_channels=4, channel_multipliers=(1, 2)).eval()
    assert wide.encoder.conv_out.weight.shape[0] == 10
    assert wide.encode(images(1, 3, 4, 6)).mode().shape == (1, 2, 2, 3)
    assert wide(images(1, 3, 4, 6)).reconstruction.shape == (1, 3, 4, 6)
    bare = Autoencoder(base_channels=4, channel_multipliers=(1, 2), use_quant_conv=False).eval()
    assert bare.quant_conv is None
    assert bare.post_quant_conv is None
    assert bare(images(1, 3, 4, 6)).reconstruction.shape == (1, 3, 4, 6)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_downsampling_pads_at_the_end_only(spatial_dims: SpatialDims) -> None:
    level = tiny(spatial_dims=spatial_dims).encoder.down[0]
    assert isinstance(level, CoderLevel)
    assert level.resample is not None
    conv = level.resample.conv
    with torch.no_grad():
        conv.weight.zero_()[(0, 0, *(1,) * spatial_dims)] = 1.0  # picks the middle of three
        assert conv.bias is not None
        conv.bias.zero_()
        x = torch.arange(float(8**spatial_dims)).reshape(1, 1, *(8,) * spatial_dims).repeat(1, 4, *(1,) * spatial_dims)
        out = level.resample(x)
    odd = (0, 0, *(slice(1, None, 2),) * spatial_dims)  # padding on both sides would pick the even ones
    assert torch.equal(out[0, 0], x[odd])


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_samples_of_a_batch_do_not_see_each_other(bottleneck: Bottleneck) -> None:
    autoencoder, x = tiny(bottleneck).double().eval(), images(3, 3, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        whole = autoencoder(x).reconstruction
        alone = torch.cat([autoencoder(one).reconstruction for one in x.split(1)])
    torch.testing.assert_close(whole, alone)


# Posterior, modes, regularisation


def test_training_draws_a_sample_and_evaluation_takes_the_mode() -> None:
    autoencoder, x = tiny(), images(2, 3, 6, 4)
    out = autoencoder(x, torch.Generator().manual_seed(1))
    drawn = out.posterior.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(out.reconstruction, autoencoder.decode(drawn))
    autoencoder.eval()
    out = autoencoder(x)
    torch.testing.assert_close(out.reconstruction, autoencoder.decode(out.posterior.mode()))


def test_regularization_is_nats_per_sample_the_codebook_loss_or_nothing() -> None:
    x = images(3, 3, 6, 4)
    kl, vq, none = (tiny(bottleneck).eval() for bottleneck in BOTTLENECKS)
    out = kl(x)
    assert isinstance(out.posterior, DiagonalGaussian)
    assert out.indices is None
    torch.testing.assert_close(out.regularization, out.posterior.kl().sum() / 3)
    out = vq(x)
    assert isinstance(out.posterior, PointMass)
    assert vq.quantizer is not None
    quantized = vq.quantizer.quantize(out.posterior.mode())
    torch.testing.assert_close(out.regularization, quantized.loss)
    assert out.indices is not None
    assert torch.equal(out.indices, quantized.indices)
    assert none(x).regularization == 0


def test_a_codebook_learns_in_a_training_pass_and_nowhere_else() -> None:
    autoencoder, x = tiny("vq", codebook_decay=0.5), images(2, 3, 6, 4)
    assert autoencoder.quantizer is not None
    before = autoencoder.quantizer.codebook.clone()
    autoencoder.decode(autoencoder.encode(x).mode())
    autoencoder.eval()(x)
    assert torch.equal(autoencoder.quantizer.codebook, before)
    autoencoder.train()(x)
    assert not torch.equal(autoencoder.quantizer.codebook, before)


def test_vq_latents_are_before_quantisation_and_decoding_quantises() -> None:
    autoencoder, x = tiny("vq", scaling_factor=3.0, shift_factor=0.5).eval(), images(2, 3, 6, 4)
    assert autoencoder.quantizer is not None
    latents = autoencoder.encode(x).mode()
    codes = autoencoder.quantizer.quantize(latents / 3 + 0.5).latents
    assert not torch.allclose(latents / 3 + 0.5, codes, atol=1e-3)
    snapped = (codes - 0.5) * 3
    torch.testing.assert_close(autoencoder.decode(latents), autoencoder.decode(snapped, quantize=False))
    torch.testing.assert_close(autoencoder.decode(latents), autoencoder.decode(snapped))


def test_gradients_pass_straight_through_the_codebook() -> None:
    autoencoder = tiny("vq")
    latents = torch.randn(1, 2, 3, 2, requires_grad=True)
    autoencoder.decode(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_the_codebook_starts_at_the_encoders_outputs() -> None:
    autoencoder, x = tiny("vq", scaling_factor=3.0).eval(), images(4, 3, 6, 4)
    assert autoencoder.quantizer is not None
    before = autoencoder(x).regularization
    autoencoder.initialize_codebook(x, generator=torch.Generator().manual_seed(0))
    assert autoencoder(x).regularization < 0.2 * before
    with pytest.raises(ValueError, match="bottleneck must be 'vq' to have a codebook, got 'kl'"):
        tiny().initialize_codebook(x)


# Any quantizer


def coded(
    quantizer: Quantizer, *, scaling_factor: float = 1.0, value_range: Sequence[float] | None = None
) -> Autoencoder:
    return Autoencoder(
        latent_channels=quantizer.dim,
        base_channels=4,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        bottleneck=quantizer,
        scaling_factor=scaling_factor,
        value_range=value_range,
    )


@pytest.mark.parametrize(
    "quantizer",
    [
        VectorQuantizer(codebook_size=16, dim=2, gradient="rotation"),
        FiniteScalarQuantizer(levels=(5, 4)),
        ResidualQuantizer(stages=3, codebook_size=16, dim=2, decay=0.9),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_any_quantizer_is_a_bottleneck(quantizer: Quantizer, tmp_path: Path) -> None:
    autoencoder, x = coded(quantizer, scaling_factor=2.0).eval(), images(2, 3, 6, 4)
    assert autoencoder.bottleneck is autoencoder.quantizer is quantizer
    out = autoencoder(x)
    assert out.indices is not None
    quantized = quantizer.quantize(out.posterior.mode() / 2)
    assert torch.equal(out.indices, quantized.indices)
    torch.testing.assert_close(out.regularization, quantized.loss)
    codes = 2 * quantizer.lookup(out.indices)
    torch.testing.assert_close(out.reconstruction, autoencoder.decode(codes, quantize=False))
    torch.testing.assert_close(out.reconstruction, autoencoder.decode(out.posterior.mode()))
    ld.save(autoencoder, tmp_path / "coded.safetensors")
    loaded = ld.load(tmp_path / "coded.safetensors")
    assert isinstance(loaded, Autoencoder)
    assert loaded.config == autoencoder.config
    torch.testing.assert_close(loaded(x).reconstruction, out.reconstruction)


def test_latents_of_a_grid_are_bounded_and_its_codes_decode_to_themselves() -> None:
    autoencoder, x = coded(FiniteScalarQuantizer(levels=(5, 4))).eval(), 50 * images(2, 3, 6, 4)
    latents = autoencoder.encode(x).mode()
    assert latents.abs().max() < 1.01
    codes = autoencoder.quantizer.lookup(torch.arange(20).reshape(1, 4, 5))  # type: ignore[union-attr]
    torch.testing.assert_close(autoencoder.decode(codes), autoencoder.decode(codes, quantize=False))
    autoencoder.calibrate([x])
    again = autoencoder.decode(autoencoder.encode(x).mode())
    torch.testing.assert_close(autoencoder(x).reconstruction, again)


def test_a_quantizer_learns_in_a_training_pass_of_its_autoencoder() -> None:
    quantizer = ResidualQuantizer(stages=2, codebook_size=16, dim=2, decay=0.5)
    stages = list(quantizer.quantizers)
    autoencoder, x = coded(quantizer), images(4, 3, 12, 8)
    autoencoder.initialize_codebook(x)
    before = copy.deepcopy(quantizer.state_dict())
    autoencoder.eval()(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())
    autoencoder.train()(x)
    assert not any(torch.equal(stage.codebook, before[f"quantizers.{i}.codebook"]) for i, stage in enumerate(stages))


def test_a_quantizer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="bottleneck must have dim=4, the latent_channels, got 2"):
        Autoencoder(bottleneck=FiniteScalarQuantizer(levels=(5, 4)))
    with pytest.raises(ValueError, match="codebook_size must be None with bottleneck=FiniteScalarQuantizer, got 16"):
        Autoencoder(latent_channels=2, bottleneck=FiniteScalarQuantizer(levels=(5, 4)), codebook_size=16)
    with pytest.raises(ValueError, match="must have a codebook to be initialised"):
        coded(FiniteScalarQuantizer(levels=(5, 4))).initialize_codebook(images(2, 3, 6, 4))


# One latent space


@given(
    SEEDS, st.lists(st.floats(0.01, 100), min_size=2, max_size=2), st.lists(st.floats(-3, 3), min_size=2, max_size=2)
)
@settings(max_examples=10)
def test_latents_are_shifted_and_scaled_and_decoding_undoes_it(
    seed: int, scaling: list[float], shift: list[float]
) -> None:
    autoencoder, x = tiny().double().eval(), images(2, 3, 6, 4, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        raw, plain = autoencoder.encode(x), autoencoder(x)
        autoencoder.scaling_factor, autoencoder.shift_factor = scaling, shift
        posterior, out = autoencoder.encode(x), autoencoder(x)
    scales, shifts = torch.tensor([scaling, shift], dtype=torch.float64).reshape(2, 1, 2, 1, 1)
    torch.testing.assert_close(posterior.mode(), (raw.mode() - shifts) * scales)
    torch.testing.assert_close(posterior.std, raw.std * scales)
    torch.testing.assert_close(posterior.kl(), raw.kl())
    torch.testing.assert_close(out.reconstruction, plain.reconstruction)
    torch.testing.assert_close(out.regularization, plain.regularization)


def stream(*sizes: int) -> list[Tensor]:
    return [images(size, 3, 6, 4, seed=index, dtype=torch.float64) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_calibrating_equals_two_passes_over_all_data(bottleneck: Bottleneck) -> None:
    autoencoder, batches = tiny(bottleneck).double(), stream(3, 1, 4)
    with torch.no_grad():
        whole = copy.deepcopy(autoencoder).eval().encode(torch.cat(batches))
    autoencoder.calibrate(batches)
    by_channel = whole.mean.movedim(1, 0).flatten(1)
    variance = by_channel.var(1, correction=0) + whole.variance.movedim(1, 0).flatten(1).mean(1)
    torch.testing.assert_close(autoencoder.latent_shift, by_channel.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(autoencoder.latent_scaling, variance.rsqrt(), rtol=1e-12, atol=0)


def test_calibrated_latents_have_unit_statistics() -> None:
    autoencoder, batches = tiny().double(), stream(3, 1, 4)
    assert autoencoder.calibrate(iter(batches)) is autoencoder
    with torch.no_grad():
        posterior = autoencoder.encode(torch.cat(batches))
        draws = torch.stack([posterior.sample(torch.Generator().manual_seed(seed)) for seed in range(400)])
    axes = (0, 1, 3, 4)
    torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(draws.mean(axes), torch.zeros(2, dtype=torch.float64), rtol=0, atol=0.03)
    torch.testing.assert_close(draws.var(axes), torch.ones(2, dtype=torch.float64), rtol=0.03, atol=0)


def test_calibrating_twice_or_in_other_batches_is_the_same_and_leaves_modes() -> None:
    autoencoder = tiny(scaling_factor=5.0, shift_factor=[1.0, 2.0], dropout=0.5).double()
    autoencoder.decoder.eval()
    autoencoder.calibrate(stream(3, 1, 4))
    first = autoencoder.config
    assert autoencoder.training
    assert autoencoder.encoder.training
    assert not autoencoder.decoder.training
    autoencoder.calibrate(stream(3, 1, 4))
    assert autoencoder.config == first
    autoencoder.calibrate([torch.cat(stream(3, 1, 4))])
    torch.testing.assert_close(autoencoder.config["scaling_factor"], first["scaling_factor"], rtol=1e-12, atol=0)


def test_calibration_refuses_nothing_and_constant_latents() -> None:
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        tiny().calibrate([])
    autoencoder = tiny("none")
    torch.nn.init.zeros_(autoencoder.get_parameter("quant_conv.weight"))
    with pytest.raises(ValueError, match=r"latents must vary in every channel, got variances \[0.0, 0.0\]"):
        autoencoder.calibrate([images(2, 3, 6, 4)])


def test_factors_set_by_hand_are_checked() -> None:
    autoencoder = tiny()
    autoencoder.scaling_factor = 0.18215
    autoencoder.scaling_factor = 0.18215
    assert autoencoder.scaling_factor == 0.18215
    autoencoder.scaling_factor = [0.5, 2]
    assert autoencoder.scaling_factor == [0.5, 2.0]
    with pytest.raises(ValueError, match="scaling_factor must be a number or one for each of 2 latent channels, got 3"):
        autoencoder.scaling_factor = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="scaling_factor must be positive, got -1"):
        autoencoder.scaling_factor = [1.0, -1.0]
    with pytest.raises(ValueError, match="shift_factor must be finite, got nan"):
        autoencoder.shift_factor = float("nan")


def test_factors_travel_with_the_weights_and_show_in_the_config() -> None:
    autoencoder = tiny(scaling_factor=[0.3, 0.7], shift_factor=0.1)
    other = tiny()
    other.load_state_dict(autoencoder.state_dict())
    assert other.config == autoencoder.config
    again = Autoencoder(**json.loads(json.dumps(autoencoder.config)))
    assert again.config == autoencoder.config
    assert again.scaling_factor == [0.3, 0.7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_factors_exact(dtype: torch.dtype) -> None:
    autoencoder = tiny(scaling_factor=0.18215).to(dtype)
    assert autoencoder.scaling_factor == 0.18215
    assert autoencoder.latent_scaling.dtype == torch.float64
    assert "latent_scaling" in autoencoder.state_dict()
    assert copy.deepcopy(autoencoder).float().scaling_factor == 0.18215


def test_a_model_without_memory_knows_its_config() -> None:
    with torch.device("meta"):
        autoencoder = tiny(scaling_factor=0.18215)
    assert autoencoder.config["scaling_factor"] == 0.18215
    assert autoencoder.to_empty(device="cpu").scaling_factor == 0.18215


def test_saving_and_loading_keeps_everything(tmp_path: Path) -> None:
    autoencoder, x = tiny("vq", scaling_factor=[0.3, 0.7]).eval(), images(2, 3, 6, 4)
    ld.save(autoencoder, tmp_path / "first_stage.safetensors")
    loaded = ld.load(tmp_path / "first_stage.safetensors")
    assert isinstance(loaded, Autoencoder)
    assert loaded.config == autoencoder.config
    torch.testing.assert_close(loaded(x).reconstruction, autoencoder(x).reconstruction)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    autoencoder = tiny().double().calibrate(stream(3, 1, 4)[rank::2])  # rank 0 has seven images, rank 1 has one
    torch.save(autoencoder.config, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_calibrate_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    torch.manual_seed(0)
    alone = tiny().double().calibrate(stream(3, 1, 4)).config
    for name in ("scaling_factor", "shift_factor"):
        torch.testing.assert_close(first[name], alone[name], rtol=1e-12, atol=1e-12)


# Precision, memory, compilation


def test_half_precision_weights_give_float32_latents_close_to_the_exact_ones() -> None:
    autoencoder, x = tiny(scaling_factor=2.0).eval(), images(2, 3, 6, 4)
    exact = autoencoder.encode(x)
    half = copy.deepcopy(autoencoder).bfloat16()
    posterior = half.encode(x)
    assert posterior.mode().dtype == posterior.kl().dtype == torch.float32
    assert half.decode(posterior.mode()).dtype == torch.bfloat16
    torch.testing.assert_close(posterior.mode(), exact.mode(), rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = autoencoder(x)
    assert cast.posterior.mode().dtype == torch.float32
    torch.testing.assert_close(cast.posterior.mode(), exact.mode(), rtol=0.1, atol=0.1)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain = tiny(dropout=0.3)
    saving = tiny(dropout=0.3, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for autoencoder in (plain, saving):
        torch.manual_seed(3)
        out = autoencoder(images(2, 3, 6, 4), torch.Generator().manual_seed(1))
        (out.reconstruction.square().sum() + out.regularization).backward()
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_dropout_acts_in_training_only() -> None:
    autoencoder, x = tiny("none", dropout=0.5), images(2, 3, 6, 4)
    assert not torch.equal(autoencoder(x).reconstruction, autoencoder(x).reconstruction)
    autoencoder.eval()
    assert torch.equal(autoencoder(x).reconstruction, autoencoder(x).reconstruction)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_training_pass_compiles_as_one_graph(bottleneck: Bottleneck) -> None:
    torch.compiler.reset()
    autoencoder, x = tiny(bottleneck, channel_multipliers=(1,), scaling_factor=[0.5, 2.0]), images(2, 3, 6, 4)
    out = torch.compile(autoencoder, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(out.posterior.mode(), autoencoder.encode(x).mode())
    torch.testing.assert_close(out.regularization, autoencoder(x).regularization)


@torch.no_grad()
def test_encode_and_decode_compile_as_one_graph() -> None:
    torch.compiler.reset()
    autoencoder, x = tiny(scaling_factor=[0.5, 2.0]).eval(), images(2, 3, 6, 4)
    encode = torch.compile(autoencoder.encode, backend="eager", fullgraph=True)
    decode = torch.compile(autoencoder.decode, backend="eager", fullgraph=True)
    torch.testing.assert_close(decode(encode(x).mode()), autoencoder(x).reconstruction)


def test_channels_last_stays_channels_last_and_gives_the_same() -> None:
    autoencoder, x = tiny().eval(), images(2, 3, 6, 4)
    expected = autoencoder(x).reconstruction
    out = autoencoder.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).reconstruction
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_last_layer_is_the_output_convolution() -> None:
    autoencoder = tiny()
    assert autoencoder.last_layer is autoencoder.decoder.conv_out.weight
    reconstruction = autoencoder(images(1, 3, 6, 4)).reconstruction
    (gradient,) = torch.autograd.grad(reconstruction.sum(), autoencoder.last_layer)
    assert gradient.shape == (3, 4, 3, 3)


def test_config_builds_it_again() -> None:
    for bottleneck, dims in itertools.product(BOTTLENECKS, (1, 2, 3)):
        autoencoder = tiny(bottleneck, spatial_dims=dims, value_range=None)  # type: ignore[arg-type]
        again = Autoencoder(**json.loads(json.dumps(autoencoder.config)))
        assert again.config == autoencoder.config
        again.load_state_dict(autoencoder.state_dict())


# The border


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 6), r"x must have 4 axes \[batch, channels, height, width\], got 3: \[2, 3, 6\]"),
        ((2, 4, 6, 4), r"x must have channels=3, got channels=4"),
        ((0, 3, 6, 4), r"x must not be empty, got shape \[0, 3, 6, 4\]"),
        ((2, 3, 6, 5), r"spatial sizes divisible by 2, the downsampling factor, got \[6, 5\]; .* that work, \[6, 6\]"),
        ((2, 3, 1, 4), r"got \[1, 4\]; pad it to the next sizes that work, \[2, 4\]"),
    ],
)
def test_images_of_a_wrong_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().encode(images(*shape))


def test_images_of_wrong_values_are_refused() -> None:
    autoencoder, x = tiny(), images(2, 3, 6, 4)
    with pytest.raises(TypeError, match=r"x must be floating, got torch.uint8"):
        autoencoder.encode(torch.zeros(2, 3, 6, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"x must be in \[-1, 1\], got values in \[0, 255\]"):
        autoencoder.encode(torch.linspace(0, 255, 144).reshape(2, 3, 6, 4))
    for anything in (autoencoder, tiny(value_range=None)):
        with pytest.raises(ValueError, match="x must be finite, got NaN"):
            anything.encode(x.masked_fill(x > 0.9, float("nan")))
    with pytest.raises(ValueError, match="x must be finite, got values in"):
        tiny(value_range=None).encode(x.masked_fill(x > 0.9, float("inf")))
    tiny(value_range=None).encode(100 * x)
    tiny(value_range=(0, 255)).encode(torch.linspace(0, 255, 144).reshape(2, 3, 6, 4))


def test_latents_that_do_not_fit_are_refused() -> None:
    autoencoder = tiny()
    with pytest.raises(ValueError, match=r"latents must have channels=2, got channels=4"):
        autoencoder.decode(torch.zeros(2, 4, 3, 2))
    with pytest.raises(ValueError, match=r"latents must be finite, got NaN"):
        autoencoder.decode(torch.full((2, 2, 3, 2), float("nan")))
    with pytest.raises(TypeError, match=r"latents must be floating, got torch.int64"):
        autoencoder.decode(torch.zeros(2, 2, 3, 2, dtype=torch.int64))


def test_data_that_look_like_another_range_are_warned_of_once() -> None:
    autoencoder, half = tiny(), images(2, 3, 6, 4).abs()
    autoencoder.encode(torch.full((2, 3, 6, 4), 0.5))  # constant: proves nothing
    autoencoder.encode(images(2, 3, 6, 4))
    with pytest.warns(
        UserWarning, match=r"all values of x are in \[.*\], .* data in \[0, 1\] need 2 \* x - 1"
    ) as caught:
        autoencoder.encode(half)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoencoder.encode(half)
        tiny(value_range=(0, 1)).encode(half)
        tiny(value_range=None).encode(half)


def test_clamp_limits_to_the_range_of_the_data() -> None:
    x = torch.tensor([-3.0, 0.5, 3.0]).reshape(1, 1, 3, 1)
    assert tiny().clamp(x).flatten().tolist() == [-1.0, 0.5, 1.0]
    assert torch.equal(tiny(value_range=None).clamp(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be one of 1, 2, 3, got 4"),
        ({"bottleneck": "fsq"}, "bottleneck must be one of 'kl', 'vq', 'none', got 'fsq'"),
        ({"latent_channels": 0}, "latent_channels must be at least 1, got 0"),
        ({"blocks_per_level": 0}, "blocks_per_level must be at least 1, got 0"),
        ({"channel_multipliers": ()}, r"channel_multipliers must hold one number for each level, got \(\)"),
        ({"channel_multipliers": (1, 0)}, "channel_multipliers must be at least 1, got 0"),
        ({"dropout": 2.0}, r"dropout must be in \[0, 1\], got 2.0"),
        ({"attention_levels": (4,)}, r"attention_levels must be in \[0, 3\], got \(4,\)"),
        ({"bottleneck": "vq"}, "codebook_size must be given with bottleneck='vq', got None"),
        ({"codebook_size": 16}, "codebook_size must be None with bottleneck='kl', got 16"),
        ({"commitment_weight": 1.0}, "commitment_weight must be 0.25 with bottleneck='kl', got 1.0"),
        (
            {"z_channels": 5, "use_quant_conv": False},
            "z_channels must be 4, the latent_channels, without use_quant_conv",
        ),
        ({"value_range": (1, -1)}, r"value_range must be None or \(lowest, highest\), got \(1, -1\)"),
        ({"scaling_factor": 0.0}, "scaling_factor must be positive, got 0.0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoencoder(base_channels=4, **options)  # type: ignore[arg-type]
