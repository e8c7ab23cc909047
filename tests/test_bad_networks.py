"""What a user can give a network or an encoder that it must not take in silence, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import latentdiff as ld

x, context = torch.zeros(2, 3, 5, 4), torch.zeros(2, 7, 6)

UNET: dict[str, Any] = {"in_channels": 3, "base_channels": 4, "channel_multipliers": (1,)}
DIT: dict[str, Any] = {"in_channels": 3, "dim": 4, "depth": 1, "num_heads": 1}
ATTENTION: dict[str, Any] = {"query_dim": 4}
TEXT: dict[str, Any] = {"vocabulary_size": 9, "dim": 4, "depth": 1}
SPATIAL: dict[str, Any] = {"in_channels": 3}


def unet(**arguments: Any) -> ld.UNet:
    return ld.UNet(**(UNET | arguments))


def dit(**arguments: Any) -> ld.DiT:
    return ld.DiT(**(DIT | arguments))


def attention(**arguments: Any) -> ld.CrossAttention:
    return ld.CrossAttention(**(ATTENTION | arguments))


def text(**arguments: Any) -> ld.TextEncoder:
    return ld.TextEncoder(**(TEXT | arguments))


def spatial(**arguments: Any) -> ld.SpatialEncoder:
    return ld.SpatialEncoder(**(SPATIAL | arguments))


def identity() -> ld.FrozenEncoder:
    return ld.FrozenEncoder(module="identity", null_kind="zeros", dim=6)


TIMES: list[tuple[object, str]] = [
    ("3", "t must be a number or a tensor, got str"),
    (None, "t must be a number or a tensor, got NoneType"),
    (True, "t must be a number or a tensor, got bool"),
    (torch.tensor([True, False]), "t must hold real numbers, got torch.bool"),
    (torch.tensor([1j, 2j]), "t must hold real numbers, got torch.complex64"),
]


@pytest.mark.parametrize("network", [unet, dit])
@pytest.mark.parametrize(("t", "message"), TIMES)
def test_times_are_numbers(network: Callable[[], nn.Module], t: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        network()(x, t)


COUNTS: list[tuple[Callable[..., object], str]] = [
    *((unet, name) for name in ("base_channels", "in_channels", "num_heads", "context_dim", "concat_channels")),
    *((dit, name) for name in ("dim", "depth", "num_heads", "patch_size", "multiplier", "concat_channels")),
    *((attention, name) for name in ("query_dim", "context_dim", "num_heads", "head_dim")),
    *((text, name) for name in ("vocabulary_size", "max_length", "dim", "depth")),
    *((spatial, name) for name in ("in_channels", "out_channels", "num_stages")),
]


@pytest.mark.parametrize(("build", "name"), COUNTS)
def test_counts_are_whole_and_not_too_small(build: Callable[..., object], name: str) -> None:
    for value in (2.0, "2", True):
        with pytest.raises(TypeError, match=f"{name} must be an int, got {value!r}"):
            build(**{name: value})
    with pytest.raises(ValueError, match=f"{name} must be at least [01], got -1"):
        build(**{name: -1})


@pytest.mark.parametrize("build", [unet, attention, text, spatial])
def test_rates_are_shares(build: Callable[..., object]) -> None:
    for value in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"dropout must be in \[0, 1\], got {value}"):
            build(dropout=value)
    for value in ("0.1", None, True):
        with pytest.raises(TypeError, match=f"dropout must be a number, got {value!r}"):
            build(dropout=value)


def test_a_context_of_size_0_is_not_a_lack_of_context() -> None:
    with pytest.raises(ValueError, match="context_dim must be at least 1, got 0"):
        attention(context_dim=0)


@pytest.mark.parametrize("name", ["bert-base-uncased", "tokenizer.json", ""])
def test_a_tokenizer_is_not_named_but_given(name: str) -> None:
    with pytest.raises(ValueError, match=f"tokenizer must be the JSON of a tokenizers.Tokenizer, .* text '{name}'"):
        text(tokenizer=name)


@pytest.mark.parametrize("mask_range", [(1.0,), (0.0, 0.5, 1.0), 3.0])
def test_a_range_has_two_ends(mask_range: Any) -> None:
    with pytest.raises(ValueError, match="mask_range must be what 0 and 1 of a mask become, two numbers, got"):
        spatial(has_mask=True, mask_range=mask_range)


@pytest.mark.parametrize(("size", "factor", "stages"), [((1, 8), 0.5, 1), ((8, 3), 0.5, 2), ((2, 2), 0.75, 2)])
def test_a_map_keeps_a_point_on_each_axis(size: tuple[int, int], factor: float, stages: int) -> None:
    encoder = spatial(num_stages=stages, factor=factor)
    with pytest.raises(ValueError, match=rf"image must keep a point .* num_stages={stages} .* got size \[{size[0]}, "):
        encoder(torch.zeros(2, 3, *size))
    assert encoder(torch.zeros(2, 3, 8, 8)).concat is not None


def test_a_level_is_a_number() -> None:
    encoder = spatial(max_noise_level=0.5, embedding_dim=4)
    for level in ("0.1", True, None):
        with pytest.raises(TypeError, match=f"level must be a number or a tensor, got {type(level).__name__}"):
            encoder({"image": x, "level": level})


@pytest.mark.parametrize("size", [(2, 7, 5), (2, 5)])
def test_what_was_encoded_beforehand_has_the_size_of_the_null(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"module must return vectors of dim=6, got \[{', '.join(map(str, size))}\]"):
        identity()(torch.zeros(size))
    assert identity()(context).context is context


@pytest.mark.parametrize("name", ["channel_multipliers", "attention_levels", "blocks_per_level", "transformer_depth"])
@pytest.mark.parametrize("value", [(1.0,), ("1",), (True,), "1", None, 1.5])
def test_what_is_said_by_level_is_whole(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be (ints, one a level|an int), got"):
        unet(**{name: value})
