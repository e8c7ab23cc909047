from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import latentdiff as ld
from latentdiff._lpips import _normalised
from networks import normal, randomised
from zoo import assert_published, golden


@pytest.fixture(name="lpips", scope="module")
def _lpips() -> ld.LPIPS:
    """Random weights, those of the last layers positive as the published ones are."""
    module = randomised(ld.LPIPS())
    for name, weight in module.named_parameters():
        if name.startswith("lin"):
            weight.abs_()
    return module


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return normal(shape, seed, torch.float32).clamp(-1, 1)


@pytest.mark.parametrize("case", ["", "ns/"])
def test_distance_and_gradient_equal_the_published_code(case: str) -> None:
    want = golden("lpips")
    module = ld.LPIPS()
    module.load_state_dict(want.weights("loss.perceptual_loss."))
    a, b = want.tensors[f"{case}a"], want.tensors[f"{case}b"].requires_grad_()
    distance = module(a, b)
    (gradient,) = torch.autograd.grad(distance.sum(), b)
    assert_published(distance.detach(), want.tensors[f"{case}lpips"])
    assert_published(gradient, want.tensors[f"{case}grad_b"])
    assert_published(torch.stack(module._by_stage(a, b), 1).detach(), want.tensors[f"{case}per_layer"])


def test_distance_is_the_formula_in_float64(lpips: ld.LPIPS) -> None:
    """Zhang et al. 2018, eq. 1, written out with plain tensor operations."""
    module = ld.LPIPS().double()
    module.load_state_dict(lpips.state_dict())
    a, b = pictures(2, 3, 24, 17).double(), pictures(2, 3, 24, 17, seed=1).double()
    weights = dict(module.named_parameters())
    shift, scale = (torch.tensor(v).double().view(3, 1, 1) for v in ([-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]))
    x = (torch.cat([a, b]) - shift) / scale
    want: Tensor | float = 0.0
    for stage, numbers in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]):
        if stage:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        for number in numbers:
            name = f"net.slice{stage + 1}.{number}"
            x = torch.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).clamp(min=0)
        y = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        difference = (y[:2] - y[2:]).square() * weights[f"lin{stage}.model.1.weight"].view(-1, 1, 1)
        want = want + difference.sum(1).mean((1, 2))
    # the module's constants are float32 numbers
    torch.testing.assert_close(module(a, b), want, rtol=1e-6, atol=0)


def test_it_is_a_symmetric_distance(lpips: ld.LPIPS) -> None:
    a, b = pictures(2, 3, 16, 21), pictures(2, 3, 16, 21, seed=1)
    distance = lpips(a, b)
    assert distance.shape == (2,)
    assert (distance > 0).all()
    torch.testing.assert_close(lpips(b, a), distance)
    assert lpips(a, a).tolist() == [0, 0]


def test_gradient_is_finite_where_images_are_equal_and_where_features_are_dead(lpips: ld.LPIPS) -> None:
    dead = ld.LPIPS()
    dead.load_state_dict(lpips.state_dict())
    for name, bias in dead.named_parameters():
        if name.endswith("bias"):
            bias.fill_(-100.0)
    for module in (lpips, dead):
        for other in (pictures(1, 3, 16, 21), pictures(1, 3, 16, 21, seed=1)):
            x = pictures(1, 3, 16, 21).requires_grad_()
            module(x, other).sum().backward()
            assert x.grad is not None
            assert x.grad.isfinite().all()
    features = torch.zeros(1, 4, 2, 3, requires_grad=True)  # without the ReLU that stands before it in the network
    _normalised(features).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_half_precision_and_autocast_give_a_float32_distance(lpips: ld.LPIPS) -> None:
    a, b = pictures(2, 3, 16, 21), pictures(2, 3, 16, 21, seed=1)
    want = lpips(a, b)
    assert lpips(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        got = lpips(a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.05, atol=0)  # 13 layers of 8-bit mantissas


def test_one_channel_stands_for_three(lpips: ld.LPIPS) -> None:
    a, b = pictures(2, 1, 16, 21), pictures(2, 1, 16, 21, seed=1)
    torch.testing.assert_close(lpips(a, b), lpips(a.expand(2, 3, 16, 21), b.expand(2, 3, 16, 21)))


def test_weights_are_frozen_and_dropout_is_off_until_asked_for(lpips: ld.LPIPS) -> None:
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    a, b = pictures(1, 3, 16, 21), pictures(1, 3, 16, 21, seed=1)
    assert torch.equal(lpips(a, b), lpips(a, b))
    lpips.train()
    assert not torch.equal(lpips(a, b), lpips(a, b))
    lpips.eval()


def test_it_compiles_as_one_graph_and_saves_and_loads(lpips: ld.LPIPS, tmp_path: Path) -> None:
    a, b = pictures(1, 3, 16, 21), pictures(1, 3, 16, 21, seed=1)
    want = lpips(a, b)
    assert torch.equal(torch.compile(lpips, backend="eager", fullgraph=True)(a, b), want)
    ld.save(lpips, tmp_path / "lpips.safetensors")
    again = ld.load(tmp_path / "lpips.safetensors")
    assert torch.equal(again(a, b), want)


# Files


def as_torchvision(lpips: ld.LPIPS) -> dict[str, Tensor]:
    """What torchvision's VGG16 would hold."""
    state = {n.split(".", 2)[2]: t for n, t in lpips.state_dict().items() if n.startswith("net.")}
    return {f"features.{n}": t for n, t in state.items()} | {"classifier.0.weight": torch.ones(2, 3)}


def heads(lpips: ld.LPIPS) -> dict[str, Tensor]:
    return {n: t for n, t in lpips.state_dict().items() if n.startswith("lin")}


def layouts(lpips: ld.LPIPS) -> dict[str, list[Any]]:
    everything = lpips.state_dict()
    twice = {f"lins.{n.removeprefix('lin')}": t for n, t in heads(lpips).items()}
    checkpoint = {f"loss.perceptual_loss.{n}": t for n, t in everything.items()} | {"encoder.bias": torch.ones(2)}
    return {
        "two files": [as_torchvision(lpips), heads(lpips)],
        "one file of the authors": [{**everything, **twice}],
        "a checkpoint of CompVis": [{"state_dict": checkpoint, "epoch": 3}],
    }


@pytest.mark.parametrize("layout", ["two files", "one file of the authors", "a checkpoint of CompVis"])
def test_published_layouts_load(layout: str, lpips: ld.LPIPS, tmp_path: Path) -> None:
    paths = []
    for i, content in enumerate(layouts(lpips)[layout]):
        paths.append(tmp_path / f"{i}.pth")
        torch.save(content, paths[-1])
    loaded = ld.LPIPS.from_files(*paths).state_dict()
    assert loaded.keys() == lpips.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in lpips.state_dict().items())


def test_safetensors_load_too(lpips: ld.LPIPS, tmp_path: Path) -> None:
    save_file(lpips.state_dict(), tmp_path / "lpips.safetensors")
    assert torch.equal(
        ld.LPIPS.from_files(tmp_path / "lpips.safetensors").state_dict()["lin0.model.1.weight"],
        lpips.state_dict()["lin0.model.1.weight"],
    )


class Harmful:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the pickle was run",)


def test_bad_files_are_refused(lpips: ld.LPIPS, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(ld.CheckpointError, match="there is no such file"):
        ld.LPIPS.from_files(path)
    torch.save(heads(lpips), path)
    with pytest.raises(ld.CheckpointError, match=r"must hold the weights of LPIPS.*missing: net\.slice1\.0\.bias"):
        ld.LPIPS.from_files(path)
    torch.save({**lpips.state_dict(), "other": torch.ones(1), "lin0.model.1.weight": torch.ones(3)}, path)
    with pytest.raises(ld.CheckpointError, match=r"unexpected: other; misshapen: lin0\.model\.1\.weight"):
        ld.LPIPS.from_files(path)
    torch.save([1, 2], path)
    with pytest.raises(ld.CheckpointError, match="must hold a state dict, got list"):
        ld.LPIPS.from_files(path)
    torch.save({"weight": Harmful()}, path)
    with pytest.raises(ld.CheckpointError, match="damaged or truncated"):
        ld.LPIPS.from_files(path)
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ld.CheckpointError, match="damaged or truncated"):
            ld.LPIPS.from_files(tmp_path / name)


def test_bad_images_are_refused(lpips: ld.LPIPS) -> None:
    good = pictures(2, 3, 16, 21)
    with pytest.raises(ValueError, match=r"images must be in \[-1, 1\]"):
        lpips(good, good * 255)
    with pytest.raises(ValueError, match="images must be finite"):
        lpips(good, good * float("nan"))
    with pytest.warns(UserWarning, match=r"all values of images are in \[0, 1\].*2 \* x - 1"):
        lpips(good, (good.sign() + 1) / 2)
    with pytest.raises(ValueError, match=r"images must have at least 16 x 16 pixels, got \[15, 21\]"):
        lpips(good[:, :, 1:], good[:, :, 1:])
    with pytest.raises(ValueError, match="images must have channels=3"):
        lpips(good[:, :2], good[:, :2])
    with pytest.raises(ValueError, match="reconstruction must have shape"):
        lpips(good[:1], good)
    with pytest.raises(ValueError, match="reconstruction must have 4 axes"):
        lpips(good[0], good)
    with pytest.raises(TypeError, match="images must be floating"):
        lpips(good, good.int())
