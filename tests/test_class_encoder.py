"""Labels encoded, and none of them mistaken for another."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

import latentdiff as ld
from conditions import assert_same, parts
from latentdiff._noise import draw_uniform
from published import TOLERANCE, error, goldens, needs_zoo, weights


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
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"dim": -1}, "dim must be at least 1, got -1"),
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


@pytest.mark.parametrize("routing", ["context", "embedding"])
def test_a_null_of_zeros_takes_no_row(routing: Literal["context", "embedding"]) -> None:
    module = ld.ClassEncoder(num_classes=6, dim=4, routing=routing, null_kind="zeros")
    assert module.embedding.weight.shape == (6, 4)
    encoded = parts(module(torch.tensor([5, -1, 0])))[routing].flatten(1)
    assert torch.equal(encoded, torch.stack([module.embedding.weight[5], torch.zeros(4), module.embedding.weight[0]]))
    assert not parts(module.null(2))[routing].any()


@needs_zoo
@pytest.mark.parametrize("tag", ["unet", "ns", "lo"])
def test_it_is_the_published_class_embedder(tag: str) -> None:
    golden, module = goldens("cin256"), ld.ClassEncoder(num_classes=1000, dim=512, null_kind="zeros")
    module.embedding.load_state_dict(weights("cin256", "cond_stage_model.embedding."))
    encoded = parts(module(golden[f"{tag}/class_label"]))["context"]
    assert error(encoded, golden[f"{tag}/c_crossattn"]) <= TOLERANCE


@needs_zoo
def test_a_published_table_with_a_row_for_none_fits_as_it_is() -> None:
    module = ld.ClassEncoder(num_classes=1000, dim=512)
    published = weights("cin256-v2", "cond_stage_model.embedding.")
    module.embedding.load_state_dict(published)
    assert torch.equal(parts(module.null(1))["context"][0, 0], published["weight"][1000])


def test_who_is_dropped_says_nothing_of_the_time_drawn() -> None:
    noise, batch = ld.CounterNoise(3), 4096
    encoder = ld.ClassEncoder(num_classes=2, dim=1, dropout=0.5).train()
    with torch.no_grad():
        dropped = encoder.for_training(torch.zeros(batch, dtype=torch.int64), noise).context == encoder.null(1).context
    late = draw_uniform(batch, noise) > 0.5  # from which the loss takes its times
    agreeing = (dropped.flatten() == late).double().mean().item()
    assert abs(agreeing - 0.5) < 5 * 0.5 / batch**0.5  # five standard deviations of independent coins
