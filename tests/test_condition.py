"""Conditions: joined, chosen and dropped by sample; labels encoded, and none of them mistaken for another."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from networks import normal


def condition(batch: int, length: int = 3, seed: int = 0, masked: bool = False) -> ld.Condition:
    """A condition with every part."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.5 if masked else None
    return ld.Condition(
        context=normal((batch, length, 5), seed),
        context_mask=mask,
        embedding=normal((batch, 4), seed + 1),
        concat=normal((batch, 2, 6, 7), seed + 2),
    )


def parts(condition: ld.Condition) -> dict[str, Tensor]:
    """What is there, by name."""
    named = {name: getattr(condition, name) for name in ("context", "context_mask", "embedding", "concat")}
    return {name: part for name, part in named.items() if part is not None}


def assert_same(one: ld.Condition, other: ld.Condition) -> None:
    """All parts equal, bit for bit."""
    assert parts(one).keys() == parts(other).keys()
    for name, part in parts(one).items():
        assert torch.equal(part, parts(other)[name]), name


@given(batches=st.lists(st.integers(1, 4), min_size=1, max_size=3), masked=st.booleans())
def test_joined_conditions_are_found_again_by_their_place(batches: list[int], masked: bool) -> None:
    conditions = [condition(batch, seed=10 * i, masked=masked) for i, batch in enumerate(batches)]
    joined = conditions[0].cat(*conditions[1:])
    assert len(joined) == sum(batches)
    start = 0
    for one in conditions:
        assert_same(joined[start : start + len(one)], one)
        start += len(one)


def test_contexts_of_different_lengths_are_joined_by_padding_that_is_masked() -> None:
    short, long = condition(2, length=3), condition(4, length=5, seed=7, masked=True)
    for joined, first in ((short.cat(long), 0), (long.cat(short), 4)):
        assert joined.context is not None
        assert joined.context_mask is not None
        assert joined.context.shape == (6, 5, 5)
        assert torch.equal(joined.context[first : first + 2, :3], short.context)  # type: ignore[arg-type]
        assert not joined.context[first : first + 2, 3:].any()
        assert joined.context_mask[first : first + 2].tolist() == [[True] * 3 + [False] * 2] * 2
    assert_same(short.cat(long)[2:], long)


def test_a_padded_context_attends_as_before() -> None:
    block = ld.CrossAttention(query_dim=6, context_dim=5, num_heads=2, head_dim=4).double()
    short, long = condition(2, length=3), condition(2, length=5, seed=7)
    joined, x = short.cat(long), normal((4, 3, 6))
    expected = torch.cat([block(x[:2], short.context), block(x[2:], long.context)])
    torch.testing.assert_close(block(x, joined.context, joined.context_mask), expected, rtol=1e-12, atol=1e-13)


def test_a_joined_condition_takes_the_dtype_of_the_first() -> None:
    joined = condition(2).to(torch.float32).cat(condition(1))
    assert {part.dtype for part in parts(joined).values()} == {torch.float32}


def test_conditions_of_different_parts_are_not_joined() -> None:
    with pytest.raises(
        ValueError, match=r"same parts and shapes, got Condition\(context=.*\) and Condition\(embedding="
    ):
        ld.Condition(context=torch.zeros(2, 3, 5)).cat(ld.Condition(embedding=torch.zeros(2, 5)))
    with pytest.raises(ValueError, match="same parts and shapes"):
        ld.Condition(embedding=torch.zeros(2, 5)).cat(ld.Condition(embedding=torch.zeros(2, 6)))
    with pytest.raises(TypeError, match="other must be a Condition, got Tensor"):
        ld.Condition(embedding=torch.zeros(2, 5)).cat(torch.zeros(2, 5))


@given(keep=st.lists(st.booleans(), min_size=1, max_size=5), lengths=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_where_takes_whole_samples_from_one_or_the_other(keep: list[bool], lengths: tuple[int, int]) -> None:
    batch = len(keep)
    one, other = condition(batch, lengths[0]), condition(batch, lengths[1], seed=7)
    chosen, joined = one.where(torch.tensor(keep), other), one.cat(other)
    assert_same(chosen, joined[torch.tensor([i if k else batch + i for i, k in enumerate(keep)])])


def test_where_refuses_another_batch() -> None:
    with pytest.raises(ValueError, match="other must have the same batch of 2, got 3"):
        condition(2).where(torch.tensor([True, False]), condition(3))
    with pytest.raises(ValueError, match="keep must have batch=2, got batch=1"):
        condition(2).where(torch.tensor([True]), condition(2))


def test_samples_are_taken_by_slices_and_tensors() -> None:
    whole = condition(4, masked=True)
    assert_same(whole[torch.tensor([True, False, True, False])], whole[torch.tensor([0, 2])])
    assert_same(whole[::2], whole[torch.tensor([0, 2])])
    with pytest.raises(TypeError, match=r"index must be a slice or a tensor, got 1; take one sample by \[i : i \+ 1\]"):
        whole[1]  # type: ignore[index]


def test_a_condition_moves_and_converts_its_floating_parts() -> None:
    whole = ld.Condition(
        context=torch.zeros(2, 3, 5), context_mask=torch.ones(2, 3, dtype=torch.bool), embedding=torch.tensor([1, -1])
    )
    for half in (whole.to(torch.bfloat16), whole.to(dtype=torch.bfloat16), whole.to("cpu", torch.bfloat16)):
        assert [part.dtype for part in parts(half).values()] == [torch.bfloat16, torch.bool, torch.int64]
    assert {part.device.type for part in parts(whole.to("meta")).values()} == {"meta"}
    assert {part.device.type for part in parts(whole.to(device=torch.device("meta"))).values()} == {"meta"}


def test_a_condition_shows_its_shapes_and_can_be_pickled() -> None:
    whole = condition(2)
    assert repr(whole) == "Condition(context=[2, 3, 5], embedding=[2, 4], concat=[2, 2, 6, 7])"
    assert_same(pickle.loads(pickle.dumps(whole)), whole)  # noqa: S301
    assert repr(ld.Condition()) == "Condition()"
    assert len(ld.Condition()) == 0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ld.Condition(context=torch.zeros(2, 5)), ValueError, r"context must have 3 axes .* got 2: \[2, 5\]"),
        (lambda: ld.Condition(embedding=torch.zeros(2, 3, 4)), ValueError, "embedding must have 2 axes"),
        (lambda: ld.Condition(concat=torch.zeros(2, 3)), ValueError, "concat must have at least 3 axes"),
        (
            lambda: ld.Condition(context=torch.zeros(2, 3, 5), embedding=torch.zeros(3, 4)),
            ValueError,
            r"the same batch, got Condition\(context=\[2, 3, 5\], embedding=\[3, 4\]\)",
        ),
        (lambda: ld.Condition(context_mask=torch.ones(2, 3).bool()), ValueError, "must come with the context it masks"),
        (
            lambda: ld.Condition(context=torch.zeros(2, 3, 5), context_mask=torch.ones(2, 4).bool()),
            ValueError,
            "context_mask must have length=3, got length=4",
        ),
        (
            lambda: ld.Condition(context=torch.zeros(2, 3, 5), context_mask=torch.ones(2, 3)),
            TypeError,
            r"context_mask must be bool, .* got torch.float32",
        ),
        (lambda: ld.Condition(context=[1.0]), TypeError, r"context must be a torch.Tensor, got list"),  # type: ignore[arg-type]
    ],
)
def test_a_condition_of_wrong_shape_is_refused(
    build: Callable[[], ld.Condition], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


def encoder(routing: Literal["context", "embedding"] = "context", dropout: float = 0.1) -> ld.ClassEncoder:
    return ld.ClassEncoder(num_classes=6, dim=4, routing=routing, dropout=dropout)


@pytest.mark.parametrize("routing", ["context", "embedding"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_each_class_has_a_vector_of_its_own(routing: Literal["context", "embedding"], dtype: torch.dtype) -> None:
    module = encoder(routing)
    encoded = module(torch.tensor([5, 0, 3, 0]).to(dtype))
    assert torch.equal(parts(encoded)[routing].flatten(1), module.embedding.weight[[5, 0, 3, 0]])
    assert list(parts(encoded)) == [routing]
    assert len(module(torch.arange(6)).cat(module.null(1))) == 7
    assert len(module.embedding.weight.unique(dim=0)) == 7


def test_no_label_is_the_null_and_no_class() -> None:
    module = encoder()
    assert_same(module(torch.tensor([-1, -1])), module.null(2))
    for label in range(6):
        assert not torch.equal(parts(module(torch.tensor([label])))["context"], parts(module.null(1))["context"])


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.tensor([0, 6]), ValueError, r"y must be in \[0, 5\], or -1 for none, got labels in \[0, 6\]"),
        (torch.tensor([-2, 1]), ValueError, r"got labels in \[-2, 1\]"),
        (torch.tensor([0.0, 1.0]), TypeError, r"y must hold integer labels, got torch.float32"),
        (torch.tensor([True, False]), TypeError, r"y must hold integer labels, got torch.bool"),
        (torch.tensor([[0], [1]]), ValueError, r"y must have 1 axes \[batch\], got 2: \[2, 1\]"),
        (torch.tensor(1), ValueError, "y must have 1 axes"),
        ([0, 1], TypeError, r"y must be a torch.Tensor of labels, got list"),
    ],
)
def test_wrong_labels_are_refused(y: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encoder()(y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"dim": -1}, "dim must be positive, got -1"),
        ({"routing": "both"}, "routing must be one of 'context', 'embedding', got 'both'"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_wrong_encoder_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ld.ClassEncoder(**{"num_classes": 6, "dim": 4, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("routing", ["context", "embedding"])
def test_dropping_replaces_whole_samples_at_the_rate(routing: Literal["context", "embedding"]) -> None:
    module = encoder(routing)
    y, generator = torch.arange(4000) % 6, torch.Generator().manual_seed(1)
    dropped = module.drop(module(y), 0.3, generator)
    kept = parts(module(y))[routing].flatten(1) == parts(dropped)[routing].flatten(1)
    gone = parts(module.null(4000))[routing].flatten(1) == parts(dropped)[routing].flatten(1)
    assert torch.equal(kept.all(1), ~gone.all(1))
    assert torch.equal(kept.any(1), kept.all(1))
    # The standard deviation of the rate over 4000 samples is 0.0072; five of them.
    assert gone.all(1).double().mean().item() == pytest.approx(0.3, abs=0.036)


def test_dropping_is_a_function_of_the_generator() -> None:
    module, y = encoder(), torch.arange(40) % 6
    draws = [module.drop(module(y), 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert_same(draws[0], draws[1])
    assert not torch.equal(parts(draws[0])["context"], parts(draws[2])["context"])


def test_dropping_never_and_always() -> None:
    module, y = encoder(dropout=1.0), torch.tensor([1, 2])
    encoded = module(y)
    assert module.drop(encoded, 0.0) is encoded
    assert_same(module.drop(encoded), module.null(2))
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got -0.1"):
        module.drop(encoded, -0.1)


def test_gradients_reach_the_null_where_it_was_dropped_and_the_class_where_it_was_not() -> None:
    module, y = encoder(), torch.tensor([1, 2, 3])
    dropped = module(y).where(torch.tensor([True, False, True]), module.null(3))
    parts(dropped)["context"].sum().backward()
    assert module.embedding.weight.grad is not None
    assert module.embedding.weight.grad.any(dim=1).tolist() == [False, True, False, True, False, False, True]


def test_guidance_needs_a_null_that_was_trained_and_the_state_says_whether_it_was() -> None:
    module, y = encoder(), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"guidance must have a trained null, .* train with dropout > 0"):
        module.require_null()
    module.drop(module(y), 0.0)
    module.eval()
    module.drop(module(y), 1.0)
    module(torch.tensor([-1]))
    assert not module.null_trained
    module.train()
    module.drop(module(y), 0.5)
    module.require_null()
    again = ld.ClassEncoder(**module.config)  # type: ignore[arg-type]
    again.load_state_dict(module.state_dict())
    again.require_null()
    assert_same(again.null(2), module.null(2))


def test_labels_of_none_in_training_train_the_null() -> None:
    module = encoder()
    module(torch.tensor([0, 5]))
    assert not module.null_trained
    module(torch.tensor([0, -1]))
    assert module.null_trained


def test_the_base_class_is_no_encoder() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ld.ConditionEncoder()  # type: ignore[abstract]


@pytest.mark.parametrize("routing", ["context", "embedding"])
def test_an_encoder_compiles_in_one_graph(routing: Literal["context", "embedding"]) -> None:
    module = encoder(routing).eval()

    def encode(y: Tensor, keep: Tensor) -> Tensor:
        return parts(module(y).where(keep, module.null(3)))[routing]

    y, keep = torch.tensor([1, 5, -1]), torch.tensor([True, False, True])
    assert torch.equal(torch.compile(encode, fullgraph=True, backend="eager")(y, keep), encode(y, keep))
