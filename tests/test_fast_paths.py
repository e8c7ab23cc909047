"""What is computed in another way where that is sooner: the plain formula's numbers, gradients and manners."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import latentdiff as ld
from latentdiff import _convolution
from latentdiff._attention import FeedForward, seen_context
from latentdiff._convolution import CONVOLVE, Conv2d, as_fast_map, doubled, is_channels_last, pays_to_double
from latentdiff._fusion import geglu, is_plain, plus, silu_of
from latentdiff._gathered_norm import GatheredNorm
from latentdiff._layers import ResidualBlock, Upsample, group_norm, upsample_nearest
from latentdiff._normalization import GroupNorm
from networks import normal, randomised

# Roundings of sums of some hundred float64 terms around 1.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def gradients(y: Tensor, *of: Tensor) -> list[Tensor]:
    """Of a sum in which each value has another weight."""
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return list(torch.autograd.grad((y * weights).sum(), of))


def operations(call: Callable[[], object]) -> set[str]:
    """Names of torch's operations in a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key.removeprefix("aten::") for event in profile.key_averages()}


# Convolutions.


@given(
    batch=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 7), channels=st.integers(1, 5),
    out_channels=st.sampled_from([1, 6, 40, 300]), kernel=st.sampled_from([1, 3]), stride=st.sampled_from([1, 2]),
    bias=st.booleans(), large=st.sampled_from([0, _convolution.LARGE_WEIGHT]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_convolution_is_that_of_torch_at_any_size(
    batch: int, height: int, width: int, channels: int, out_channels: int, kernel: int, stride: int, bias: bool,
    large: int,
) -> None:  # fmt: skip
    with mock.patch.object(_convolution, "LARGE_WEIGHT", large):  # small weights may be products too
        check_convolution(batch, height, width, channels, out_channels, kernel, stride, bias)


def check_convolution(
    batch: int, height: int, width: int, channels: int, out_channels: int, kernel: int, stride: int, bias: bool
) -> None:
    layer = Conv2d(channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias).double()
    plain = nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias).double()
    plain.load_state_dict(layer.state_dict())
    x = as_fast_map(normal((batch, channels, height, width))).requires_grad_()
    expected = plain(x)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    torch.testing.assert_close(gradients(layer(x), x, *layer.parameters()), gradients(expected, x, *plain.parameters()),
                               **CLOSE)  # fmt: skip
    with torch.no_grad():
        y = layer(x)
        torch.testing.assert_close(y, expected, **CLOSE)
        if kernel > 1 or stride == 1:
            assert y.is_contiguous(memory_format=torch.channels_last)


def test_few_points_are_one_product_and_a_kernel_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    x = as_fast_map(normal((1, 3, 4, 5)))
    with torch.no_grad():
        assert "im2col" not in operations(lambda: Conv2d(3, 80, 3, padding=1).double()(x))
    monkeypatch.setattr(_convolution, "LARGE_WEIGHT", 3 * 80 * 9)
    with torch.no_grad():
        assert "im2col" in operations(lambda: Conv2d(3, 80, 3, padding=1).double()(x))
        assert "im2col" not in operations(lambda: Conv2d(3, 79, 3, padding=1).double()(x))
        assert "conv2d" not in operations(lambda: Conv2d(3, 7, 1).double()(x))
    assert "im2col" not in operations(lambda: Conv2d(3, 80, 3, padding=1).double()(x))


@pytest.mark.parametrize(
    "options",
    [
        {"padding_mode": "circular", "padding": 1}, {"groups": 3, "padding": 1}, {"dilation": 2, "padding": 2},
        {"padding": "same"}, {"padding": 0},
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_what_a_convolution_may_be_told_later_is_heard(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_convolution, "LARGE_WEIGHT", 0)
    layer, plain = (kind(3, 81, 3, **options).double() for kind in (Conv2d, nn.Conv2d))  # type: ignore[arg-type]
    plain.load_state_dict(layer.state_dict())
    x = as_fast_map(normal((1, 3, 5, 4)))
    torch.testing.assert_close(layer(x), plain(x), **CLOSE)


@given(
    dims=st.integers(1, 3), batch=st.integers(1, 2), channels=st.integers(1, 3), out_channels=st.integers(1, 4),
    sizes=st.tuples(*[st.integers(1, 5)] * 3), last=st.booleans(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_doubled_convolution_is_that_of_the_repeated_map(
    dims: int, batch: int, channels: int, out_channels: int, sizes: tuple[int, int, int], last: bool
) -> None:
    x = normal((batch, channels, *sizes[:dims]))
    x = (as_fast_map(x) if last else x).requires_grad_()
    weight = normal((out_channels, channels, *(3,) * dims), 1).requires_grad_()
    bias = normal((out_channels,), 2).requires_grad_()
    y, expected = doubled(x, weight, bias), CONVOLVE[dims](upsample_nearest(x), weight, bias, padding=1)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(gradients(y, x, weight, bias), gradients(expected, x, weight, bias), **CLOSE)


@pytest.mark.parametrize(("size", "is_doubled"), [(None, True), ((8, 10), True), ((7, 10), False), ((8, 9), False)])
@torch.no_grad()
def test_odd_sizes_and_hooks_take_the_plain_way(size: tuple[int, int] | None, is_doubled: bool) -> None:
    layer, x = randomised(Upsample(channels=2)).double(), as_fast_map(normal((1, 2, 4, 5)))
    assert layer.conv is not None
    assert pays_to_double(x, layer.conv)
    y = layer(x, size)
    assert ("upsample_nearest2d" not in operations(lambda: layer(x, size))) == is_doubled
    seen: list[Tensor] = []
    layer.conv.register_forward_hook(lambda module, given, result: seen.append(result))
    torch.testing.assert_close(layer(x, size), y, **CLOSE)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], y, **CLOSE)


# Two halves, sums and activations.


@given(batch=st.integers(1, 3), length=st.integers(1, 9), dim=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_gated_product_is_its_formula(batch: int, length: int, dim: int, seed: int) -> None:
    layer = randomised(FeedForward(dim=dim, multiplier=3), seed).double()
    x = normal((batch, length, dim), seed).requires_grad_()
    value, gate = layer.proj_in(x).chunk(2, dim=-1)
    expected = value * 0.5 * gate * (1 + torch.erf(gate / 2**0.5))
    y = geglu(x, layer.proj_in)
    torch.testing.assert_close(y, expected, **CLOSE)
    given = (x, *layer.proj_in.parameters())
    torch.testing.assert_close(gradients(y, *given), gradients(expected, *given), **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(geglu(x, layer.proj_in), expected, **CLOSE)


def test_a_gated_product_may_be_differentiated_twice() -> None:
    layer = randomised(FeedForward(dim=3, multiplier=2)).double()
    x = normal((2, 4, 3)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, *_: geglu(x, layer.proj_in), (x, *layer.proj_in.parameters()))


def test_a_gated_product_keeps_its_factors_only() -> None:
    layer, x = FeedForward(dim=3, multiplier=4).proj_in, normal((2, 5, 3)).float()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = geglu(x, layer)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    sizes = [size for place, size in kept.items() if place not in parameters | {x.data_ptr()}]
    assert sizes == [y.numel()] * 2


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_a_block_gives_the_same_with_and_without_gradients(spatial_dims: ld.SpatialDims) -> None:
    block = ResidualBlock(in_channels=6, out_channels=8, embedding_dim=4, spatial_dims=spatial_dims)
    block = randomised(block).double()
    x, embedding = normal((2, 6, *(3, 5, 4)[:spatial_dims])), normal((2, 4), 1)
    kept = x.clone(), embedding.clone()
    expected = block(x, embedding)
    with torch.no_grad():
        torch.testing.assert_close(block(x, embedding), expected, **CLOSE)
    assert torch.equal(x, kept[0])
    assert torch.equal(embedding, kept[1])


@torch.no_grad()
def test_a_result_that_somebody_watches_is_not_overwritten() -> None:
    norm, x, seen = group_norm(6, eps=1e-5).double(), normal((2, 6, 5)), list[Tensor]()
    norm.register_forward_hook(lambda module, given, result: seen.append(result))
    y = silu_of(norm, x)
    torch.testing.assert_close(F.silu(seen[0]), y, **CLOSE)
    last = nn.Linear(5, 5).double()
    last.register_forward_hook(lambda module, given, result: seen.append(result))
    h = last(x)
    z = plus(last, h, x)
    torch.testing.assert_close(seen[1] + x, z, **CLOSE)


@pytest.mark.parametrize("size", [(8, 6), (80, 64)])
@pytest.mark.parametrize("watched", ["norm1", "conv1", "norm2", "conv2"])
@pytest.mark.parametrize("dim", [4, None])
@torch.no_grad()
def test_no_result_in_a_block_that_somebody_watches_is_overwritten(
    watched: str, size: tuple[int, int], dim: int | None
) -> None:
    block = randomised(ResidualBlock(in_channels=6, out_channels=8, embedding_dim=dim))
    x, embedding = as_fast_map(normal((2, 6, *size)).float()), None if dim is None else normal((2, dim), 1).float()
    kept, expected = x.clone(), block(x, embedding)
    seen: list[tuple[Tensor, Tensor]] = []
    layer = block.get_submodule(watched)
    layer.register_forward_hook(lambda module, given, result: seen.append((result, result.clone())))
    # sums of 72 products around 1
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(x, kept)
    assert torch.equal(*seen[0])


@torch.no_grad()
def test_the_input_of_a_norm_that_does_nothing_is_not_overwritten() -> None:
    x = normal((2, 6, 5))
    kept = x.clone()
    silu_of(nn.Identity(), x)
    plus(nn.Identity(), x, x)
    assert torch.equal(x, kept)


def test_a_layer_that_somebody_changed_is_not_plain() -> None:
    def changed(change: Callable[[nn.Linear], object]) -> nn.Linear:
        linear = nn.Linear(3, 4)
        change(linear)
        return linear

    def replace_forward(linear: nn.Linear) -> None:
        linear.forward = lambda input: input  # type: ignore[method-assign]

    assert is_plain(nn.Linear(3, 4))
    assert not is_plain(changed(lambda linear: linear.register_forward_hook(lambda *_: None)))
    assert not is_plain(changed(lambda linear: linear.register_forward_pre_hook(lambda *_: None)))
    assert not is_plain(changed(lambda linear: linear.register_full_backward_hook(lambda *_: None)))
    assert not is_plain(changed(replace_forward))
    assert not is_plain(changed(lambda linear: nn.utils.parametrizations.weight_norm(linear)))
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not is_plain(nn.Linear(3, 4))
    handle.remove()
    assert is_plain(nn.Linear(3, 4))


# The context.


@given(length=st.integers(1, 40), masked=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_tokens_that_fill_a_context_are_not_seen(length: int, masked: bool, seed: int) -> None:
    layer = randomised(ld.CrossAttention(query_dim=6, context_dim=5, num_heads=2, head_dim=4), seed).double()
    x, context = normal((3, 7, 6), seed), normal((3, length, 5), seed + 1).requires_grad_()
    mask = torch.rand(3, length, generator=torch.Generator().manual_seed(seed)) < 0.5 if masked else None
    if mask is not None:
        mask[0] = False  # all of a sample's tokens
    expected = layer(x, context, mask)
    filled, seen = seen_context(context, mask)
    assert filled.shape[1] % 16 == 0
    y = layer(x, filled, seen)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(gradients(y, context), gradients(expected, context), **CLOSE)


# Whole networks.


def unet() -> ld.UNet:
    network = ld.UNet(
        in_channels=3, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, attention_levels=(0, 1),
        num_heads=2, context_dim=5,
    )  # fmt: skip
    return randomised(network).double().eval()


def plain_unet(network: ld.UNet) -> ld.UNet:
    """The same where nothing is plain, so that all takes its plain way: each module has a hook that does nothing."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        module.register_forward_hook(lambda *_: None)
    return twin


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (16, 2)])
def test_a_network_gives_the_same_with_hooks_everywhere_and_with_gradients(size: tuple[int, int]) -> None:
    network = unet()
    x, t, context = normal((2, 3, *size)), torch.tensor([3.0, 70.0]), normal((2, 9, 5), 1)
    expected = plain_unet(network)(x, t, context)
    y = network(x, t, context)
    torch.testing.assert_close(y, expected, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, context), expected, **CLOSE)
    twin = plain_unet(network)
    theirs = gradients(twin(x, t, context), *twin.parameters())
    torch.testing.assert_close(gradients(y, *network.parameters()), theirs, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_weights_may_change_between_calls_in_any_way() -> None:
    network, other = unet(), randomised(unet(), 1)
    given = normal((2, 3, 8, 8)), torch.tensor([3.0, 70.0]), normal((2, 9, 5), 1)
    state = copy.deepcopy(network.state_dict())
    before, expected = network(*given), other(*given)
    assert not torch.allclose(before, expected)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        mine.data.copy_(theirs)  # unseen by version counters
    assert torch.equal(network(*given), expected)
    network.load_state_dict(state)
    assert torch.equal(network(*given), before)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention has no rule of its own
@torch.no_grad()
def test_a_network_may_be_mapped_over_its_times_and_differentiated_by_them() -> None:
    network, x, context = unet(), normal((2, 3, 4, 6)), normal((2, 9, 5), 1)
    times = torch.tensor([[3.0, 70.0], [5.0, 9.0]], dtype=torch.float64)
    mapped = torch.vmap(lambda t: network(x, t, context))(times)
    torch.testing.assert_close(mapped, torch.stack([network(x, t, context) for t in times]), **CLOSE)
    slope = torch.func.grad(lambda x: network(x, times[0], context).sum())(x)
    step = 1e-5 * normal(x.shape, 2)
    difference = network(x + step, times[0], context).sum() - network(x - step, times[0], context).sum()
    torch.testing.assert_close(2 * (slope * step).sum(), difference, rtol=1e-6, atol=1e-12)


@torch.no_grad()
def test_no_layout_is_copied_on_the_way_through_full_levels() -> None:
    """Where maps are large, from the first convolution to the last: every map is channels-last."""
    network, formats = unet(), list[bool]()
    for module in network.modules():
        if isinstance(module, Conv2d | nn.GroupNorm):
            module.register_forward_pre_hook(
                lambda module, given: formats.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    network(normal((2, 3, 12, 10)), 3, normal((2, 9, 5), 1))
    assert len(formats) > 20
    assert all(formats)


@torch.no_grad()
def test_a_first_stage_gives_the_same_with_hooks_everywhere() -> None:
    autoencoder = randomised(
        ld.Autoencoder(base_channels=8, channel_multipliers=(1, 2, 2), blocks_per_level=1)
    ).double()
    twin = copy.deepcopy(autoencoder)
    for module in twin.modules():
        module.register_forward_hook(lambda *_: None)
    x = normal((1, 3, 16, 24)).clamp(-1, 1)
    z = autoencoder.encode(x).mode()
    torch.testing.assert_close(z, twin.encode(x).mode(), **CLOSE)
    torch.testing.assert_close(autoencoder.decode(z), twin.decode(z), **CLOSE)


@pytest.mark.parametrize("mean", [0.0, 2.0, 5.0, 300.0])
@pytest.mark.parametrize("size", [(5, 7), (32, 35), (67, 64), (256, 300)])
@pytest.mark.parametrize("train", [False, True])
def test_a_channels_last_norm_is_as_precise_as_another(mean: float, size: tuple[int, int], train: bool) -> None:
    norm = normal_weights(GroupNorm(2, 6, eps=1e-6))
    x = mean + torch.randn(3, 6, *size) * torch.linspace(0.5, 1.5, size[0])[:, None]
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(train)
    exact = x.detach().double().requires_grad_(train)
    with torch.set_grad_enabled(train):
        y, expected = norm(x), F.group_norm(exact, 2, norm.weight.double(), norm.bias.double(), eps=1e-6)
    # a few ulps, and of the mean, which is subtracted in float32; torch's kernel is off by 1e-3 and more
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=4e-5 + 1e-6 * mean)
    assert is_channels_last(y)
    if train:
        for of, at in ((y, x), (expected, exact)):
            of.pow(3).mean().backward()
            assert at.grad is not None
        assert (x.grad.double() - exact.grad).abs().max() < 1e-3 * exact.grad.abs().max()


@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize("size", [(5, 7), (67, 64), (80, 100)])
@pytest.mark.parametrize("is_free", [False, True])
@torch.no_grad()
def test_the_silu_of_a_norm_takes_the_memory_it_is_given_and_no_other(
    mean: float, size: tuple[int, int], is_free: bool
) -> None:
    norm = normal_weights(GroupNorm(2, 6, eps=1e-6))
    x = as_fast_map(mean + torch.randn(3, 6, *size) * torch.linspace(0.5, 1.5, size[0])[:, None])
    kept = x.clone()
    y = silu_of(norm, x, is_free=is_free)
    expected = F.silu(F.group_norm(kept.double(), 2, norm.weight.double(), norm.bias.double(), eps=1e-6))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=4e-5 + 1e-6 * mean)  # as above
    assert torch.equal(x, y if y.data_ptr() == x.data_ptr() else kept)
    assert (y.data_ptr() == x.data_ptr()) == (is_free and mean == 0.0 and size != (5, 7))


def normal_weights(norm: nn.GroupNorm) -> nn.GroupNorm:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_a_batch_of_one_with_another_stride_is_normalised() -> None:
    x = torch.randn(6, 5, 7).as_strided((1, 6, 5, 7), (6, 1, 42, 6))  # channels last but for the stride of the batch
    torch.testing.assert_close(GroupNorm(2, 6)(x), F.group_norm(x.clone().contiguous(), 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 5.0, 300.0])
@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_the_statistics_of_bands_are_those_of_the_map(mean: float, last: bool) -> None:
    norm = normal_weights(GroupNorm(2, 6, eps=1e-6))
    x = mean + torch.randn(1, 6, 67, 80) * torch.linspace(0.5, 1.5, 67)[:, None]
    gathered = GatheredNorm(norm)
    for band in (as_fast_map(x) if last else x).split((30, 7, 30), 2):
        gathered.gather(band)
    gathered.is_gathered = True
    expected = F.group_norm(x.double(), 2, norm.weight.double(), norm.bias.double(), eps=1e-6)
    bounds = {"rtol": 1e-5, "atol": 4e-5 + 1e-6 * mean}  # as of the whole
    torch.testing.assert_close(gathered(x).double(), expected, **bounds)
    torch.testing.assert_close(silu_of(gathered, as_fast_map(x)).double(), F.silu(expected), **bounds)
