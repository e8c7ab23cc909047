"""Layouts: boxes to cells and back, missing objects without influence, the published tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentdiff as ld
from conditions import assert_same, parts
from networks import normal, randomised
from published import facts, needs_zoo


def encoder(**arguments: Any) -> ld.LayoutEncoder:
    sizes = {"num_classes": 7, "dim": 10, "depth": 2, "max_objects": 4, "sections": 5, "num_heads": 2, "head_dim": 3}
    torch.manual_seed(0)
    return randomised(ld.LayoutEncoder(**{**sizes, **arguments}))


def layout(seed: int = 0, batch: int = 2, objects: int = 3) -> dict[str, torch.Tensor]:
    classes = torch.randint(0, 7, (batch, objects), generator=torch.Generator().manual_seed(seed))
    corners = normal((batch, objects, 2, 2), seed).sigmoid().sort(dim=2).values
    return {"boxes": corners.flatten(2), "classes": classes}


def test_an_object_is_its_class_and_the_cells_of_two_corners() -> None:
    boxes = torch.tensor([[[0.0, 0.25, 0.5, 1.0], [1.0, 0.0, 1.0, 0.74]]])
    tokens = encoder().tokenize(boxes, torch.tensor([[6, 2]]))
    none = 25  # cells are 0 ... 24
    assert tokens.tolist() == [[6, 5 * 1 + 0, 5 * 4 + 2, 2, 4, 5 * 3 + 4, *[none] * 6]]


@given(seed=st.integers(0, 99), sections=st.integers(2, 40))
def test_cells_are_found_again_within_half_a_step(seed: int, sections: int) -> None:
    given_layout = layout(seed)
    tokens = encoder(sections=sections).tokenize(**given_layout)[:, :9].reshape(2, 3, 3)
    assert torch.equal(tokens[..., 0], given_layout["classes"])
    cells = tokens[..., 1:]
    corners = torch.stack([cells % sections, cells // sections], dim=-1).flatten(2) / (sections - 1)
    assert (corners - given_layout["boxes"]).abs().max() <= 0.5 / (sections - 1) + 1e-6


def test_a_crop_is_two_more_tokens_and_the_whole_image_where_it_is_left_out() -> None:
    module, given_layout = encoder(encode_crop=True), layout()
    assert module.length == 14
    tokens = module.tokenize(**given_layout)
    assert tokens[:, -2:].tolist() == [[0, 24]] * 2
    assert torch.equal(tokens[:, :-2], encoder().tokenize(**given_layout))
    crop = torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.25, 0.0, 0.5, 0.5]])
    assert module.tokenize(**given_layout, crop=crop)[:, -2:].tolist() == [[10, 24], [1, 12]]
    assert_same(module({**given_layout, "crop": crop}), module(module.tokenize(**given_layout, crop=crop)))


def test_missing_objects_change_no_bit_behind_the_cross_attention() -> None:
    module, mask = encoder(), torch.tensor([[True, True, False], [False, False, False]])
    network = ld.CrossAttention(query_dim=4, context_dim=10, num_heads=2, head_dim=3)
    x, outputs = normal((2, 3, 4), dtype=torch.float32), []
    first, second = layout(0), layout(1)
    for other in (first, second):
        mixed = {
            name: torch.where(mask if part.ndim == 2 else mask[..., None], part, other[name])
            for name, part in first.items()
        }
        encoded = module({**mixed, "mask": mask})
        assert parts(encoded)["context_mask"].sum(1).tolist() == [6, 0]
        outputs.append(network(x, encoded.context, encoded.context_mask))
    assert outputs[0].isfinite().all()
    assert torch.equal(outputs[0], outputs[1])


def test_what_is_no_object_may_have_any_class() -> None:
    given_layout = layout()
    given_layout["classes"][0, 2] = -1
    mask = torch.tensor([[True, True, False], [True, True, True]])
    encoder()({**given_layout, "mask": mask})
    with pytest.raises(ValueError, match=r"classes must be in \[0, 6\], got values in \[-1"):
        encoder()(given_layout)


def test_without_masking_missing_objects_take_part() -> None:
    given_layout = layout()
    assert encoder(mask_padding=False)(given_layout).context_mask is None


def test_the_empty_null_has_no_objects() -> None:
    module = encoder(encode_crop=True)
    assert_same(module.null(3)[2:], module(torch.tensor([[25] * 12 + [0, 24]])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"max_objects": 0}, "max_objects must be at least 1, got 0"),
        ({"sections": 1}, "sections must be at least 2, got 1"),
        ({"vocabulary_size": 25}, "vocabulary_size must be at least 26, so that none has an id, got 25"),
        ({"null_kind": "zeros"}, "null_kind must be one of 'empty', 'learned', got 'zeros'"),
    ],
)
def test_a_wrong_encoder_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(**arguments)


@pytest.mark.parametrize(
    ("change", "failure", "message"),
    [
        ({"boxes": torch.ones(2, 3, 5)}, ValueError, "boxes must have corners=4, got corners=5"),
        ({"boxes": torch.ones(2, 3, 4).long()}, TypeError, "boxes must be floating, got torch.int64"),
        ({"boxes": torch.full((2, 3, 4), 1.5)}, ValueError, r"boxes must be in \[0, 1\], got values in \[1.5, 1.5\]"),
        ({"boxes": torch.ones(2, 5, 4)}, ValueError, r"boxes must hold at most 4 objects \(max_objects\), got 5"),
        (
            {"boxes": torch.tensor([0.1, 0.4, 0.6, 0.3]).expand(2, 3, 4)},
            ValueError,
            "top of boxes must be at most bottom of boxes, got top of boxes=0.4 and bottom of boxes=0.3",
        ),
        ({"boxes": [1.0]}, TypeError, "boxes must be a torch.Tensor, got list"),
        ({"classes": torch.ones(2, 3)}, TypeError, "classes must hold integer classes, got torch.float32"),
        ({"classes": torch.ones(2, 2).long()}, ValueError, "classes must have objects=3, got objects=2"),
        ({"classes": torch.full((2, 3), 7)}, ValueError, r"classes must be in \[0, 6\], got values in \[7, 7\]"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask must be a bool tensor, True where there is an object"),
        ({"mask": torch.ones(2, 2).bool()}, ValueError, "mask must have length=3, got length=2"),
        ({"crop": torch.ones(2, 4)}, ValueError, "crop must be None for an encoder without encode_crop"),
        ({"label": torch.ones(2)}, ValueError, "y must have 'boxes', 'classes', and may have 'crop', 'mask', got"),
    ],
)
def test_what_is_no_layout_is_refused(change: dict[str, Any], failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        encoder()({**layout(), **change})


@pytest.mark.parametrize(
    ("crop", "failure", "message"),
    [
        (torch.ones(2, 4).long(), TypeError, "crop must be floating"),
        (torch.ones(3, 4), ValueError, "crop must have batch=2, got batch=3"),
        (torch.tensor([[0.5, 0.0, 0.4, 1.0]] * 2), ValueError, "left of crop must be at most right of crop, got"),
        (torch.full((2, 4), 2.0), ValueError, r"crop must be in \[0, 1\]"),
    ],
)
def test_what_is_no_crop_is_refused(crop: torch.Tensor, failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        encoder(encode_crop=True)({**layout(), "crop": crop})


def test_tokens_must_have_the_length_of_a_layout() -> None:
    with pytest.raises(ValueError, match="y must have length=12, got length=9"):
        encoder()(torch.zeros(2, 9, dtype=torch.int64))
    with pytest.raises(TypeError, match="y must be a mapping with 'boxes', 'classes', got list"):
        encoder()([1])


@needs_zoo
def test_it_has_the_size_of_the_published_model() -> None:
    published = facts("layout2img-openimages256")
    with torch.device("meta"):
        module = ld.LayoutEncoder(
            num_classes=8191, vocabulary_size=8192, dim=512, depth=16, encode_crop=True, mask_padding=False,
            vocabulary_head=True,
        )  # fmt: skip
    assert module.length == published["config"]["model"]["params"]["cond_stage_config"]["params"]["max_seq_len"]
    assert sum(p.numel() for p in module.parameters()) == published["param_counts"]["cond_stage"]
