"""Maps: labels, low-resolution images with noise, masked images with their masks."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from conditions import assert_same, parts
from networks import normal
from published import TOLERANCE, error, goldens, needs_zoo, weights

SIZES = {1: (12,), 2: (8, 12), 3: (4, 8, 12)}


def concat(condition: ld.Condition) -> Tensor:
    return parts(condition)["concat"]


def noised(**arguments: Any) -> ld.SpatialEncoder:
    return ld.SpatialEncoder(**{"in_channels": 3, "max_noise_level": 0.8, "embedding_dim": 6, **arguments})


@given(rank=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99))
def test_labels_are_one_hot_maps_of_their_classes(rank: Literal[1, 2, 3], seed: int) -> None:
    labels = torch.randint(-1, 5, (2, *SIZES[rank]), generator=torch.Generator().manual_seed(seed))
    module = ld.SpatialEncoder(in_channels=5, out_channels=3, num_stages=2, spatial_dims=rank)
    one_hot = F.one_hot(labels.clamp(min=0), 5).movedim(-1, 1) * (labels >= 0)[:, None]
    # The convolution of a tensor of other strides sums in another order.
    torch.testing.assert_close(concat(module(labels)), concat(module(one_hot.float())), rtol=1e-5, atol=1e-6)
    assert concat(module(labels)).shape == (2, 3, *(n // 4 for n in SIZES[rank]))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_two_linear_stages_are_the_mean_of_the_middle_of_each_block(rank: Literal[1, 2, 3]) -> None:
    x = normal((2, 3, *SIZES[rank]))
    expected = x
    for axis in range(2, 2 + rank):  # without antialiasing a stage averages the two points around each middle
        for _ in range(2):
            pairs = expected.unflatten(axis, (-1, 2))
            expected = pairs.mean(axis + 1)
    module = ld.SpatialEncoder(in_channels=3, num_stages=2, spatial_dims=rank)
    torch.testing.assert_close(concat(module(x)), expected, rtol=1e-12, atol=1e-13)


def test_channels_are_mapped_point_by_point() -> None:
    module = ld.SpatialEncoder(in_channels=3, out_channels=2, bias=True).double()
    assert module.to_channels is not None
    x = normal((2, 3, 4, 5))
    expected = torch.einsum("oi,bihw->bohw", module.to_channels.weight[..., 0, 0], x)
    assert module.to_channels.bias is not None
    expected = expected + module.to_channels.bias[:, None, None]
    torch.testing.assert_close(concat(module(x)), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mask_size", [(4, 5), (16, 20), (17, 23)])
def test_a_mask_goes_last_resized_by_nearest_points(mask_size: tuple[int, int]) -> None:
    module = ld.SpatialEncoder(in_channels=3, has_mask=True)
    assert module.concat_channels == 4
    image, mask = normal((2, 3, 4, 5), dtype=torch.float32), (normal((2, 1, *mask_size)) > 0)
    found = concat(module({"image": image, "mask": mask}))
    rows, columns = ([i * n // m for i in range(m)] for n, m in zip(mask_size, (4, 5), strict=True))
    assert torch.equal(found[:, :3], image)
    assert torch.equal(found[:, 3], mask[:, 0][:, rows][:, :, columns].float())
    assert_same(module({"image": image, "mask": mask.float()}), module({"image": image, "mask": mask}))


@pytest.mark.parametrize("null_kind", ["zeros", "learned"])
def test_no_map_is_one_point_for_any_size_and_everything_is_to_be_generated(
    null_kind: Literal["zeros", "learned"],
) -> None:
    module = ld.SpatialEncoder(in_channels=3, has_mask=True, null_kind=null_kind)
    if module.null_point is not None:
        module.null_point.data = torch.tensor([1.0, 2.0, 3.0])
    null = concat(module.null(2))
    assert null.shape == (2, 4, 1, 1)
    assert null[0].flatten().tolist() == [*([0, 0, 0] if null_kind == "zeros" else [1, 2, 3]), 1]


def test_level_zero_is_the_clean_image_bit_for_bit() -> None:
    module, image = noised(), normal((2, 3, 4, 5), dtype=torch.float32)
    clean = module(image)
    assert torch.equal(concat(clean), image)
    assert_same(module({"image": image, "level": 0.0, "noise": normal((2, 3, 4, 5), 1)}), clean)
    assert_same(module({"image": image, "level": torch.zeros(2)}), clean)


@given(level=st.floats(0, 1))
def test_noise_keeps_the_variance_and_the_level_is_told(level: float) -> None:
    module, image, noise = noised(), normal((2, 3, 4, 5)), normal((2, 3, 4, 5), 1)
    s = torch.tensor(level, dtype=torch.float32).double()
    found = module({"image": image, "level": level, "noise": noise})
    # sqrt(1 - s^2) is computed in float32.
    torch.testing.assert_close(concat(found), (1 - s**2).sqrt() * image + s * noise, rtol=0, atol=3e-4)
    angle = 1000.0 * s
    # Angles up to 1000 are float32 numbers, of spacing 6e-5.
    assert parts(found)["embedding"][0, 0].item() == pytest.approx(angle.cos().item(), abs=2e-4)
    assert parts(found)["embedding"][0, 3].item() == pytest.approx(angle.sin().item(), abs=2e-4)


def test_each_sample_may_have_a_level_of_its_own() -> None:
    module, image, noise = noised(), normal((2, 3, 4, 5)), normal((2, 3, 4, 5), 1)
    both = module({"image": image, "level": torch.tensor([0.2, 0.7]), "noise": noise})
    for i, level in enumerate((0.2, 0.7)):
        alone = module({"image": image[i : i + 1], "level": level, "noise": noise[i : i + 1]})
        assert_same(both[i : i + 1], alone)


def test_training_draws_levels_up_to_the_highest() -> None:
    module = noised(dropout=0.0)
    image = torch.zeros(4000, 3, 4, 5)
    condition = module.for_training(image, torch.Generator().manual_seed(1))
    levels = concat(condition).std(dim=(1, 2, 3))
    # Uniform on [0, 0.8): mean 0.4 with a standard deviation of 0.0037 over 4000 samples; the estimate of each level
    # from 60 numbers has a bias below 0.5 %.
    assert levels.mean().item() == pytest.approx(0.4, abs=0.015)
    assert levels.max() < 0.8 * 1.5
    fixed = module.for_training({"image": image, "level": 0.0}, torch.Generator().manual_seed(1))
    assert_same(fixed, module(image))


def test_a_whole_model_trains_and_draws_with_maps() -> None:
    module = noised(dropout=0.5, has_mask=True)
    model = ld.LatentDiffusion(
        autoencoder=ld.Autoencoder(
            in_channels=1, latent_channels=2, base_channels=4, channel_multipliers=(1, 2), blocks_per_level=1
        ),
        unet=ld.UNet(
            in_channels=2, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1,
            concat_channels=module.concat_channels, embedding_dim=6,
        ),
        schedule=ld.NoiseSchedule.cosine(100),
        condition_encoder=module,
        prediction="v_prediction",
        image_size=(8, 12),
    )  # fmt: skip
    y = {"image": torch.zeros(3, 3, 4, 6), "mask": torch.ones(3, 1, 8, 12)}
    images = normal((3, 1, 8, 12), dtype=torch.float32).tanh()
    with pytest.raises(ValueError, match="guidance must have a trained null"):
        model.generate(y, guidance_scale=2.0)
    losses = [model.train().loss(images, y, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    sampler = ld.Sampler("ddim", steps=2)
    for scale in (0.0, 1.0, 2.0):
        assert model.generate(y, guidance_scale=scale, sampler=sampler).shape == (3, 1, 8, 12)
    assert model.generate(batch=2, sampler=sampler).shape == (2, 1, 8, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"factor": 0.0}, "factor must be positive, got 0.0"),
        ({"num_stages": -1}, "num_stages must be at least 0, got -1"),
        ({"resize": "bilinear"}, "resize must be one of 'linear', 'nearest', 'area', 'cubic', got 'bilinear'"),
        ({"resize": "cubic", "spatial_dims": 1}, "resize must not be 'cubic', which is for images, for spatial_dims=1"),
        ({"spatial_dims": 4}, "spatial_dims must be one of 1, 2, 3, got 4"),
        ({"bias": True}, "bias must be False without out_channels, got True"),
        ({"max_noise_level": 1.5}, r"max_noise_level must be in \[0, 1\], got 1.5"),
        (
            {"max_noise_level": 0.5},
            r"embedding_dim must be given with max_noise_level > 0 and only then, got None and 0.5",
        ),
        ({"embedding_dim": 5}, "embedding_dim must be given with .* got 5 and 0.0"),
        ({"null_kind": "empty"}, "null_kind must be one of 'zeros', 'learned', got 'empty'"),
    ],
)
def test_a_wrong_encoder_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ld.SpatialEncoder(**{"in_channels": 3, **arguments})


IMAGE = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "y", "failure", "message"),
    [
        ({}, torch.zeros(2, 4, 4, 5), ValueError, "image must have in_channels=3, got in_channels=4"),
        ({}, torch.zeros(2, 3, 4), ValueError, "image must have 4 axes"),
        ({}, torch.zeros(2, 3, 4, 5).long(), ValueError, r"image must have 3 axes \[batch, height, width\], got 4"),
        ({}, torch.full((2, 4, 5), 3), ValueError, r"image must be in \[-1, 2\], got values in \[3, 3\]"),
        ({}, [1.0], TypeError, "y must be a mapping with 'image', got list"),
        ({}, {"image": [1.0]}, TypeError, "image must be a torch.Tensor, got list"),
        ({}, {"image": IMAGE, "level": 0.1}, ValueError, "y must have 'image', got 'image', 'level'"),
        ({"has_mask": True}, IMAGE, ValueError, "y must have 'image', 'mask', got 'image'"),
        ({"has_mask": True}, {"image": IMAGE, "mask": 1}, TypeError, "mask must be a torch.Tensor, got int"),
        (
            {"has_mask": True},
            {"image": IMAGE, "mask": IMAGE},
            ValueError,
            "mask must have channels=1, got channels=3",
        ),
        (
            {"has_mask": True},
            {"image": IMAGE, "mask": 2 * torch.ones(2, 1, 4, 5)},
            ValueError,
            r"mask must be in \[0, 1\], got values in \[2, 2\]",
        ),
        (
            {"has_mask": True},
            {"image": IMAGE, "mask": torch.ones(2, 1, 4, 5).long()},
            TypeError,
            "mask must be floating, got torch.int64",
        ),
        (
            {"max_noise_level": 0.5, "embedding_dim": 4},
            {"image": IMAGE, "level": 1.5},
            ValueError,
            r"level must be in \[0, 1\], got values in \[1.5, 1.5\]",
        ),
        (
            {"max_noise_level": 0.5, "embedding_dim": 4},
            {"image": IMAGE, "level": torch.zeros(3)},
            ValueError,
            "level must have batch=2, got batch=3",
        ),
        (
            {"max_noise_level": 0.5, "embedding_dim": 4},
            {"image": IMAGE, "level": 0.1, "noise": torch.zeros(2, 3)},
            ValueError,
            r"noise must have the shape of the image, \[2, 3, 4, 5\]",
        ),
    ],
)
def test_what_is_no_map_is_refused(
    arguments: dict[str, Any], y: object, failure: type[Exception], message: str
) -> None:
    with pytest.raises(failure, match=message):
        ld.SpatialEncoder(**{"in_channels": 3, **arguments})(y)


@needs_zoo
@pytest.mark.parametrize(
    ("unit", "arguments"),
    [
        ("rescaler_bilinear", {"num_stages": 2}),
        ("rescaler_odd", {"num_stages": 2}),
        ("rescaler_map", {"num_stages": 1, "in_channels": 5, "out_channels": 3}),
        ("rescaler_map_bias", {"num_stages": 1, "in_channels": 5, "out_channels": 3, "bias": True}),
        ("rescaler_bicubic", {"num_stages": 1, "resize": "cubic"}),
        ("rescaler_nearest_up", {"num_stages": 1, "resize": "nearest", "factor": 2.0}),
        ("rescaler_area", {"num_stages": 1, "resize": "area"}),
    ],
)
def test_it_is_the_published_rescaler(unit: str, arguments: dict[str, Any]) -> None:
    golden, module = goldens("blocks"), ld.SpatialEncoder(**{"in_channels": 3, **arguments})
    if module.to_channels is not None:
        module.to_channels.load_state_dict(weights("blocks", f"{unit}.channel_mapper."))
    assert error(concat(module(golden[f"{unit}/n/x"])), golden[f"{unit}/n/out"]) <= TOLERANCE


def test_a_mask_is_given_as_0_and_1_and_seen_in_the_range_of_the_network() -> None:
    encoder = ld.SpatialEncoder(in_channels=3, has_mask=True, mask_range=(-1.0, 1.0))
    mask = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).expand(2, 1, 2, 3)
    condition = encoder({"image": torch.randn(2, 3, 2, 3), "mask": mask})
    assert condition.concat is not None
    assert torch.equal(condition.concat[:, 3:], 2 * mask - 1)
    null = encoder.null(2).concat
    assert null is not None
    assert (null[:, 3] == 1).all()
    assert ld.SpatialEncoder(**encoder.config).mask_range == (-1.0, 1.0)  # type: ignore[arg-type]
