"""The transformer denoiser: its symmetries, its start, sizes, conditions, and that it serves where a UNet does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from latentdiff._dit import positions
from latentdiff._layers import timestep_embedding
from latentdiff._typing import SpatialDims
from models import small_model
from networks import normal, randomised


def small(**arguments: Any) -> ld.DiT:
    """A network of two blocks, weights random, float64."""
    sizes: dict[str, Any] = {"in_channels": 3, "dim": 12, "depth": 2, "num_heads": 2}
    return randomised(ld.DiT(**{**sizes, **arguments})).double()


@pytest.mark.parametrize("arguments", [{}, {"context_dim": 5}, {"num_classes": 4, "out_channels": 6}])
def test_a_new_network_predicts_zero_and_its_blocks_are_identities(arguments: dict[str, Any]) -> None:
    dit = ld.DiT(in_channels=3, dim=12, depth=2, num_heads=2, **arguments)
    context = torch.randn(2, 7, 5) if "context_dim" in arguments else None
    assert not dit(torch.randn(2, 3, 4, 6), torch.tensor([3, 700]), context).any()
    tokens = torch.randn(2, 5, 12)
    for block in dit.blocks:
        assert torch.equal(block(tokens, torch.randn(2, 12), context, None), tokens)


@pytest.mark.parametrize("use_positions", [False, True])
def test_without_positions_a_permutation_of_patches_is_one_of_the_output(use_positions: bool) -> None:
    dit, x = small(use_positions=use_positions), normal((2, 3, 4, 6))
    order = torch.tensor([4, 0, 5, 2, 1, 3])

    def permuted(image: Tensor) -> Tensor:
        patches = rearrange(image, "b c (h p) (w q) -> b (h w) c p q", p=2, q=2)[:, order]
        return rearrange(patches, "b (h w) c p q -> b c (h p) (w q)", h=2)

    same = torch.allclose(dit(permuted(x), 9), permuted(dit(x, 9)), rtol=1e-10, atol=1e-11)
    assert same != use_positions


def test_a_block_is_the_formula_of_adaptive_norms() -> None:
    dit, x, embedding = small(depth=1), normal((2, 5, 12)), normal((2, 12), 1)
    block: Any = dit.blocks[0]
    b1, s1, g1, b2, s2, g2 = (F.silu(embedding) @ block.modulation.weight.T + block.modulation.bias)[:, None].split(
        12, -1
    )

    def normalised(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    h = x + g1 * block.self_attention((1 + s1) * normalised(x) + b1)
    hidden = F.gelu(((1 + s2) * normalised(h) + b2) @ block.linear1.weight.T + block.linear1.bias, approximate="tanh")
    expected = h + g2 * (hidden @ block.linear2.weight.T + block.linear2.bias)
    torch.testing.assert_close(block(x, embedding, None, None), expected, rtol=1e-10, atol=1e-11)


@settings(max_examples=20)
@given(size=st.lists(st.integers(1, 7), min_size=1, max_size=3), patch_size=st.integers(1, 3))
def test_any_size_comes_back_as_if_filled_up_with_zeros(size: list[int], patch_size: int) -> None:
    dit = small(spatial_dims=len(size), patch_size=patch_size, out_channels=2, depth=1)
    x = normal((2, 3, *size))
    y = dit(x, 5)
    assert y.shape == (2, 2, *size)
    whole = [-(-n // patch_size) * patch_size for n in size]
    padding = [n for now, then in reversed(list(zip(size, whole, strict=True))) for n in (0, then - now)]
    inside = (..., *(slice(n) for n in size))
    torch.testing.assert_close(dit(F.pad(x, padding), 5)[inside], y, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_patches_go_back_to_where_they_came_from(spatial_dims: SpatialDims) -> None:
    """An output that sees only its own patch: a change of one point stays within its patch."""
    dit = small(spatial_dims=spatial_dims, use_positions=False)
    torch.nn.init.zeros_(dit.blocks[0].self_attention.to_out.weight)  # type: ignore[union-attr, arg-type]
    torch.nn.init.zeros_(dit.blocks[1].self_attention.to_out.weight)  # type: ignore[union-attr, arg-type]
    x = normal((1, 3, *(4, 6, 8)[:spatial_dims]))
    changed = x.clone()
    changed[(0, 1, *(3, 2, 5)[:spatial_dims])] += 1
    moved = (dit(changed, 9) - dit(x, 9)).abs().amax((0, 1)) > 1e-9
    patch = tuple(slice(n // 2 * 2, n // 2 * 2 + 2) for n in (3, 2, 5)[:spatial_dims])
    assert moved[patch].all()
    moved[patch] = False
    assert not moved.any()


def test_positions_are_sinusoids_of_each_axis() -> None:
    grid = positions((2, 3, 4), 17, torch.device("cpu")).reshape(2, 3, 4, 17)
    for axis, channels in enumerate((slice(0, 5), slice(5, 10), slice(10, 17))):
        line = grid.movedim(axis, 0)[:, 0, 0, channels]
        expected = timestep_embedding(torch.arange(len(line)), channels.stop - channels.start)
        assert torch.equal(line, expected)
        assert torch.equal(
            grid.movedim(axis, 0)[..., channels], line[:, None, None].expand(-1, *grid.movedim(axis, 0).shape[1:3], -1)
        )


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    dit = small(context_dim=5, embedding_dim=6, concat_channels=2)
    x, t = normal((3, 3, 5, 6)), torch.tensor([3, 500, 999])
    condition = ld.Condition(
        context=normal((3, 7, 5), 1),
        context_mask=torch.arange(7) < torch.tensor([[7], [4], [0]]),
        embedding=normal((3, 6), 2),
        concat=normal((3, 2, 5, 6), 3),
    )
    together = dit(x, t, condition)
    alone = torch.cat([dit(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("part", ["context", "embedding", "concat", "t", "label"])
def test_every_part_of_the_condition_matters(part: str) -> None:
    arguments: dict[str, Any] = {"num_classes": 4} if part == "label" else {"embedding_dim": 6}
    dit, x = small(context_dim=5, concat_channels=2, **arguments), normal((2, 3, 5, 6))
    parts = {"context": normal((2, 7, 5), 1), "embedding": normal((2, 6), 2), "concat": normal((2, 2, 5, 6), 3)}
    if part == "label":
        parts["embedding"] = torch.tensor([2, -1])
    t = 9.0
    before = dit(x, t, ld.Condition(**parts))
    if part == "t":
        t = 9.5
    elif part == "label":
        parts["embedding"] = torch.tensor([3, -1])
    else:
        parts[part] = 2 * parts[part]
    after = dit(x, t, ld.Condition(**parts))
    assert not torch.allclose(after[0], before[0])
    assert torch.equal(after[1], before[1]) == (part == "label")


def test_gradient_checkpointing_changes_nothing() -> None:
    dit, x, context = small(context_dim=5), normal((2, 3, 4, 6)), normal((2, 7, 5), 1)
    gradients = []
    for checkpointing in (False, True):
        dit.gradient_checkpointing = checkpointing
        dit.zero_grad()
        dit(x, 9, context).square().mean().backward()
        gradients.append([p.grad.clone() for p in dit.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(dit.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_it_is_a_denoising_network_like_any_other(tmp_path: Path) -> None:
    """Loss, guided sampling, saving and loading of the whole model, with the transformer in the UNet's place."""
    parts = small_model()
    dit = randomised(ld.DiT(in_channels=3, dim=16, depth=1, num_heads=2, context_dim=6))
    model = ld.LatentDiffusion(
        autoencoder=parts.autoencoder,
        unet=dit,
        schedule=parts.schedule,
        condition_encoder=parts.condition_encoder,
        prediction="v_prediction",
        image_size=(8, 12),
    )
    labels = torch.tensor([1, 4])
    model.train().loss(normal((2, 1, 8, 12), dtype=torch.float32).clamp(-1, 1), labels).backward()
    assert dit.linear_out.weight.grad is not None
    ld.save(model, tmp_path / "model.safetensors")
    again = ld.load(tmp_path / "model.safetensors")
    assert isinstance(again, ld.LatentDiffusion)
    draws = [
        each.generate(labels, guidance_scale=2.0, sampler=ld.Sampler("ddim", 3), generator=ld.CounterNoise(0))
        for each in (model, again)
    ]
    assert draws[0].shape == (2, 1, 8, 12)
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide dim=12, got num_heads=5"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"context_dim": 0}, "context_dim must be at least 1, got 0"),
        ({"concat_channels": -1}, "concat_channels must be at least 0, got -1"),
        ({"spatial_dims": 4}, "spatial_dims must be one of 1, 2, 3, got 4"),
        ({"embedding_dim": 5, "num_classes": 3}, "embedding_dim and num_classes must not both be given, .* 5 and 3"),
    ],
)
def test_arguments_that_make_no_network_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_what_does_not_fit_the_network_is_named() -> None:
    with pytest.raises(ValueError, match="x must have channels=3, got channels=2"):
        small()(torch.zeros(2, 2, 4, 6), 9)
    with pytest.raises(TypeError, match=r"x must be floating, got torch.int64"):
        small()(torch.zeros(2, 3, 4, 6, dtype=torch.int64), 9)
    with pytest.raises(ValueError, match="this DiT was built with context_dim=5, got none"):
        small(context_dim=5)(normal((2, 3, 4, 6)), 9)
