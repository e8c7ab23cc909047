from __future__ import annotations

import copy
import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentdiff import Autoencoder, Tiling
from latentdiff._attention import QKVOrder, SpatialSelfAttention
from latentdiff._coders import CoderStage
from latentdiff._gathered_norm import GatheredNorm
from latentdiff._layers import Downsample, Upsample
from latentdiff._reach import needs_whole, reach, scale
from latentdiff._streamed_attention import attend
from latentdiff._streaming import _recut, stream
from latentdiff._typing import SpatialDims
from networks import randomised

SEEDS = st.integers(0, 2**31 - 1)


def images(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def autoencoder(
    spatial_dims: SpatialDims = 2,
    *,
    channel_multipliers: Sequence[int] = (1, 2, 2),
    attention_levels: Sequence[int] = (),
    middle_attention: bool = False,
) -> Autoencoder:
    made = Autoencoder(
        latent_channels=2,
        base_channels=4,
        channel_multipliers=channel_multipliers,
        blocks_per_level=1,
        attention_levels=attention_levels,
        middle_attention=middle_attention,
        spatial_dims=spatial_dims,
        value_range=None,
    )
    return randomised(made.double().eval())


def without_norms(module: Autoencoder) -> Autoencoder:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, nn.Identity())
    return module


SIZES: dict[int, tuple[int, ...]] = {1: (500,), 2: (44, 68), 3: (12, 28, 16)}
TILES = {1: 60, 2: 24, 3: 8}


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("exact", [True, False])
@torch.no_grad()
def test_without_norms_and_attention_pieces_make_the_whole(spatial_dims: SpatialDims, exact: bool) -> None:
    model = without_norms(autoencoder(spatial_dims))
    x, tiling = images(2, 3, *SIZES[spatial_dims]), Tiling(TILES[spatial_dims], exact=exact)
    latents = model.encode(x).mode()
    torch.testing.assert_close(model.encode(x, tile=tiling).mode(), latents, rtol=1e-11, atol=1e-11)
    whole = model.decode(latents)
    torch.testing.assert_close(model.decode(latents, tile=tiling), whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("middle_attention", [True, False])
@torch.no_grad()
def test_exact_tiling_is_the_whole_with_norms_and_attention_too(
    spatial_dims: SpatialDims, middle_attention: bool
) -> None:
    model = autoencoder(spatial_dims, middle_attention=middle_attention)
    x = images(2, 3, *SIZES[spatial_dims])
    latents = model.encode(x).mode()
    whole = model.decode(latents)
    for size in (TILES[spatial_dims] // 2, TILES[spatial_dims]):
        posterior = model.encode(x, tile=size)
        torch.testing.assert_close(posterior.mode(), latents, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model.decode(latents, tile=size), whole, rtol=1e-9, atol=1e-9)


@given(
    SEEDS,
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([(1,), (1, 1), (1, 2, 1, 1)]),
    st.sampled_from([(), (0,), (1,)]),
)
@settings(max_examples=10)
@torch.no_grad()
def test_any_size_through_any_tile(
    seed: int, height: int, width: int, size: int, exact: bool, multipliers: tuple[int, ...], levels: tuple[int, ...]
) -> None:
    levels = tuple(level for level in levels if level < len(multipliers))
    model = autoencoder(channel_multipliers=multipliers, attention_levels=levels)
    f = model.downsampling_factor
    x, tiling = images(1, 3, height * f, width * f, seed=seed), Tiling(size, exact=exact)
    latents = model.encode(x, tile=tiling).mode()
    decoded = model.decode(latents, tile=tiling)
    assert decoded.shape == x.shape
    assert decoded.isfinite().all()
    if exact:
        torch.testing.assert_close(latents, model.encode(x).mode(), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(decoded, model.decode(latents), rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_tiles_with_their_own_statistics_differ_a_little_and_have_no_edge() -> None:
    model = autoencoder()
    latents = torch.randn(1, 2, 40, 40, dtype=torch.float64)
    whole, tiled = model.decode(latents), model.decode(latents, tile=Tiling(48, exact=False))
    error = (tiled - whole).abs()
    assert 1e-6 < error.mean() < 0.3 * whole.abs().mean()  # random weights: a trained model's are smaller
    rows = (tiled - whole).diff(dim=2).abs().mean((0, 1, 3))  # where an edge would be, the error would jump
    assert rows.max() < 4 * rows.mean()


@torch.no_grad()
def test_float32_is_exact_to_its_rounding_and_half_precision_keeps_its_dtype() -> None:
    model, latents = autoencoder(middle_attention=True).float(), torch.randn(1, 2, 12, 17)
    whole = model.decode(latents)
    torch.testing.assert_close(model.decode(latents, tile=16), whole, rtol=1e-5, atol=1e-5)
    half = copy.deepcopy(model).bfloat16()
    for exact in (True, False):
        tiled = half.decode(latents, tile=Tiling(16, exact=exact))
        assert tiled.dtype == torch.bfloat16
        assert tiled.isfinite().all()
    torch.testing.assert_close(half.decode(latents, tile=16).float(), whole, rtol=0.2, atol=0.2)


@torch.no_grad()
def test_samples_in_pieces_are_those_of_the_batch() -> None:
    model, x = autoencoder(), images(3, 3, 28, 20)
    for tiling in (Tiling(12), Tiling(12, exact=False)):
        together = model.encode(x, tile=tiling).mode()
        alone = torch.cat([model.encode(one, tile=tiling).mode() for one in x.split(1)])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_slices_of_a_batch_are_the_batch_gradients_too(batch_size: int) -> None:
    model = Autoencoder(base_channels=4, channel_multipliers=(1, 2), bottleneck="vq", codebook_size=7).double()
    seen: list[int] = []
    for coder in (model.encoder, model.decoder):
        coder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    gradients: list[tuple[Tensor, ...]] = []
    for size in (None, batch_size):
        latents = model.encode(images(3, 3, 8, 10), batch_size=size).mode()
        decoded = model.decode(latents, batch_size=size)
        parameters = [p for name, p in model.named_parameters() if not name.startswith("quantizer")]
        gradients.append((latents, decoded, *torch.autograd.grad(decoded.square().sum(), parameters)))
    assert max(seen[2:]) == min(batch_size, 3)
    for whole, sliced in zip(*gradients, strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-10, atol=1e-10)


def test_slices_that_make_no_sense_are_refused() -> None:
    model, latents = autoencoder(), torch.randn(2, 2, 4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.decode(latents, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be None with tile, which takes one sample at a time, got 1"):
        model.decode(latents, batch_size=1, tile=8)


@torch.no_grad()
def test_the_model_is_left_as_it_was() -> None:
    model = autoencoder()
    before, parts = copy.deepcopy(model.state_dict()), list(model.named_modules())
    model.decode(torch.randn(1, 2, 12, 17), tile=8)
    assert parts == list(model.named_modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Reach, by the rule and by looking


def looked_at(layers: nn.Module, length: int, position: int) -> tuple[int, int]:
    """First and last point of an input `[1, 4, length]` that output `position` depends on."""
    x = torch.randn(1, 4, length, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layers(x)[0, :, position].sum(), x)
    points = gradient[0].abs().sum(0).nonzero()[:, 0]
    return int(points[0]), int(points[-1])


def stage() -> nn.Module:
    made = CoderStage(4, 4, attention=False, spatial_dims=1, dropout=0.0).double()
    made.block.norm1, made.block.norm2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    return made


def up() -> nn.Module:
    return Upsample(channels=4, spatial_dims=1).double()


def down() -> nn.Module:
    return Downsample(channels=4, spatial_dims=1, asymmetric=True).double()


@pytest.mark.parametrize(
    ("layers", "far"),
    [
        ([stage], 2),
        ([stage, stage], 4),
        ([up], 1),
        ([up, stage], 2),
        ([stage, up, stage], 4),
        ([up, up, stage], 2),
        ([down], 2),
        ([stage, down], 4),
        ([down, stage], 6),
        ([stage, down, stage, down], 12),
    ],
)
def test_reach_is_how_far_an_output_looks(layers: list[type[nn.Module]], far: int) -> None:
    chain = nn.Sequential(*(make() for make in layers))
    factor = scale(chain)
    assert reach(chain) == far
    least = 0
    for position in range(int(20 * factor), int(28 * factor)):
        first, last = looked_at(chain, 48, position)
        here = position / factor
        assert int(here) - first <= far
        assert last - int(here) <= far + (max(1, int(1 / factor)) - 1)
        least = max(least, int(here) - first, last - int(here))
    assert least >= far - 1  # the rule is no wild guess


def test_attention_and_maps_no_larger_than_a_tile_are_left_whole() -> None:
    layers = autoencoder(channel_multipliers=(1, 1, 1), middle_attention=True).decoder.layers()
    # one convolution and three stages at the lowest resolution, twice up and two stages, what makes the image
    assert [type(layer) for layer in layers].count(Upsample) == 2
    assert len(layers) == 12
    assert needs_whole(layers, (8, 8), 64) == [True] * 5 + [False] * 7
    assert needs_whole(layers, (8, 8), 256) == [True] * 8 + [False] * 4
    assert needs_whole(layers, (8, 8), 63) == [False, True] + [False] * 10
    assert needs_whole(layers, (8, 8), 1024) == [True] * 12


# Bands


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 20),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
)
def test_bands_are_cut_again_into_the_same_map(lengths: list[int], thickness: int, unit: int, rest: int) -> None:
    lengths = [unit * length for length in lengths]
    x = torch.arange(float(sum(lengths))).reshape(1, 1, 1, -1)
    bands = list(x.split(lengths, 3))
    recut = _recut(bands, thickness, unit, 3)
    assert torch.equal(torch.cat(recut, 3), x)
    assert not bands
    assert all(band.shape[3] >= thickness and band.shape[3] % unit == 0 for band in recut[:-1])


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    norm = randomised(nn.GroupNorm(3, 6, eps=1e-6).double())
    x = 100 + torch.randn(1, 6, 7, 10, dtype=torch.float64)
    gathered = GatheredNorm(norm)
    for part in x.split(3, dim=3):
        gathered.gather(part)
    gathered.is_gathered = True
    torch.testing.assert_close(gathered(x), norm(x), rtol=1e-9, atol=1e-9)


def test_bands_never_meet_the_whole_map_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = nn.Sequential(up(), stage(), stage())
    seen: list[int] = []
    whole = Upsample.forward

    def forward(self: Upsample, x: Tensor) -> Tensor:
        seen.append(x.shape[2])
        return whole(self, x)

    x = torch.randn(1, 4, 600, dtype=torch.float64)
    with torch.no_grad():
        expected = chain(x)
        monkeypatch.setattr(Upsample, "forward", forward)
        torch.testing.assert_close(stream(chain, x, 100), expected)
    assert len(seen) > 5
    assert max(seen) <= 2 * 50 + 4  # bands of 50 ... 99 points, and a margin of 2 on both sides


@pytest.mark.parametrize("axis", [2, 3])
@torch.no_grad()
def test_points_in_bands_attend_to_all_points(axis: int) -> None:
    attention = SpatialSelfAttention(channels=6, eps=1e-6, qkv_order="separate").double()
    x = 3 + 2 * torch.randn(1, 6, 8, 11, dtype=torch.float64)
    bands = [band.clone() for band in x.split(3, axis)]
    attend(attention, bands)
    torch.testing.assert_close(torch.cat(bands, axis), attention(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("num_heads", "qkv_order"), [(1, "separate"), (2, "separate"), (1, "legacy")])
@torch.no_grad()
def test_a_stream_that_begins_with_attention_leaves_its_input_alone(num_heads: int, qkv_order: QKVOrder) -> None:
    attention = SpatialSelfAttention(channels=6, num_heads=num_heads, qkv_order=qkv_order).double()
    x = torch.randn(1, 6, 8, 11, dtype=torch.float64)
    before = x.clone()
    torch.testing.assert_close(stream([attention], x, 8), attention(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("multipliers", "levels", "side", "share"),  # of small maps, what bands need beyond themselves is more
    [((1, 2, 4, 4), (), 512, 4), ((1, 2, 4), (), 512, 4), ((1, 2, 4), (2,), 256, 3.5), ((1, 2), (), 256, 3.5)],
)
@torch.no_grad()
def test_pieces_take_a_quarter_of_the_memory(
    multipliers: tuple[int, ...], levels: tuple[int, ...], side: int, share: float
) -> None:
    peak_bytes = runpy.run_path(str(Path(__file__).parent.parent / "bench" / "memory.py"))["peak_bytes"]
    assert peak_bytes(lambda: torch.zeros(1000).exp().sin()) == 8000  # one made, one before it
    model = Autoencoder(base_channels=8, channel_multipliers=multipliers, attention_levels=levels).eval()
    latents = torch.randn(1, 4, *[side // model.downsampling_factor] * 2)
    tile = side // 4
    assert peak_bytes(lambda: model.decode(latents, tile=tile)) < peak_bytes(lambda: model.decode(latents)) / share
    x = images(1, 3, side, side).float()
    assert peak_bytes(lambda: model.encode(x, tile=tile)) < peak_bytes(lambda: model.encode(x)) / (share - 0.5)


# The border


def test_gradients_are_not_asked_of_pieces() -> None:
    model, latents = autoencoder(), torch.randn(1, 2, 12, 17, requires_grad=True)
    with pytest.raises(ValueError, match="latents must not require a gradient with tile, got requires_grad=True"):
        model.decode(latents, tile=8)
    with pytest.raises(ValueError, match="x must not require a gradient with tile"):
        model.encode(images(1, 3, 12, 16).requires_grad_(), tile=8)
    assert not model.decode(latents.detach(), tile=8).requires_grad
    assert not model.encode(images(1, 3, 12, 16), tile=8).mode().requires_grad
    with torch.no_grad():
        model.decode(latents, tile=8)
    with pytest.raises(TypeError, match=r"size must be an int, got 6\.5"):
        model.decode(latents.detach(), tile=6.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        model.decode(latents.detach(), tile=0)
