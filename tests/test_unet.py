"""The denoising network: parity with an independent implementation, its sizes, its conditions, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from latentdiff._attention import SpatialSelfAttention
from latentdiff._typing import SpatialDims
from latentdiff._unet import DownLevel, Stage, UpLevel
from networks import normal, randomised

PARITY = 1e-10
"""Relative and absolute: float64 sums of some thousand terms, of outputs around 1."""


def small(**arguments: Any) -> ld.UNet:
    """A network of two levels with something of everything, weights random, float64."""
    sizes: dict[str, Any] = {
        "in_channels": 3,
        "base_channels": 4,
        "channel_multipliers": (1, 2),
        "blocks_per_level": 1,
        "attention_levels": (1,),
        "num_heads": 2,
    }
    return randomised(ld.UNet(**{**sizes, **arguments})).double()


# Parity: the weights of one network, renamed, in the other.


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return pytest.importorskip("diffusers")  # type: ignore[no-any-return]


RESIDUAL = {"embedding": "time_emb_proj", "shortcut": "conv_shortcut"}
TRANSFORMER = (
    ("blocks.", "transformer_blocks."),
    ("self_attention.to_out", "attn1.to_out.0"),
    ("cross_attention.to_out", "attn2.to_out.0"),
    ("self_attention", "attn1"),
    ("cross_attention", "attn2"),
    ("feed_forward.proj_in", "ff.net.0.proj"),
    ("feed_forward.proj_out", "ff.net.2"),
)
PLAIN = {"norm": "group_norm", "to_out": "to_out.0"}
OUTSIDE = {
    "time_embedding": "time_embedding",
    "vector_embedding": "class_embedding",
    "class_embedding": "class_embedding",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def renamed(unet: ld.UNet) -> dict[str, Tensor]:
    """The state of `unet` under the names that diffusers gives it."""
    levels, state = len(unet.channel_multipliers), {}
    for key, value in unet.state_dict().items():
        outer, _, rest = key.partition(".")
        if outer in OUTSIDE:
            state[f"{OUTSIDE[outer]}.{rest.replace('linear1', 'linear_1').replace('linear2', 'linear_2')}"] = value
            continue
        level, rest = rest.split(".", 1)
        if outer == "middle":
            prefix, place = "mid_block", level
        else:
            number = int(level) if outer == "down" else levels - 1 - int(level)
            prefix = f"{outer}_blocks.{number}"
            part, rest = rest.split(".", 1)
            if part != "stages":
                inner = rest if rest.startswith("conv.") else _residual(rest)
                state[f"{prefix}.{part}rs.0.{inner}"] = value
                continue
            place, rest = rest.split(".", 1)
        kind, rest = rest.split(".", 1)
        if kind == "block":
            state[f"{prefix}.resnets.{place}.{_residual(rest)}"] = value
        else:
            state.update(_attention(f"{prefix}.attentions.{place}", rest, value, unet))
    return state


def _residual(rest: str) -> str:
    name, _, last = rest.partition(".")
    return f"{RESIDUAL.get(name, name)}.{last}"


def _attention(prefix: str, rest: str, value: Tensor, unet: ld.UNet) -> Iterator[tuple[str, Tensor]]:
    name, _, last = rest.partition(".")
    if unet.context_dim is not None:
        for ours, theirs in TRANSFORMER:
            rest = rest.replace(ours, theirs)
        yield f"{prefix}.{rest}", value
    elif name == "to_qkv":
        heads = len(value) // 3 // unet.head_dim if unet.head_dim else unet.num_heads or 1
        legacy = unet.qkv_order == "legacy"
        three = value.unflatten(0, (heads, 3, -1)).transpose(0, 1) if legacy else value.unflatten(0, (3, heads, -1))
        for letter, part in zip("qkv", three, strict=True):
            yield f"{prefix}.to_{letter}.{last}", part.flatten(0, 1)
    else:
        yield f"{prefix}.{PLAIN[name]}.{last}", value


@pytest.mark.parametrize(
    ("use_linear_projection", "embedding_dim", "num_classes"), [(False, None, None), (True, 6, None), (False, None, 5)]
)
def test_it_is_the_conditional_unet_of_diffusers(
    diffusers: ModuleType, use_linear_projection: bool, embedding_dim: int | None, num_classes: int | None
) -> None:
    unet = randomised(
        ld.UNet(
            in_channels=3,
            out_channels=5,
            base_channels=32,
            channel_multipliers=(1, 2, 3),
            attention_levels=(1, 2),
            num_heads=2,
            context_dim=7,
            transformer_depth=(1, 2, 1),
            use_linear_projection=use_linear_projection,
            embedding_dim=embedding_dim,
            num_classes=num_classes,
        )
    )
    theirs = diffusers.UNet2DConditionModel(
        in_channels=3,
        out_channels=5,
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,  # the number of heads, there
        cross_attention_dim=7,
        transformer_layers_per_block=(1, 2, 1),
        use_linear_projection=use_linear_projection,
        class_embed_type="projection" if embedding_dim else None,
        projection_class_embeddings_input_dim=embedding_dim,
        num_class_embeds=num_classes,
    )
    theirs.load_state_dict(renamed(unet))
    unet.double(), theirs.double()
    x, t, context = normal((2, 3, 9, 14)), torch.tensor([3.25, 871.0]), normal((2, 6, 7), seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]]).bool()
    embedding = normal((2, 6), seed=2) if embedding_dim else torch.tensor([4, 0]) if num_classes else None
    with torch.no_grad():
        condition = ld.Condition(context=context, context_mask=mask, embedding=embedding)
        ours = unet(x, t, condition)
        # Its mask is an addition of -10000 to the logits, whose exponential is 0 in float64 too.
        expected = theirs(x, t, context, class_labels=embedding, encoder_attention_mask=mask).sample
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, expected, rtol=PARITY, atol=PARITY)


@pytest.mark.parametrize(
    ("residual_resampling", "scale_shift_norm", "qkv_order", "heads"),
    [(False, False, "legacy", {"head_dim": 16}), (True, True, "new", {"head_dim": 32}), (True, False, "legacy", {})],
)
def test_it_is_the_unconditional_unet_of_diffusers(
    diffusers: ModuleType,
    residual_resampling: bool,
    scale_shift_norm: bool,
    qkv_order: Literal["legacy", "new"],
    heads: dict[str, Any],
) -> None:
    unet = randomised(
        ld.UNet(
            in_channels=3,
            base_channels=32,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_levels=(0, 1),
            residual_resampling=residual_resampling,
            scale_shift_norm=scale_shift_norm,
            qkv_order=qkv_order,
            **heads,
        )
    )
    theirs = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        attention_head_dim=heads.get("head_dim"),
        resnet_time_scale_shift="scale_shift" if scale_shift_norm else "default",
        downsample_type="resnet" if residual_resampling else "conv",
        upsample_type="resnet" if residual_resampling else "conv",
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        freq_shift=0,
    )
    theirs.load_state_dict(renamed(unet))
    unet.double(), theirs.double()
    x, t = normal((2, 3, 6, 10)), torch.tensor([3, 871])
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t), theirs(x, t).sample, rtol=PARITY, atol=PARITY)


CIN256 = {
    "in_channels": 4,
    "base_channels": 256,
    "channel_multipliers": (1, 2, 4),
    "attention_levels": (0, 1, 2),
    "head_dim": 32,
    "context_dim": 512,
}
CELEBA256 = {
    "in_channels": 3,
    "base_channels": 224,
    "channel_multipliers": (1, 2, 3, 4),
    "attention_levels": (1, 2, 3),
    "head_dim": 32,
}
CHURCHES256 = {
    "in_channels": 4,
    "base_channels": 192,
    "channel_multipliers": (1, 2, 2, 4, 4),
    "attention_levels": (0, 1, 2, 3),
    "num_heads": 8,
    "scale_shift_norm": True,
    "residual_resampling": True,
}
SUPER_RESOLUTION = {
    "in_channels": 3,
    "concat_channels": 3,
    "base_channels": 160,
    "channel_multipliers": (1, 2, 2, 4),
    "attention_levels": (3,),
    "head_dim": 32,
}
SYNTHESIS256 = {
    "in_channels": 3,
    "concat_channels": 3,
    "base_channels": 128,
    "channel_multipliers": (1, 4, 8),
    "num_heads": 8,
}
TEXT_1P4B = {
    "in_channels": 4,
    "base_channels": 320,
    "channel_multipliers": (1, 2, 4, 4),
    "attention_levels": (0, 1, 2),
    "num_heads": 8,
    "context_dim": 1280,
}
STABLE_DIFFUSION_1 = {**TEXT_1P4B, "context_dim": 768}
STABLE_DIFFUSION_2 = {
    **TEXT_1P4B,
    "num_heads": None,
    "head_dim": 64,
    "context_dim": 1024,
    "use_linear_projection": True,
}
STABLE_DIFFUSION_XL = {
    "in_channels": 4,
    "base_channels": 320,
    "channel_multipliers": (1, 2, 4),
    "attention_levels": (1, 2),
    "head_dim": 64,
    "context_dim": 2048,
    "transformer_depth": (0, 2, 10),
    "embedding_dim": 2816,
    "use_linear_projection": True,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        pytest.param(CIN256, 394_984_196, id="cin256"),
        pytest.param(CELEBA256, 274_056_163, id="celeba256"),
        pytest.param(CHURCHES256, 294_966_916, id="lsun_churches256"),
        pytest.param(SUPER_RESOLUTION, 113_622_563, id="bsr_sr"),
        pytest.param(SYNTHESIS256, 215_229_315, id="semantic_synthesis256"),
        pytest.param(TEXT_1P4B, 872_300_484, id="txt2img-1p4B"),
        pytest.param(STABLE_DIFFUSION_1, 859_520_964, id="stable-diffusion-1"),
        pytest.param(STABLE_DIFFUSION_2, 865_910_724, id="stable-diffusion-2"),
        pytest.param(STABLE_DIFFUSION_XL, 2_567_463_684, id="stable-diffusion-xl"),
    ],
)
def test_published_networks_have_their_number_of_parameters(config: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        unet = ld.UNet(**config)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


# Sizes, ranks, channels.


@settings(max_examples=40)
@given(
    size=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    levels=st.integers(1, 4),
    batch=st.integers(1, 3),
    residual_resampling=st.booleans(),
    context_dim=st.sampled_from([None, 5]),
)
def test_any_size_comes_back(
    size: list[int], levels: int, batch: int, residual_resampling: bool, context_dim: int | None
) -> None:
    unet = ld.UNet(
        in_channels=3,
        out_channels=2,
        base_channels=4,
        channel_multipliers=(1, 2, 1, 3)[:levels],
        blocks_per_level=1,
        residual_resampling=residual_resampling,
        context_dim=context_dim,
        spatial_dims=len(size),  # type: ignore[arg-type]
    )
    condition = None if context_dim is None else torch.zeros(batch, 7, context_dim)
    assert unet(torch.zeros(batch, 3, *size), 5, condition).shape == (batch, 2, *size)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_rank_and_number_of_channels_trains_and_is_built_again(spatial_dims: SpatialDims, channels: int) -> None:
    unet = randomised(
        ld.UNet(
            in_channels=channels,
            base_channels=2 * channels,
            channel_multipliers=(1, 2),
            blocks_per_level=(1, 2),
            attention_levels=(1,),
            spatial_dims=spatial_dims,
        )
    )
    x, t = normal((2, channels, *(3, 4, 5)[:spatial_dims]), dtype=torch.float32), torch.tensor([3, 700])
    unet(x, t).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
    again = ld.UNet(**json.loads(json.dumps(unet.config)))
    again.load_state_dict(unet.state_dict())
    assert again.config == unet.config
    assert torch.equal(again(x, t), unet(x, t))


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_an_image_that_varies_along_one_axis_is_a_signal(spatial_dims: SpatialDims) -> None:
    """Kernels that are zero off the middle of further axes make the network of fewer axes."""
    signal_unet = small(spatial_dims=1, attention_levels=())
    unet = small(spatial_dims=spatial_dims, attention_levels=())
    middle = (1,) * (spatial_dims - 1)
    state = unet.state_dict()
    for key, value in signal_unet.state_dict().items():
        if value.ndim == 3:
            state[key].zero_()
            centre = middle if value.shape[-1] == 3 else (0,) * len(middle)
            state[key][(slice(None), slice(None), *centre)] = value
        else:
            state[key] = value
    unet.load_state_dict(state)
    signal, t = normal((2, 3, 6)), torch.tensor([3, 700])
    x = signal.reshape(2, 3, *(1,) * (spatial_dims - 1), 6).expand(2, 3, *(2, 3)[: spatial_dims - 1], 6)
    expected = signal_unet(signal, t).reshape(2, 3, *(1,) * (spatial_dims - 1), 6).expand_as(x)
    torch.testing.assert_close(unet(x, t), expected, rtol=1e-9, atol=1e-10)


def test_levels_hold_what_the_arguments_say() -> None:
    unet = small(channel_multipliers=(1, 3, 2), blocks_per_level=(1, 2, 3), attention_levels=(0, 2))
    for level in range(3):
        down, up = unet.down[level], unet.up[level]
        assert isinstance(down, DownLevel)
        assert isinstance(up, UpLevel)
        assert len(down.stages) == (1, 2, 3)[level]
        assert len(up.stages) == (2, 3, 4)[level]
        assert (down.downsample is None) == (level == 2)
        assert (up.upsample is None) == (level == 0)
        for stage in (*down.stages, *up.stages):
            assert isinstance(stage, Stage)
            assert (stage.attention is not None) == (level in (0, 2))
            assert stage.block.conv2.out_channels == 4 * (1, 3, 2)[level]
    assert not any("attention" in key for key in small(attention_levels=(), middle_attention=False).state_dict())


@pytest.mark.parametrize(
    ("arguments", "heads"), [({"num_heads": 2}, 2), ({"num_heads": None, "head_dim": 4}, 2), ({"num_heads": None}, 1)]
)
def test_heads_are_given_by_number_or_size(arguments: dict[str, int | None], heads: int) -> None:
    attention = [module for module in small(**arguments).modules() if isinstance(module, SpatialSelfAttention)]
    assert {module.num_heads for module in attention} == {heads}
    assert len(attention) == 4


# Behaviour.


@pytest.mark.parametrize("arguments", [{}, {"residual_resampling": True}, {"context_dim": 5}])
def test_a_new_network_predicts_zero(arguments: dict[str, Any]) -> None:
    unet = ld.UNet(in_channels=3, base_channels=4, channel_multipliers=(1, 2), attention_levels=(0,), **arguments)
    x = torch.randn(2, 3, 5, 6)
    condition = torch.randn(2, 7, 5) if arguments.get("context_dim") else None
    assert not unet(x, torch.tensor([3, 700]), condition).any()


def test_time_may_be_a_number_a_scalar_or_one_a_sample() -> None:
    unet, x = small(), normal((2, 3, 5, 6))
    expected = unet(x, torch.tensor([7, 7]))
    for t in (7, 7.0, torch.tensor(7), torch.tensor([7.0, 7.0]), torch.tensor([7.0, 7.0], dtype=torch.float64)):
        assert torch.equal(unet(x, t), expected)
    halves = unet(x, torch.tensor([7.5, 3.0]))
    torch.testing.assert_close(halves[:1], unet(x[:1], 7.5), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(halves[1:], unet(x[1:], 3), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(unet(x, 7.5), expected)


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    unet = small(context_dim=5, embedding_dim=6, concat_channels=2)
    x, t = normal((3, 3, 5, 6)), torch.tensor([3, 500, 999])
    condition = ld.Condition(
        context=normal((3, 7, 5), 1),
        context_mask=torch.arange(7) < torch.tensor([[7], [4], [0]]),
        embedding=normal((3, 6), 2),
        concat=normal((3, 2, 5, 6), 3),
    )
    together = unet(x, t, condition)
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-11)


def test_conditions_of_different_lengths_go_through_in_one_call() -> None:
    unet, x = small(context_dim=5), normal((3, 3, 5, 6))
    one, other = ld.Condition(context=normal((1, 7, 5), 1)), ld.Condition(context=normal((2, 4, 5), 2))
    expected = torch.cat([unet(x[:1], 9, one), unet(x[1:], 9, other)])
    torch.testing.assert_close(unet(x, 9, one.cat(other)), expected, rtol=1e-10, atol=1e-11)


def test_a_tensor_is_taken_as_context() -> None:
    unet, x, context = small(context_dim=5), normal((2, 3, 5, 6)), normal((2, 7, 5), 1)
    assert torch.equal(unet(x, 9, context), unet(x, 9, ld.Condition(context=context)))
    assert not torch.allclose(unet(x, 9, context), unet(x, 9, 2 * context))


def test_concat_comes_after_the_latents() -> None:
    unet = small(concat_channels=2)
    wide = small(in_channels=5, out_channels=3)
    wide.load_state_dict(unet.state_dict())
    x, concat = normal((2, 3, 5, 6)), normal((2, 2, 5, 6), 1)
    assert torch.equal(unet(x, 9, ld.Condition(concat=concat)), wide(torch.cat([x, concat], 1), 9))


def test_a_concat_of_one_point_is_the_same_at_every_point() -> None:
    unet, x, point = small(concat_channels=2), normal((2, 3, 5, 6)), normal((2, 2, 1, 1), 1)
    expected = unet(x, 9, ld.Condition(concat=point.expand(2, 2, 5, 6)))
    assert torch.equal(unet(x, 9, ld.Condition(concat=point)), expected)


def test_labels_choose_a_row_and_none_chooses_nothing() -> None:
    unet, x = small(num_classes=4), normal((3, 3, 5, 6))
    labels = torch.tensor([2, -1, 0])
    y = unet(x, 9, ld.Condition(embedding=labels))
    without = unet(x, 9)
    torch.testing.assert_close(y[1], without[1], rtol=1e-11, atol=1e-12)
    assert not torch.allclose(y[0], without[0])
    assert not torch.allclose(y[2], without[2])
    y.sum().backward()
    assert unet.class_embedding is not None
    assert unet.class_embedding.weight.grad is not None
    assert unet.class_embedding.weight.grad.any(dim=1).tolist() == [True, False, True, False]


def test_a_label_that_nobody_can_look_at_becomes_nan_and_no_other_class() -> None:
    unet = small(num_classes=4, channel_multipliers=(1,), attention_levels=(), middle_attention=False)
    x = normal((3, 3, 5, 6))
    compiled = torch.compile(unet, fullgraph=True, backend="eager")  # where values are not looked at, as on a GPU
    y = compiled(x, 9, ld.Condition(embedding=torch.tensor([4, 1, -2])))
    assert y.isnan().flatten(1).all(1).tolist() == [True, False, True]
    torch.testing.assert_close(y[1:2], unet(x[1:2], 9, ld.Condition(embedding=torch.tensor([1]))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_times_stay_apart_in_any_precision(dtype: torch.dtype) -> None:
    unet = ld.UNet(in_channels=1, base_channels=32, channel_multipliers=(1,), middle_attention=False, spatial_dims=1)
    unet.to(dtype)
    seen: list[Tensor] = []
    unet.time_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.zeros(1000, 1, 1)
    with torch.inference_mode():
        assert unet(x, torch.arange(1000)).dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            unet(x, torch.arange(1000))
    for embedding in seen:
        assert len(embedding.unique(dim=0)) == 1000


def test_inputs_are_brought_to_the_dtype_of_the_network() -> None:
    unet = small(context_dim=5, embedding_dim=6, concat_channels=2)
    x = normal((2, 3, 5, 6), dtype=torch.float32)
    condition = ld.Condition(
        context=normal((2, 7, 5), 1), embedding=normal((2, 6), 2), concat=normal((2, 2, 5, 6), 3)
    ).to(torch.float32)
    y = unet(x, 9, condition)
    assert y.dtype == torch.float64
    assert torch.equal(y, unet(x.double(), 9, condition.to(torch.float64)))


def test_it_runs_under_autocast() -> None:
    unet, x, context = small(context_dim=5).float(), torch.randn(2, 3, 5, 6), torch.randn(2, 7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = unet(x, 9, context)
    expected = unet(x, 9, context)
    assert y.dtype == torch.bfloat16
    # Some forty layers, each with a relative error of 2^-9.
    assert (y - expected).square().mean() < 1e-3 * expected.square().mean()


def test_channels_last_in_memory_is_the_same_network() -> None:
    unet, x, context = small(context_dim=5), normal((2, 3, 6, 8)), normal((2, 7, 5), 1)
    expected = unet(x, 9, context)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    y = unet(x.to(memory_format=torch.channels_last), 9, context)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("arguments", [{"context_dim": 5}, {"residual_resampling": True, "dropout": 0.3}])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(arguments: dict[str, Any]) -> None:
    unet, x = small(**arguments), normal((2, 3, 8, 8))
    context = normal((2, 7, 5), 1) if "context_dim" in arguments else None
    outputs, gradients, kept = [], [], []
    for checkpointing in (False, True):
        unet.gradient_checkpointing = checkpointing
        unet.zero_grad()
        torch.manual_seed(3)
        count = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = unet(x, torch.tensor([3, 700]), context)
        kept.append(count)
        y.square().mean().backward()
        outputs.append(y)
        gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
    assert torch.equal(*outputs)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("gradient_checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_compiles_in_one_graph(gradient_checkpointing: bool) -> None:
    unet = small(
        context_dim=5, attention_levels=(), residual_resampling=True, gradient_checkpointing=gradient_checkpointing
    )
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    x, t = normal((2, 3, 5, 6)), torch.tensor([3, 700])
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    condition = ld.Condition(context=normal((2, 7, 5), 1), context_mask=mask)
    torch.testing.assert_close(compiled(x, t, condition), unet(x, t, condition), rtol=1e-11, atol=1e-12)


# What it refuses.

X = (2, 3, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "x", "condition", "message"),
    [
        ({}, (2, 4, 5, 6), None, "x must have channels=3, got channels=4"),
        ({}, (2, 3, 5), None, r"x must have 4 axes \[batch, channels, height, width\], got 3"),
        ({}, X, torch.zeros(2, 7, 5), r"must have no part context: .* without context_dim, got \[2, 7, 5\]"),
        ({}, X, {"embedding": torch.tensor([1, 2])}, "no part embedding: .* without embedding_dim or num_classes"),
        ({}, X, {"concat": torch.zeros(2, 1, 5, 6)}, "no part concat: .* without concat_channels"),
        ({"context_dim": 5}, X, None, "must have a part context: this UNet was built with context_dim=5"),
        ({"embedding_dim": 5}, X, None, "must have a part embedding"),
        ({"concat_channels": 1}, X, None, "must have a part concat: .* concat_channels=1"),
        ({"context_dim": 5}, X, torch.zeros(2, 7, 6), "context must have dim=5, got dim=6"),
        ({"context_dim": 5}, X, torch.zeros(3, 7, 5), "context must have batch=2, got batch=3"),
        ({"embedding_dim": 5}, X, {"embedding": torch.zeros(2, 6)}, "embedding must have dim=5, got dim=6"),
        ({"concat_channels": 1}, X, {"concat": torch.zeros(2, 1, 5, 5)}, "concat must have width=6, got width=5"),
        (
            {"num_classes": 4},
            X,
            {"embedding": torch.tensor([1, 4])},
            r"embedding must be in \[-1, 3\], got .* \[1, 4\]",
        ),
        ({"num_classes": 4}, X, {"embedding": torch.tensor([1])}, "embedding must have batch=2, got batch=1"),
        ({"num_classes": 4}, X, {"embedding": torch.zeros(2, 4)}, "embedding must have 1 axes"),
    ],
)
def test_what_does_not_fit_the_network_is_named(
    arguments: dict[str, Any], x: tuple[int, ...], condition: Tensor | dict[str, Tensor] | None, message: str
) -> None:
    given = ld.Condition(**condition) if isinstance(condition, dict) else condition
    with pytest.raises(ValueError, match=message):
        small(**arguments).float()(torch.zeros(x), 9, given)


def test_what_is_of_a_wrong_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"x must be floating, got torch.int64"):
        small()(torch.zeros(X, dtype=torch.int64), 9)
    with pytest.raises(TypeError, match="condition must be a Condition, a tensor or None, got int"):
        small()(torch.zeros(X), 9, 3)
    with pytest.raises(TypeError, match=r"embedding must hold integer labels, .* got torch.float32"):
        small(num_classes=4)(torch.zeros(X), 9, ld.Condition(embedding=torch.zeros(2)))


def test_times_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="t must have batch=2, got batch=3"):
        small()(torch.zeros(X), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"t must have 1 axes \[batch\], got 2"):
        small()(torch.zeros(X), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads times head_dim must be the 8 channels .* num_heads=3 and head_dim=None"),
        ({"num_heads": None, "head_dim": 3}, "num_heads=None and head_dim=3"),
        ({"num_heads": 2, "head_dim": 2}, "num_heads=2 and head_dim=2"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"attention_levels": (2,)}, r"attention_levels must be in \[0, 1\], got \(2,\)"),
        ({"attention_levels": (-1,)}, r"attention_levels must be in \[0, 1\], got \(-1,\)"),
        ({"channel_multipliers": ()}, r"channel_multipliers must be positive numbers, one a level, got \(\)"),
        ({"channel_multipliers": (1, 0)}, r"channel_multipliers must be positive numbers"),
        ({"blocks_per_level": 0}, "blocks_per_level must be a number from 1, or one for each of 2 levels, got 0"),
        ({"blocks_per_level": (1, 1, 1)}, r"blocks_per_level must .* 2 levels, got \(1, 1, 1\)"),
        ({"transformer_depth": (1,), "context_dim": 5}, r"transformer_depth must .* 2 levels, got \(1,\)"),
        ({"embedding_dim": 5, "num_classes": 3}, "embedding_dim and num_classes must not both be given, .* 5 and 3"),
        (
            {"context_dim": 5, "attention_levels": (), "middle_attention": False},
            "context_dim must be None without attention, got 5; name attention_levels",
        ),
        ({"base_channels": 1}, "base_channels must be 2 or more, for a sine and a cosine, got 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"concat_channels": -1}, "concat_channels must be at least 0, got -1"),
        ({"dropout": 2.0}, r"dropout must be in \[0, 1\], got 2.0"),
        ({"spatial_dims": 4}, "spatial_dims must be one of 1, 2, 3, got 4"),
        ({"qkv_order": "separate"}, "qkv_order must be one of 'legacy', 'new', got 'separate'"),
    ],
)
def test_arguments_that_make_no_network_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)
