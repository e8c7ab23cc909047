"""Several conditions at once: each part where it belongs, each dropped by its own chance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import latentdiff as ld
from conditions import assert_same, parts
from networks import normal


def text(dim: int = 4, dropout: float = 0.3) -> ld.TextEncoder:
    return ld.TextEncoder(
        vocabulary_size=9, dim=dim, depth=1, max_length=5, num_heads=2, head_dim=3, null_kind="learned", dropout=dropout
    )


def label(dim: int = 4, dropout: float = 0.2, routing: Any = "context") -> ld.ClassEncoder:
    return ld.ClassEncoder(num_classes=6, dim=dim, routing=routing, dropout=dropout)


IDS, LABELS = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 5])


def test_contexts_follow_each_other_with_their_masks() -> None:
    words, kind = text(), label()
    both = ld.MultiEncoder(encoders={"text": words, "label": kind})({"label": LABELS, "text": IDS})
    expected = torch.cat([parts(words(IDS))["context"], parts(kind(LABELS))["context"]], dim=1)
    assert torch.equal(parts(both)["context"], expected)
    assert parts(both)["context_mask"].tolist() == [[True] * 4, [True, True, False, True]]


def test_embeddings_are_summed_or_joined() -> None:
    one, two = label(routing="embedding"), label(routing="embedding")
    y = {"one": LABELS, "two": LABELS.flip(0)}
    found = [parts(encoder(y[name]))["embedding"] for name, encoder in (("one", one), ("two", two))]
    summed = ld.MultiEncoder(encoders={"one": one, "two": two})
    assert torch.equal(parts(summed(y))["embedding"], found[0] + found[1])
    joined = ld.MultiEncoder(encoders={"one": one, "two": label(3, routing="embedding")}, embedding="concat")
    assert parts(joined(y))["embedding"].shape == (2, 7)
    assert parts(joined.null(5))["embedding"].shape == (5, 7)
    with pytest.raises(
        ValueError, match=r"encoders must make embeddings of one size to be summed, got \[3, 4\]; or join"
    ):
        ld.MultiEncoder(encoders={"one": one, "two": label(3, routing="embedding")})(y)


def test_maps_lie_beside_each_other_and_a_missing_one_is_its_null() -> None:
    encoders = {"one": ld.SpatialEncoder(in_channels=2), "two": ld.SpatialEncoder(in_channels=3, null_kind="learned")}
    module, y = ld.MultiEncoder(encoders=encoders), {"one": normal((4, 2, 5, 6)), "two": normal((4, 3, 5, 6))}
    assert torch.equal(parts(module(y))["concat"], torch.cat([y["one"], y["two"]], dim=1))
    torch.nn.init.ones_(encoders["two"].null_point)  # type: ignore[arg-type]
    half = parts(module({**y, "two": None}))["concat"]
    assert torch.equal(half, torch.cat([y["one"], torch.ones(4, 3, 5, 6)], dim=1))
    assert parts(module.null(2))["concat"].shape == (2, 5, 1, 1)


def test_each_part_is_dropped_at_its_own_rate_and_all_at_that_of_the_whole() -> None:
    module = ld.MultiEncoder(encoders={"one": label(dropout=0.3), "two": label(dropout=0.1)}, dropout=0.2)
    y: Tensor = torch.arange(4000) % 6
    context = parts(module.for_training({"one": y, "two": y}, torch.Generator().manual_seed(1)))["context"]
    one, two = ((context[:, i] == parts(module.null(1))["context"][:, i]).all(1) for i in range(2))
    # Five standard deviations of a rate over 4000 samples are 0.04 at most.
    assert one.double().mean().item() == pytest.approx(1 - 0.8 * 0.7, abs=0.04)
    assert two.double().mean().item() == pytest.approx(1 - 0.8 * 0.9, abs=0.04)
    assert (one & two).double().mean().item() == pytest.approx(0.2 + 0.8 * 0.3 * 0.1, abs=0.04)


def test_guidance_needs_the_null_of_each_or_of_all() -> None:
    y = {"one": LABELS, "two": LABELS}
    module = ld.MultiEncoder(encoders={"one": label(dropout=0.5), "two": label(dropout=0.0)})
    module.for_training(y)
    with pytest.raises(ValueError, match="guidance must have a trained null"):
        module.require_null()
    module({**y, "two": None})
    module.require_null()
    module = ld.MultiEncoder(encoders={"one": label(dropout=0.0), "two": label(dropout=0.0)}, dropout=0.5)
    module.for_training(y)
    module.require_null()


def test_an_encoder_of_encoders_of_encoders_is_one() -> None:
    words, one, two = text(), label(), label()
    inner = ld.MultiEncoder(encoders={"one": one, "two": two})
    outer = ld.MultiEncoder(encoders={"words": words, "both": inner})
    flat = ld.MultiEncoder(encoders={"words": words, "one": one, "two": two})
    assert_same(
        outer({"words": IDS, "both": {"one": LABELS, "two": LABELS}}),
        flat({"words": IDS, "one": LABELS, "two": LABELS}),
    )


@pytest.mark.parametrize(
    ("arguments", "failure", "message"),
    [
        ({"encoders": {}}, ValueError, "encoders must not be empty"),
        ({"encoders": {"class": label()}}, ValueError, "names of encoders must be Python identifiers .* got 'class'"),
        ({"encoders": {"keys": label()}}, ValueError, "that torch does not use, got 'keys'"),
        ({"encoders": {"a.b": label()}}, ValueError, "got 'a.b'"),
        ({"encoders": {"a": torch.nn.Linear(2, 3)}}, TypeError, "condition encoders, got Linear for 'a'"),
        ({"encoders": {"a": label()}, "embedding": "mean"}, ValueError, "embedding must be one of 'sum', 'concat'"),
    ],
)
def test_a_wrong_encoder_is_refused(arguments: dict[str, Any], failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        ld.MultiEncoder(**arguments)


@pytest.mark.parametrize(
    ("y", "failure", "message"),
    [
        (LABELS, TypeError, "y must be a mapping with 'one', 'two', got Tensor"),
        ({"one": LABELS}, ValueError, "y must have 'one', 'two', got 'one'"),
        ({"one": LABELS, "two": LABELS, "three": LABELS}, ValueError, "got 'one', 'three', 'two'"),
        ({"one": None, "two": None}, ValueError, r"y must have a part that is not None; .* null\(batch\)"),
        (
            {"one": LABELS, "two": torch.tensor([1])},
            ValueError,
            "encoders must be given as many samples each, got 'one': 2, 'two': 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(y: object, failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        ld.MultiEncoder(encoders={"one": label(), "two": label()})(y)


def test_tokens_must_have_one_size() -> None:
    with pytest.raises(ValueError, match=r"encoders must make context tokens of one size, got \[3, 4\]"):
        ld.MultiEncoder(encoders={"one": label(3), "two": label(4)}).null(2)
