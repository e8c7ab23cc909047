from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import latentdiff as ld
from latentdiff._discriminator import Normalization
from latentdiff._typing import SpatialDims
from latentdiff.losses import discriminator_loss
from networks import normal, plainly, randomised
from zoo import assert_published, facts, golden


def test_answers_losses_gradients_and_statistics_equal_the_published_code() -> None:
    want = golden("discriminator-n3")
    tensors, prefix = want.tensors, "loss.discriminator."
    discriminator = ld.PatchDiscriminator().eval()
    discriminator.load_state_dict(want.weights(prefix))  # under the published names
    for image, answers in (("real", "real"), ("fake", "fake"), ("ns", "ns")):
        assert_published(discriminator(tensors[image]).detach(), tensors[f"eval/logits_{answers}"])
    discriminator.train()
    real, fake = discriminator(tensors["real"]), discriminator(tensors["fake"])
    assert_published(real.detach(), tensors["train/logits_real"])
    assert_published(fake.detach(), tensors["train/logits_fake"])
    hinge = discriminator_loss(real, fake, "hinge")
    assert_published(hinge.detach(), tensors["hinge_d_loss"])
    assert_published(discriminator_loss(real, fake, "vanilla").detach(), tensors["vanilla_d_loss"])
    weighted = discriminator_loss(real, fake, "hinge", tensors["exemplar_weights"])
    assert_published(weighted.detach(), tensors["hinge_exemplar"])
    hinge.backward()
    for name, parameter in discriminator.named_parameters():
        if (gradient := tensors.get(f"train/hinge_grad/{prefix}{name}")) is not None:
            assert parameter.grad is not None
            assert_published(parameter.grad, gradient)
    for name, buffer in discriminator.named_buffers():
        if (after := tensors.get(f"train/after/{prefix}{name}")) is not None:
            assert_published(buffer, after)


def test_shallower_ones_have_the_published_names_and_shapes_too() -> None:
    published = facts("discriminator-n2")["keys"]
    own = {
        f"loss.discriminator.{n}": list(t.shape) for n, t in ld.PatchDiscriminator(num_layers=2).state_dict().items()
    }
    assert own == {name: shape for name, (_, shape) in published.items()}


@pytest.mark.parametrize("normalization", get_args(Normalization))
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_rank_and_channel_count_runs_trains_saves_loads_and_compiles(
    dims: SpatialDims, channels: int, normalization: Normalization, tmp_path: Path
) -> None:
    discriminator = randomised(
        ld.PatchDiscriminator(
            in_channels=channels, base_channels=4, num_layers=1, normalization=normalization, spatial_dims=dims
        )
    )
    x = normal((2, channels, 6, 9, 12)[: 2 + dims], dtype=torch.float32).requires_grad_()
    answers = discriminator(x)
    assert answers.shape == (2, 1, 1, 2, 4)[: 2 + dims]
    answers.square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())
    discriminator.eval()
    want = discriminator(x)
    ld.save(discriminator, tmp_path / "discriminator.safetensors")
    assert torch.equal(ld.load(tmp_path / "discriminator.safetensors")(x), want)
    torch.compiler.reset()  # each is compiled once: no limit of recompilations is reached
    with plainly():
        want = discriminator(x)
    assert torch.equal(torch.compile(discriminator, backend="eager", fullgraph=True)(x), want)


@given(layers=st.integers(1, 3), more=st.lists(st.integers(0, 9), min_size=1, max_size=2), seed=st.integers(0, 2**32))
def test_an_answer_sees_its_patch_and_nothing_else(layers: int, more: list[int], seed: int) -> None:
    """The gradient of one answer in the middle spans a window of the documented size."""
    patch = {1: 16, 2: 34, 3: 70}[layers]
    dims: SpatialDims = 1 if len(more) == 1 else 2
    discriminator = ld.PatchDiscriminator(
        in_channels=2, base_channels=2, num_layers=layers, normalization="none", spatial_dims=dims
    )
    randomised(discriminator, seed)
    x = normal((1, 2, *(3 * patch + m for m in more)), seed, torch.float32).requires_grad_()
    answers = discriminator(x)
    answers[(0, 0, *(n // 2 for n in answers.shape[2:]))].backward()
    assert x.grad is not None
    for axis in range(2, x.ndim):
        seen = x.grad.abs().movedim(axis, 0).flatten(1).sum(1).nonzero()
        assert seen.max() - seen.min() + 1 == patch


@given(layers=st.integers(1, 4), more=st.integers(0, 40))
def test_the_number_of_patches_is_the_documented_one(layers: int, more: int) -> None:
    discriminator = ld.PatchDiscriminator(in_channels=1, base_channels=1, num_layers=layers, spatial_dims=1)
    size = discriminator.smallest_size + more
    assert discriminator(torch.zeros(2, 1, size)).shape == (2, 1, size // 2**layers - 2)


def test_groups_do_not_mix_the_images_of_a_batch_and_batch_norm_does() -> None:
    x = normal((3, 2, 14, 17), dtype=torch.float32)
    for normalization, alone in (("group", True), ("none", True), ("batch", False)):
        discriminator = randomised(
            ld.PatchDiscriminator(in_channels=2, base_channels=4, num_layers=2, normalization=normalization)
        )
        same = torch.allclose(discriminator(x)[:1], discriminator(x[:1]), atol=1e-5)
        assert same == alone


def test_weights_start_as_published() -> None:
    discriminator = ld.PatchDiscriminator(base_channels=32)
    for name, parameter in discriminator.named_parameters():
        if parameter.ndim == 4:
            # a standard deviation's own relative error is 1 / sqrt(2 n); five of them, n >= 1000
            assert parameter.std().item() == pytest.approx(0.02, rel=0.12), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.mean().item() == pytest.approx(1, abs=0.02), name


@given(seed=st.integers(0, 2**32))
def test_losses_are_the_formulas_in_float64(seed: int) -> None:
    real, fake = 2 * normal((3, 1, 4, 5), seed), 2 * normal((3, 1, 4, 5), seed + 1)
    hinge = (torch.clamp(1 - real, min=0).mean() + torch.clamp(1 + fake, min=0).mean()) / 2
    torch.testing.assert_close(discriminator_loss(real, fake, "hinge"), hinge)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    entropy = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), entropy / 2)
    only_second = discriminator_loss(real, fake, "vanilla", torch.tensor([0.0, 2.0, 0.0]))
    torch.testing.assert_close(only_second, discriminator_loss(real[1:2], fake[1:2], "vanilla"))


def test_an_undecided_discriminator_loses_one_or_log_two() -> None:
    answers = torch.zeros(2, 1, 3)
    assert discriminator_loss(answers, answers, "hinge").item() == 1
    assert discriminator_loss(answers, answers, "vanilla").item() == pytest.approx(math.log(2))
    assert discriminator_loss(answers.bfloat16(), answers.bfloat16()).dtype == torch.float32


x = torch.zeros(2, 3, 24, 25)
CASES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: ld.PatchDiscriminator(num_layers=0), ValueError, "num_layers must be positive, got 0"),
    (lambda: ld.PatchDiscriminator(in_channels=0), ValueError, "in_channels must be positive"),
    (lambda: ld.PatchDiscriminator(base_channels=0), ValueError, "base_channels must be positive"),
    (lambda: ld.PatchDiscriminator(normalization="layer"), ValueError, "normalization must be one of 'batch'"),  # type: ignore[arg-type]
    (lambda: ld.PatchDiscriminator(spatial_dims=4), ValueError, "spatial_dims must be one of 1, 2, 3"),  # type: ignore[arg-type]
    (
        lambda: ld.PatchDiscriminator()(x[..., 1:, :]),
        ValueError,
        r"sizes of at least 24 for num_layers=3, got \[23, 25\]",
    ),
    (lambda: ld.PatchDiscriminator()(x[:, :2]), ValueError, "x must have channels=3, got channels=2"),
    (lambda: ld.PatchDiscriminator()(x[0]), ValueError, "x must have 4 axes"),
    (lambda: ld.PatchDiscriminator()(x.int()), TypeError, "x must be floating"),
    (lambda: discriminator_loss(x, x, "best"), ValueError, "kind must be one of 'hinge', 'vanilla'"),  # type: ignore[arg-type]
    (lambda: discriminator_loss(x, x[:1]), ValueError, "fake must have batch=2, got batch=1"),
    (lambda: discriminator_loss(x, x, weights=torch.ones(3)), ValueError, "weights must have batch=2"),
]


@pytest.mark.parametrize(("call", "error", "match"), CASES)
def test_what_does_not_fit_is_refused(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
