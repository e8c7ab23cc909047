"""The layers of the networks: their formulas, at any rank, size and number of channels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latentdiff._layers import (
    Downsample,
    EmbeddingMLP,
    Resample,
    ResidualBlock,
    Upsample,
    conv,
    downsample_average,
    group_norm,
    timestep_embedding,
    upsample_nearest,
    zero_,
)
from latentdiff._typing import SpatialDims
from networks import normal, plainly, randomised

RANKS = pytest.mark.parametrize("spatial_dims", [1, 2, 3])


def cut(x: Tensor, *parts: slice) -> Tensor:
    """`x` with one slice for each of its last axes."""
    for axis, part in enumerate(parts, start=x.ndim - len(parts)):
        x = x.index_select(axis, torch.arange(x.shape[axis])[part])
    return x


def sinusoids(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """The embedding by its formula, in float64 and number by number."""
    half = dim // 2
    rows = [
        [math.cos(time * max_period ** (-i / half)) for i in range(half)]
        + [math.sin(time * max_period ** (-i / half)) for i in range(half)]
        + [0.0] * (dim % 2)
        for time in t.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dim", [2, 7, 32])
def test_the_time_embedding_follows_its_formula(dim: int) -> None:
    t = torch.tensor([0.0, 0.25, 1.0, 17.5, 500.0, 999.0])
    # An angle of 999 has an error of half a unit in its last place, 3e-5, from the product and as much from omega.
    torch.testing.assert_close(timestep_embedding(t, dim).double(), sinusoids(t, dim), rtol=0, atol=1.5e-4)
    assert timestep_embedding(t, dim).shape == (6, dim)


def test_the_time_embedding_has_the_published_order_of_sine_and_cosine() -> None:
    assert timestep_embedding(torch.tensor([0]), 6).tolist() == [[1, 1, 1, 0, 0, 0]]
    assert timestep_embedding(torch.tensor([3]), 5)[0, -1] == 0


def test_the_time_embedding_takes_another_period() -> None:
    t = torch.tensor([3, 11])
    torch.testing.assert_close(timestep_embedding(t, 8, 50.0).double(), sinusoids(t, 8, 50.0), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_time_embedding_is_float32_and_tells_all_times_apart(dtype: torch.dtype, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        embedding = timestep_embedding(torch.arange(1000).to(dtype), 64)
    assert embedding.dtype == torch.float32
    assert len(embedding.unique(dim=0)) == 1000
    assert len(embedding.to(torch.bfloat16).unique(dim=0)) == 1000
    assert torch.equal(embedding, timestep_embedding(torch.arange(1000), 64))


@given(channels=st.integers(1, 400), groups=st.integers(1, 40))
def test_group_norm_takes_any_number_of_channels(channels: int, groups: int) -> None:
    norm = group_norm(channels, eps=1e-5, groups=groups)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= groups
    if channels % groups == 0:
        assert norm.num_groups == groups
    else:
        assert norm.num_groups == 1 or channels // norm.num_groups >= 2
        larger = range(norm.num_groups + 1, min(groups, channels // 2) + 1)
        assert all(channels % n for n in larger)


@pytest.mark.parametrize(("channels", "groups"), [(320, 32), (32, 32), (48, 24), (16, 8), (13, 1), (3, 1), (1, 1)])
def test_group_norm_has_32_groups_wherever_the_published_models_do(channels: int, groups: int) -> None:
    assert group_norm(channels, eps=1e-6).num_groups == groups


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_group_norm_adds_its_epsilon_to_the_variance(eps: float) -> None:
    x = 1e-3 * normal((2, 6, 5))
    grouped = x.unflatten(1, (3, 2))
    mean = grouped.mean((2, 3), keepdim=True)
    variance = (grouped - mean).square().mean((2, 3), keepdim=True)
    expected = ((grouped - mean) / (variance + eps).sqrt()).flatten(1, 2)
    torch.testing.assert_close(group_norm(6, eps=eps).double()(x), expected, rtol=1e-12, atol=1e-12)


def test_group_norm_refuses_no_channels() -> None:
    with pytest.raises(ValueError, match="channels must be positive, got 0"):
        group_norm(0, eps=1e-5)


@RANKS
def test_a_convolution_has_the_rank_that_is_asked_for(spatial_dims: SpatialDims) -> None:
    size = (5, 6, 7)[:spatial_dims]
    assert conv(spatial_dims, 2, 3, 3)(torch.zeros(4, 2, *size)).shape == (4, 3, *size)


def test_there_is_no_convolution_of_rank_4() -> None:
    with pytest.raises(ValueError, match="spatial_dims must be one of 1, 2, 3, got 4"):
        conv(4, 2, 3, 3)  # type: ignore[arg-type]


def test_zero_sets_every_parameter_to_zero() -> None:
    module = nn.Linear(3, 2)
    assert zero_(module) is module
    assert not torch.cat([p.flatten() for p in module.parameters()]).any()


@given(size=st.lists(st.integers(1, 9), min_size=1, max_size=3), odd=st.booleans())
def test_upsampling_to_a_size_is_doubling_and_cutting(size: list[int], odd: bool) -> None:
    x = normal((2, 3, *size))
    wanted = tuple(2 * n - odd for n in size)
    doubled = x
    for axis in range(2, x.ndim):
        doubled = doubled.repeat_interleave(2, dim=axis)
    assert torch.equal(upsample_nearest(x), doubled)
    assert torch.equal(upsample_nearest(x, wanted), cut(doubled, *map(slice, wanted)))


def test_average_pooling_leaves_the_last_of_an_odd_axis_alone() -> None:
    x = torch.tensor([[[1.0, 3.0, 10.0]]])
    assert downsample_average(x).tolist() == [[[2.0, 10.0]]]
    assert downsample_average(torch.full((1, 1, 1, 1, 1), 7.0)).item() == 7.0


@given(size=st.lists(st.integers(1, 8), min_size=1, max_size=3))
def test_average_pooling_undoes_upsampling(size: list[int]) -> None:
    x = normal((2, 3, *size))
    torch.testing.assert_close(downsample_average(upsample_nearest(x)), x)


@RANKS
@pytest.mark.parametrize("asymmetric", [False, True])
def test_downsampling_is_a_convolution_of_every_second_point(spatial_dims: SpatialDims, asymmetric: bool) -> None:
    size = (6, 7, 8)[:spatial_dims]
    layer = randomised(
        Downsample(channels=2, out_channels=3, spatial_dims=spatial_dims, asymmetric=asymmetric)
    ).double()
    x = normal((4, 2, *size))
    assert layer.conv is not None
    functional = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial_dims]
    everywhere = functional(x, layer.conv.weight, layer.conv.bias, padding=1)
    start = 1 if asymmetric else 0  # padded at the end only, windows begin one point later
    expected = cut(everywhere, *[slice(start, None, 2)] * spatial_dims)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    halved = tuple(n // 2 if asymmetric else (n + 1) // 2 for n in size)
    assert layer(x).shape == (4, 3, *halved)


@RANKS
def test_upsample_repeats_and_convolves(spatial_dims: SpatialDims) -> None:
    size = (2, 3, 4)[:spatial_dims]
    layer = randomised(Upsample(channels=2, spatial_dims=spatial_dims)).double()
    x = normal((2, 2, *size))
    assert layer.conv is not None
    with plainly():
        assert torch.equal(layer(x), layer.conv(upsample_nearest(x)))
    # Sums of weights, where many points make that pay.
    torch.testing.assert_close(layer(x), layer.conv(upsample_nearest(x)), rtol=1e-12, atol=1e-13)
    odd = tuple(2 * n - 1 for n in size)
    assert layer(x, odd).shape == (2, 2, *odd)


def test_the_embedding_mlp_has_a_silu_between_two_layers() -> None:
    mlp = randomised(EmbeddingMLP(in_dim=3, out_dim=5)).double()
    x = normal((2, 3))
    hidden = x @ mlp.linear1.weight.T + mlp.linear1.bias
    expected = (hidden * hidden.sigmoid()) @ mlp.linear2.weight.T + mlp.linear2.bias
    torch.testing.assert_close(mlp(x), expected)


def norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    """Group normalisation from its definition."""
    grouped = x.unflatten(1, (layer.num_groups, -1)).flatten(2)
    normed = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, keepdim=True, correction=0) + layer.eps).sqrt()
    axes = (1, -1, *(1,) * (x.ndim - 2))
    y: Tensor = normed.reshape(x.shape) * layer.weight.reshape(axes) + layer.bias.reshape(axes)
    return y


@RANKS
@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_the_residual_block_follows_its_formula(
    spatial_dims: SpatialDims, scale_shift: bool, resample: Resample | None
) -> None:
    block = randomised(
        ResidualBlock(
            in_channels=4,
            out_channels=6,
            embedding_dim=5,
            spatial_dims=spatial_dims,
            scale_shift=scale_shift,
            resample=resample,
        )
    ).double()
    x, embedding = normal((3, 4, *(5, 6, 7)[:spatial_dims])), normal((3, 5), seed=1)
    change = {None: lambda y: y, "up": upsample_nearest, "down": downsample_average}[resample]
    assert block.embedding is not None
    assert block.shortcut is not None
    projected = block.embedding(embedding * embedding.sigmoid())[(..., *[None] * spatial_dims)]
    activated = norm(x, block.norm1)
    h = block.conv1(change(activated * activated.sigmoid()))
    if scale_shift:
        h = norm(h, block.norm2) * (1 + projected[:, :6]) + projected[:, 6:]
    else:
        h = norm(h + projected, block.norm2)
    expected = block.shortcut(change(x)) + block.conv2(h * h.sigmoid())
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-11, atol=1e-11)


@RANKS
def test_a_residual_block_does_not_prefer_a_direction(spatial_dims: SpatialDims) -> None:
    """Kernels and input mirrored give the mirrored output, on every axis."""
    block = randomised(ResidualBlock(in_channels=4, spatial_dims=spatial_dims)).double()
    x = normal((2, 4, *(5, 6, 7)[:spatial_dims]))
    y = block(x)
    for axis in range(2, x.ndim):
        mirrored = ResidualBlock(in_channels=4, spatial_dims=spatial_dims).double()
        state = {k: v.flip(axis) if v.ndim > 2 else v for k, v in block.state_dict().items()}
        mirrored.load_state_dict(state)
        torch.testing.assert_close(mirrored(x.flip(axis)).flip(axis), y, rtol=1e-11, atol=1e-11)


def test_a_block_with_zero_output_starts_as_its_shortcut() -> None:
    x = normal((2, 4, 5, 6), dtype=torch.float32)
    assert torch.equal(ResidualBlock(in_channels=4, zero_output=True)(x), x)
    wider = ResidualBlock(in_channels=4, out_channels=7, zero_output=True)
    assert wider.shortcut is not None
    assert torch.equal(wider(x), wider.shortcut(x))
    assert not torch.equal(ResidualBlock(in_channels=4)(x), x)


def test_a_residual_block_goes_to_an_odd_size() -> None:
    block = ResidualBlock(in_channels=4, resample="up")
    assert block(torch.zeros(2, 4, 3, 4), size=(5, 7)).shape == (2, 4, 5, 7)


def test_dropout_acts_in_training_only() -> None:
    block = randomised(ResidualBlock(in_channels=4, dropout=0.5))
    x = normal((2, 4, 5, 6), dtype=torch.float32)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_a_residual_block_wants_its_embedding_and_no_other() -> None:
    x, embedding = torch.zeros(2, 4, 5), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"embedding must be \[batch, 3\] .* got None"):
        ResidualBlock(in_channels=4, embedding_dim=3, spatial_dims=1)(x)
    with pytest.raises(ValueError, match=r"embedding must be None .* got a tensor"):
        ResidualBlock(in_channels=4, spatial_dims=1)(x, embedding)


def test_a_residual_block_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="scale_shift must be False without an embedding"):
        ResidualBlock(in_channels=4, scale_shift=True)
    with pytest.raises(ValueError, match="resample must be one of None, 'up', 'down', got 'left'"):
        ResidualBlock(in_channels=4, resample="left")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer",
    [
        ResidualBlock(in_channels=4, out_channels=6, embedding_dim=5, scale_shift=True, resample="up"),
        Downsample(channels=4, asymmetric=True, spatial_dims=3),
        Upsample(channels=4, out_channels=2),
        EmbeddingMLP(in_dim=3, out_dim=4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_is_built_again_from_its_config(layer: ResidualBlock | Downsample | Upsample | EmbeddingMLP) -> None:
    again = type(layer)(**layer.config)  # type: ignore[arg-type]
    assert again.config == layer.config
    again.load_state_dict(layer.state_dict())
