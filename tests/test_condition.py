"""Conditions: joined, chosen, moved and repeated by sample."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentdiff as ld
from conditions import assert_same, parts
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


def test_maps_of_size_one_are_repeated_where_conditions_meet() -> None:
    whole, point = ld.Condition(concat=normal((2, 3, 4, 5))), ld.Condition(concat=normal((2, 3, 1, 1), seed=1))
    expected = parts(point)["concat"].expand(2, 3, 4, 5)
    assert torch.equal(parts(point.expand((4, 5)))["concat"], expected)
    for one, other in ((whole, point), (point, whole)):
        assert parts(one.cat(other))["concat"].shape == (4, 3, 4, 5)
        assert torch.equal(
            parts(one.where(torch.tensor([False, True]), other))["concat"][0], parts(other.expand((4, 5)))["concat"][0]
        )
    assert whole.expand((4, 5)) is whole
    assert_same(ld.Condition(embedding=torch.ones(2, 3)).expand((4, 5)), ld.Condition(embedding=torch.ones(2, 3)))


def test_a_map_of_another_size_is_not_repeated() -> None:
    with pytest.raises(
        ValueError, match=r"concat must have the spatial size \[4, 5\], or 1 on each axis, got \[1, 5\]"
    ):
        ld.Condition(concat=torch.zeros(2, 3, 1, 5)).expand((4, 5))
    with pytest.raises(ValueError, match=r"concat must have the spatial size \[4\]"):
        ld.Condition(concat=torch.zeros(2, 3, 1, 1)).expand((4,))
    with pytest.raises(ValueError, match="same parts and shapes"):
        ld.Condition(concat=torch.zeros(2, 3, 1, 5)).cat(ld.Condition(concat=torch.zeros(2, 3, 4, 5)))


def test_a_network_can_be_exported_with_its_condition() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = ld.CrossAttention(query_dim=4, context_dim=5, num_heads=2, head_dim=3)

        def forward(self, x: torch.Tensor, condition: ld.Condition) -> torch.Tensor:
            y: torch.Tensor = self.attention(x, condition.context, condition.context_mask)
            return y

    network, x = Network(), normal((4, 6, 4), dtype=torch.float32)
    given, other = (condition(4, seed=seed, masked=True).to(torch.float32) for seed in (1, 2))
    exported = torch.export.export(network, (x, given)).module()
    torch.testing.assert_close(exported(x, other), network(x, other), rtol=1e-5, atol=1e-6)


def test_a_condition_goes_through_a_compiled_function_without_being_compiled_again() -> None:
    def halved(given: ld.Condition) -> ld.Condition:
        other = ld.Condition(context=given.context, context_mask=given.context_mask, concat=given.concat)
        return other.to(torch.float32)[:2].cat(other[2:])

    torch.compiler.reset()
    compiled = torch.compile(halved, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            given = condition(4, seed=seed, masked=True)
            assert_same(compiled(given), halved(given))
