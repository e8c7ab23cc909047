"""Batches and learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from latentdiff.training import Batches, LearningRate
from latentdiff.training._batches import count, split


@pytest.mark.parametrize("parts", [2, 3])
def test_batches_are_split_by_sample(parts: int) -> None:
    rows = [torch.full((i,), i) for i in range(6)]  # one of its own length a sample
    batch = {"x": torch.arange(6), "words": tuple("abcdef"), "pair": (torch.ones(6, 2), None), "rows": rows, "k": 3}
    pieces = split(batch, parts)
    assert [count(piece) for piece in pieces] == [6 // parts] * parts
    assert "".join(word for piece in pieces for word in piece["words"]) == "abcdef"
    assert all(a is b for a, b in zip(rows, (row for piece in pieces for row in piece["rows"]), strict=True))
    assert all(piece["k"] == 3 for piece in pieces)
    assert torch.equal(torch.cat([piece["x"] for piece in pieces]), torch.arange(6))
    assert all(piece["pair"][1] is None for piece in pieces)
    with pytest.raises(ValueError, match="batch must be a multiple of accumulate=4, got 6 samples"):
        split(batch, 4)
    with pytest.raises(TypeError, match="a batch must be made of tensors and sequences, got int"):
        count(5)


def test_the_outermost_list_holds_parts() -> None:
    images, labels = torch.ones(2, 3), torch.arange(2)
    first, second = split([images, [labels, labels + 5, labels]], 2)  # as a data loader collates
    assert torch.equal(first[0], images[:1])
    assert [part.tolist() for part in second[1]] == [[1], [6], [1]]


def test_epochs_are_permutations() -> None:
    batches = Batches(torch.arange(23), 5, seed=3)
    assert batches.steps_per_epoch == 4
    epochs = [torch.cat([batches(4 * epoch + i) for i in range(4)]) for epoch in range(2)]
    assert all(len(set(epoch.tolist())) == 20 for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(batches(2), Batches(torch.arange(23), 5, seed=3)(2))  # whatever was asked for before
    assert not torch.equal(batches(2), Batches(torch.arange(23), 5, seed=4)(2))


def test_transforms_draw_from_the_step() -> None:
    def flipped(batch: Tensor, generator: torch.Generator) -> Tensor:
        return batch + torch.rand((), generator=generator)

    batches = Batches(torch.zeros(23), 5, transform=flipped)
    assert torch.equal(batches(3), batches(3))
    assert not torch.equal(batches(3), batches(4))


def test_bad_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data must be tensors of one length, got \[3, 4\]"):
        Batches((torch.ones(3), torch.ones(4)), 2)
    with pytest.raises(ValueError, match="data must have at least batch_size=4 samples, got 3"):
        Batches(torch.ones(3), 4)
    with pytest.raises(TypeError, match=r"data must be tensors or a data set with len and \[index\], got int"):
        Batches(5, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rate", "want"),
    [
        (LearningRate(2.0), [2.0] * 6),
        (LearningRate(2.0, warm_up=4), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]),
        (LearningRate(2.0, decay="linear", steps=4), [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
        (LearningRate(2.0, warm_up=2, decay="linear", steps=4, final=0.5), [1.0, 2.0, 2.0, 1.5, 1.0, 1.0]),
        (LearningRate(2.0, decay="cosine", steps=4), [1 + math.cos(math.pi * n / 4) for n in range(5)] + [0.0]),
        (
            LearningRate(2.0, warm_up=2, decay="inverse_sqrt"),
            [1.0, 2.0] + [2 * (2 / (n + 1)) ** 0.5 for n in range(2, 6)],
        ),
    ],
)
def test_learning_rates_are_their_closed_forms(rate: LearningRate, want: Sequence[float]) -> None:
    assert [rate.at(step) for step in range(6)] == pytest.approx(want)


def test_bad_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="peak must be positive, got 0"):
        LearningRate(0)
    with pytest.raises(ValueError, match="decay must be one of 'none', 'cosine'"):
        LearningRate(1.0, decay="step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps must be given for decay='cosine', more than warm_up=3, got 3"):
        LearningRate(1.0, warm_up=3, decay="cosine", steps=3)
    with pytest.raises(ValueError, match="steps and final must be left out for decay='none'"):
        LearningRate(1.0, steps=3)
    with pytest.raises(ValueError, match="warm_up must be at least 1 for decay='inverse_sqrt'"):
        LearningRate(1.0, decay="inverse_sqrt")
    with pytest.raises(ValueError, match=r"final must be in \[0, 1\]"):
        LearningRate(1.0, decay="linear", steps=3, final=2.0)
