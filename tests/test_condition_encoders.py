"""What holds for every condition encoder, whatever it encodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import latentdiff as ld
from conditions import assert_same, parts
from networks import normal, randomised


class Doubling(ld.Module):
    """A module that can be built again: two tokens of what it is given."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(3, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.to(self.linear.weight.dtype))
        return torch.stack([y, 2 * y], dim=1)


@dataclass(frozen=True)
class Case:
    """An encoder, and a batch of five that it takes."""

    build: Callable[[], ld.ConditionEncoder]
    y: object

    def encoder(self) -> ld.ConditionEncoder:
        """The encoder, none of its weights zero."""
        return randomised(self.build())


LAYOUT = {
    "boxes": normal((5, 3, 2, 2)).sigmoid().sort(2)[0].flatten(2),
    "classes": torch.arange(15).reshape(5, 3) % 7,
    "mask": torch.arange(3) <= torch.tensor([[0], [1], [2], [-1], [2]]),
}
IDS = torch.tensor([[2, 5, 3, 0], [2, 6, 7, 3], [2, 3, 0, 0], [2, 5, 3, 0], [2, 9, 3, 0]])


def text(**arguments: object) -> ld.TextEncoder:
    return ld.TextEncoder(vocabulary_size=11, dim=8, depth=2, max_length=6, num_heads=2, head_dim=3, **arguments)  # type: ignore[arg-type]


def layout(**arguments: object) -> ld.LayoutEncoder:
    return ld.LayoutEncoder(
        num_classes=7, dim=8, depth=2, max_objects=4, sections=4, num_heads=2, head_dim=3, **arguments  # type: ignore[arg-type]
    )  # fmt: skip


def low_resolution(**arguments: object) -> ld.SpatialEncoder:
    return ld.SpatialEncoder(
        in_channels=3, num_stages=1, factor=2.0, max_noise_level=0.5, embedding_dim=8, **arguments  # type: ignore[arg-type]
    )  # fmt: skip


IMAGES = normal((5, 3, 4, 6), dtype=torch.float32)
MASKED = {"image": IMAGES, "mask": (normal((5, 1, 8, 12)) > 0).float()}

CASES: dict[str, Case] = {
    "class": Case(lambda: ld.ClassEncoder(num_classes=6, dim=8), torch.tensor([1, 5, 0, 2, 2])),
    "class-zeros": Case(
        lambda: ld.ClassEncoder(num_classes=6, dim=8, routing="embedding", null_kind="zeros"),
        torch.tensor([1, 5, 0, 2, 2]),
    ),
    "text": Case(lambda: text(empty_prompt=(2, 3)), IDS),
    "text-learned": Case(lambda: text(null_kind="learned", mask_padding=False, vocabulary_head=True), IDS),
    "layout": Case(lambda: layout(encode_crop=True), LAYOUT),
    "layout-learned": Case(lambda: layout(null_kind="learned"), LAYOUT),
    "map": Case(
        lambda: ld.SpatialEncoder(in_channels=9, out_channels=2, num_stages=1), torch.arange(240).reshape(5, 6, 8) % 9
    ),
    "low-resolution": Case(low_resolution, IMAGES),
    "masked": Case(lambda: ld.SpatialEncoder(in_channels=3, has_mask=True, null_kind="learned"), MASKED),
    "frozen": Case(
        lambda: ld.FrozenEncoder(module=Doubling(dim=8), null_kind="learned", dim=8, keep_weights=True),
        normal((5, 3), dtype=torch.float32),
    ),
    "several": Case(
        lambda: ld.MultiEncoder(
            encoders={"label": ld.ClassEncoder(num_classes=6, dim=8), "layout": layout(), "low": low_resolution()},
            dropout=0.2,
        ),
        {"label": torch.tensor([1, 5, 0, 2, 2]), "layout": LAYOUT, "low": IMAGES},
    ),
}
CLASSES = (*(type(case.build()) for case in CASES.values()), Doubling)


def taken(y: object, index: slice) -> object:
    """The samples of `y` at `index`, in the form of `y`."""
    if isinstance(y, Mapping):
        return {name: taken(part, index) for name, part in y.items()}
    assert isinstance(y, Tensor)
    return y[index]


each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each
def test_its_configuration_builds_it_again(case: Case, tmp_path: Path) -> None:
    module = case.encoder()
    ld.save(module, tmp_path / "encoder.safetensors")
    again = ld.load(tmp_path / "encoder.safetensors", classes=CLASSES)
    assert isinstance(again, ld.ConditionEncoder)
    assert again.config == module.config
    assert again.state_dict().keys() == module.state_dict().keys()


@each
def test_a_file_holds_the_null_and_whether_it_was_trained(case: Case, tmp_path: Path) -> None:
    module = case.encoder()
    for trained in (False, True):
        module.null_trained.fill_(trained)
        ld.save(module, tmp_path / "encoder.safetensors")
        again = ld.load(tmp_path / "encoder.safetensors", classes=CLASSES)
        assert isinstance(again, ld.ConditionEncoder)
        assert_same(again.null(3), module.eval().null(3))
        assert_same(again(case.y), module(case.y))
        assert again.null_trained.item() is trained


@each
def test_each_sample_is_encoded_alone(case: Case) -> None:
    module = case.encoder().double()
    whole = module(case.y)
    assert len(whole) == 5
    for i in range(5):
        alone = module(taken(case.y, slice(i, i + 1)))
        for name, part in parts(alone).items():
            # Sums of products are ordered by the batch's size: float64 rounding.
            torch.testing.assert_close(part, parts(whole)[name][i : i + 1], rtol=1e-12, atol=1e-12)


@each
def test_forward_draws_nothing_in_training_either(case: Case) -> None:
    module = case.encoder().train()
    before = torch.get_rng_state()
    assert_same(module(case.y), module(case.y))
    assert torch.equal(before, torch.get_rng_state())


@each
def test_its_null_is_the_same_for_all_and_has_the_parts_of_a_condition(case: Case) -> None:
    module = case.encoder()
    null, encoded = module.null(5), module(case.y)
    joined = encoded.cat(null)
    assert len(joined) == 10
    assert parts(null).keys() - {"context_mask"} == parts(encoded).keys() - {"context_mask"}
    assert_same(null[:3], null[2:])
    for name, part in parts(encoded).items():
        if name not in ("context_mask", "embedding"):
            assert not torch.equal(parts(joined)[name][:5], parts(joined)[name][5:]), part


@each
def test_dropping_always_leaves_the_null(case: Case) -> None:
    module = case.encoder()
    encoded = module(case.y)
    dropped, null = module.drop(encoded, 1.0), module.null(5)
    network = ld.CrossAttention(query_dim=4, context_dim=8, num_heads=2, head_dim=3)
    x = normal((5, 3, 4), dtype=torch.float32)
    if null.context is not None:
        expected = network(x, null.context, null.context_mask)
        # A null padded to the length of the condition attends as the short one does, summed in another order.
        torch.testing.assert_close(network(x, dropped.context, dropped.context_mask), expected, rtol=1e-5, atol=1e-6)
    if null.embedding is not None:
        assert torch.equal(parts(dropped)["embedding"], null.embedding)
    if null.concat is not None:
        size = parts(encoded)["concat"].shape[2:]
        assert torch.equal(parts(dropped)["concat"], parts(null.expand(size))["concat"])


@each
def test_guidance_is_refused_until_a_training_step_dropped(case: Case) -> None:
    module = case.encoder()
    for encoder in module.modules():
        if isinstance(encoder, ld.ConditionEncoder):
            encoder.dropout = 0.5
    module.eval().for_training(case.y)
    with pytest.raises(ValueError, match=r"guidance must have a trained null, .* train with dropout > 0"):
        module.require_null()
    module.train().for_training(case.y)
    module.require_null()


@each
def test_a_training_step_is_a_function_of_the_generator(case: Case) -> None:
    module = case.encoder().train()
    module.dropout = 0.5
    draws = [module.for_training(case.y, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4, 5, 6)]
    assert_same(draws[0], draws[1])
    differs = [
        any(not torch.equal(part, parts(draws[0])[name]) for name, part in parts(draw).items()) for draw in draws[2:]
    ]
    assert any(differs)


@each
def test_gradients_reach_what_is_learned_and_nothing_that_is_frozen(case: Case) -> None:
    module = case.encoder().train()
    both = module(case.y).where(torch.tensor([True, True, True, False, False]), module.null(5))
    floating = [part for part in parts(both).values() if part.is_floating_point() and part.requires_grad]
    if not any(parameter.requires_grad for parameter in module.parameters()):
        assert not floating
        return
    torch.stack([(part * normal(part.shape, 1).to(part)).sum() for part in floating]).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and "to_logits" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


@each
def test_what_comes_of_weights_has_their_dtype(case: Case) -> None:
    module = case.encoder().double()
    given = {torch.float32} if isinstance(module, ld.SpatialEncoder | ld.MultiEncoder) else set()  # images, levels
    for condition in (module.null(2), module(case.y)):
        assert {part.dtype for part in parts(condition).values()} <= {torch.float64, torch.bool} | given


@pytest.mark.parametrize(
    "name",
    [
        "class",
        "map",
        "masked",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("text", "layout", "several", "frozen")),
    ],
)
def test_it_compiles_in_one_graph(name: str) -> None:
    case = CASES[name]
    module = case.encoder().eval()

    def encode(y: object, keep: Tensor) -> ld.Condition:
        condition: ld.Condition = module(y)
        return condition.where(keep, module.null(5))

    keep = torch.tensor([True, False, True, True, False])
    torch.compiler.reset()
    compiled = torch.compile(encode, fullgraph=True, backend="eager")
    assert_same(compiled(case.y, keep), encode(case.y, keep))


@pytest.mark.cuda
@each
def test_it_takes_inputs_from_the_host_on_an_accelerator(case: Case) -> None:
    here, there = case.encoder().train(), case.encoder().train().to("cuda")
    there.load_state_dict(here.state_dict())
    here.dropout = there.dropout = 0.5
    for one, other in ((here(case.y), there(case.y)), (here.null(3), there.null(3))):
        assert {part.device.type for part in parts(other).values()} == {"cuda"}
        for name, part in parts(one).items():
            # Kernels sum in another order; float32 products may be made in TF32 (10 bits).
            torch.testing.assert_close(parts(other)[name].cpu(), part, rtol=1e-2, atol=1e-2)
    drawn = there.for_training(case.y, torch.Generator().manual_seed(3))
    again = there.for_training(case.y, torch.Generator().manual_seed(3))
    assert_same(drawn, again)
