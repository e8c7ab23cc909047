"""A model is set for where it is, and stays itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import latentdiff as ld
from models import small_model
from networks import normal, randomised


def test_a_cpu_needs_no_settings() -> None:
    model = small_model()
    twin, state = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    precision = torch.get_float32_matmul_precision()
    assert ld.accelerate(model, "cpu") is model
    assert torch.get_float32_matmul_precision() == precision
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    drawn = [
        one.generate(torch.tensor([1, 0]), size=8, sampler=ld.Sampler("ddim", 2), generator=ld.CounterNoise(1))
        for one in (model, twin)
    ]
    assert torch.equal(*drawn)


def test_only_the_denoising_network_is_lowered_and_samples_stay_near() -> None:
    model = randomised(small_model())
    exact = copy.deepcopy(model)
    ld.accelerate(model, "cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.unet.parameters()} == {torch.bfloat16}
    others = [model.autoencoder, model.condition_encoder]
    assert {p.dtype for part in others if part is not None for p in part.parameters()} == {torch.float32}
    x, t = normal((2, model.unet.in_channels, 4, 6), 0, torch.float32), torch.tensor([3.0, 70.0])
    y = torch.tensor([1, 0])
    rounded, expected = (one.denoiser(x, t, one.condition_encoder(y)).sample for one in (model, exact))
    assert rounded.dtype == torch.float32
    assert (rounded - expected).norm() < 0.05 * expected.norm()  # 8 bits of mantissa through some twenty layers


def test_compiling_keeps_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled.append(module))
    model = small_model()
    names = list(model.state_dict())
    ld.accelerate(model, "cpu", compile=True)
    assert compiled == [model.unet]
    assert list(model.state_dict()) == names


def test_cuda_gets_its_layout_its_precision_and_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set, seen without the device: moving there is left out."""
    precisions: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    to = nn.Module.to
    monkeypatch.setattr(
        nn.Module, "to", lambda self, *a, **k: self if a == (torch.device("cuda"),) else to(self, *a, **k)
    )
    model = ld.accelerate(small_model(), "cuda")
    assert precisions == ["high"]
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    assert model.autoencoder.last_layer.dtype == torch.float32
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    first_stage = ld.accelerate(ld.Autoencoder(base_channels=4, channel_multipliers=(1, 2)), "cuda")
    assert first_stage.last_layer.dtype == torch.float32
    kept = ld.accelerate(small_model(), "cuda", dtype=torch.float32)
    assert kept.unet.conv_in.weight.dtype == torch.float32


def test_a_dtype_without_fractions_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype must be floating, got torch\.int8"):
        ld.accelerate(nn.Linear(2, 3), "cpu", dtype=torch.int8)
