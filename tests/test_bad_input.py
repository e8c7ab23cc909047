"""What a user can get wrong, and what is said about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import latentdiff as ld
from models import small_model

labels = torch.tensor([0, 1])
pictures = torch.zeros(2, 1, 4, 6)
noise = torch.randn(2, 3, 2, 3)


def context_unet() -> ld.UNet:
    return ld.UNet(in_channels=3, base_channels=4, channel_multipliers=(1,), attention_levels=(0,), context_dim=6)


CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "images: rank": (lambda: small_model().loss(pictures[0], labels), ValueError, r"must have 4 axes .*got 3"),
    "images: channels": (
        lambda: small_model().loss(pictures.expand(2, 3, 4, 6), labels),
        ValueError,
        "must have channels=1, got channels=3",
    ),
    "images: integers": (
        lambda: small_model().loss(pictures.int(), labels),
        TypeError,
        "must be floating, got torch.int32",
    ),
    "images: range": (
        lambda: small_model().loss(pictures + 255, labels),
        ValueError,
        r"must be in \[-1, 1\], got values",
    ),
    "images: NaN": (lambda: small_model().loss(pictures * math.nan, labels), ValueError, "must be finite, got NaN"),
    "images: empty": (lambda: small_model().loss(pictures[:0], labels[:0]), ValueError, "must not be empty"),
    "images: size": (lambda: small_model().loss(torch.zeros(2, 1, 4, 5), labels), ValueError, r"divisible by 2.*6"),
    "labels: range": (
        lambda: small_model().loss(pictures, labels + 4),
        ValueError,
        r"y must be in \[0, 4\], or -1 for none, got",
    ),
    "labels: negative": (lambda: small_model().generate(labels - 2, size=4), ValueError, r"y must be in \[0, 4\]"),
    "labels: floating": (lambda: small_model().loss(pictures, labels.float()), TypeError, "y must hold integer labels"),
    "labels: rank": (lambda: small_model().loss(pictures, labels[:, None]), ValueError, r"y must have 1 axes"),
    "labels: list": (lambda: small_model().loss(pictures, [0, 1]), TypeError, "y must be a torch.Tensor of labels"),
    "labels: batch": (
        lambda: small_model().loss(pictures, labels[:1]),
        ValueError,
        "y must have the 2 samples of images",
    ),
    "labels: missing": (lambda: small_model().loss(pictures), ValueError, "y must be given to a model with"),
    "labels: no use": (
        lambda: small_model(classes=None).loss(pictures, labels),
        ValueError,
        "y must be None for a model without condition_encoder",
    ),
    "generate: no use for labels": (
        lambda: small_model(classes=None).generate(labels, size=4),
        ValueError,
        "y must be None for a model without condition_encoder",
    ),
    "generate: guidance": (
        lambda: small_model(classes=None).generate(batch=1, size=4, guidance_scale=2.0),
        ValueError,
        "guidance_scale must be 1 for a model without condition_encoder",
    ),
    "generate: size": (
        lambda: small_model().generate(labels, size=5),
        ValueError,
        "size must be 2 positive multiples of 2",
    ),
    "generate: no size": (lambda: small_model().generate(labels), ValueError, "size must be given"),
    "generate: no batch": (lambda: small_model(classes=None).generate(size=4), ValueError, "batch must be given"),
    "latents: channels": (
        lambda: small_model().decode(noise[:, :2]),
        ValueError,
        "must have channels=3, got channels=2",
    ),
    "latents: NaN": (lambda: small_model().decode(noise * math.nan), ValueError, "must be finite"),
    "noise: integers": (
        lambda: ld.Sampler("ddim").sample(small_model(classes=None).denoiser, noise.int()),
        TypeError,
        "noise must be floating",
    ),
    "noise: empty": (
        lambda: ld.Sampler("ddim").sample(small_model(classes=None).denoiser, noise[:0]),
        ValueError,
        "noise must not be empty",
    ),
    "unet: rank": (lambda: context_unet()(noise[0], 1.0, noise[:, 0]), ValueError, "x must have 4 axes"),
    "unet: channels": (lambda: context_unet()(noise[:, :2], 1.0), ValueError, "x must have channels=3, got channels=2"),
    "unet: integers": (lambda: context_unet()(noise.int(), 1.0), TypeError, "x must be floating"),
    "unet: no context": (lambda: context_unet()(noise, 1.0), ValueError, "condition must have a part context"),
    "unet: context size": (
        lambda: context_unet()(noise, 1.0, torch.randn(2, 5, 7)),
        ValueError,
        r"context must have dim=6, got dim=7",
    ),
    "unet: no use for a context": (
        lambda: small_model(classes=None).unet(noise, 1.0, torch.randn(2, 5, 6)),
        ValueError,
        "condition must have no part context: this UNet was built without context_dim",
    ),
    "unet: condition": (lambda: context_unet()(noise, 1.0, "cat"), TypeError, "condition must be a Condition"),
    "unet: heads": (
        lambda: ld.UNet(in_channels=3, base_channels=8, channel_multipliers=(1,), num_heads=3, head_dim=4),
        ValueError,
        "num_heads times head_dim must be the 8 channels",
    ),
    "unet: levels": (
        lambda: ld.UNet(in_channels=3, base_channels=8, channel_multipliers=(1, 2), attention_levels=(2,)),
        ValueError,
        r"attention_levels must be in \[0, 1\]",
    ),
    "attention: dim": (
        lambda: ld.CrossAttention(query_dim=6, context_dim=5)(torch.randn(2, 3, 5), torch.randn(2, 4, 5)),
        ValueError,
        "x must have query_dim=6, got query_dim=5",
    ),
    "attention: mask": (
        lambda: ld.CrossAttention(query_dim=6)(torch.randn(2, 3, 6), mask=torch.ones(2, 3)),
        TypeError,
        "mask must be bool",
    ),
    "times: range": (lambda: small_model().denoiser(noise, 100.0), ValueError, r"t must be in \[-1, 99\]"),
    "times: tensor": (
        lambda: small_model().denoiser(noise, torch.tensor([5, 100])),
        ValueError,
        r"t must be in \[-1, 99\]",
    ),
    "times: batch": (
        lambda: ld.NoiseSchedule.linear().add_noise(noise, noise, torch.tensor([1, 2, 3])),
        ValueError,
        r"a scale must have shape \[\] or \[2\]",
    ),
    "noise: shape": (
        lambda: ld.NoiseSchedule.linear().add_noise(noise, noise[:1], torch.tensor([1, 2])),
        ValueError,
        "noise must have sample's shape",
    ),
    "model: epsilon from pure noise": (
        lambda: ld.LatentDiffusion(
            autoencoder=small_model().autoencoder, unet=context_unet(), schedule=ld.NoiseSchedule.flow()
        ),
        ValueError,
        "prediction must not be 'epsilon'",
    ),
    "vq: no codebook size": (lambda: ld.Autoencoder(bottleneck="vq"), ValueError, "codebook_size must be given"),
    "file: missing": (lambda: ld.load("nowhere.safetensors"), ld.CheckpointError, "there is no such file"),
}


@pytest.mark.parametrize(("call", "error", "match"), CASES.values(), ids=CASES)
def test_bad_input_is_refused_in_words(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_guidance_needs_a_null_that_was_trained() -> None:
    model = small_model()
    assert model.condition_encoder is not None
    model.condition_encoder.null_trained.fill_(False)
    with pytest.raises(ValueError, match="must have a trained null"):
        model.generate(labels, size=4, guidance_scale=2.0)
    with pytest.raises(ValueError, match="must have a trained null"):
        model.generate(batch=2, size=4)


@pytest.fixture(name="saved")
def _saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    ld.save(small_model(), path)
    return path


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ld.CheckpointError, match="damaged or truncated"):
        ld.load(saved)


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ld.CheckpointError, match=r"latentdiff\.save did not write it"):
        ld.load(tmp_path / "other.safetensors")


def test_tensors_that_do_not_fit_are_named(saved: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(saved, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in list(file.keys())}
    tensors["unet.extra"] = tensors.pop("unet.conv_in.bias")
    tensors["unet.conv_out.bias"] = torch.zeros(9)
    save_file(tensors, saved, metadata)
    with pytest.raises(ld.CheckpointError) as caught:
        ld.load(saved)
    for part in ("missing: unet.conv_in.bias", "unexpected: unet.extra", "unet.conv_out.bias: [9] instead of [3]"):
        assert part in str(caught.value)


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentdiff._checkpoints import _files

    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(_files, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        ld.save(small_model(seed=1), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["model.safetensors"]
