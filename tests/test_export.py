"""Exported programs and ONNX files answer what the modules answer, at sizes they were not exported at."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

import latentdiff as ld
import latentdiff._codebook
from networks import normal, randomised


def f32(*shape: int, seed: int = 0) -> Tensor:
    return normal(shape, seed, torch.float32)


def unet(**options: object) -> ld.UNet:
    given: dict[str, object] = {"channel_multipliers": (1, 2), "blocks_per_level": 1, **options}
    return randomised(ld.UNet(in_channels=3, base_channels=4, **given)).eval()  # type: ignore[arg-type]


def inputs(network: ld.UNet | ld.DiT, batch: int, *size: int, length: int = 9) -> tuple[Tensor, Tensor, ld.Condition]:
    """What a network takes: noisy latents, times, a condition with all it was built for; one sample is masked."""
    parts: dict[str, Tensor] = {}
    if network.context_dim is not None:
        parts["context"] = f32(batch, length, network.context_dim, seed=1)
        parts["context_mask"] = torch.arange(length) < torch.arange(batch).flip(0)[:, None]
    if network.embedding_dim is not None:
        parts["embedding"] = f32(batch, network.embedding_dim, seed=2)
    if network.num_classes is not None:
        parts["embedding"] = torch.arange(batch) - 1
    if network.concat_channels:
        parts["concat"] = f32(batch, network.concat_channels, *size, seed=3)
    return f32(batch, 3, *size), 7.5 * torch.arange(batch), ld.Condition(**parts)


def exported(network: ld.UNet | ld.DiT, *size: int) -> ExportedProgram:
    """The network as a program for any batch, length of context and spatial size."""
    x, t, condition = given = inputs(network, 2, *size)
    shapes = ShapesCollection()
    shapes[x] = dict.fromkeys((0, *range(2, x.ndim)), Dim.DYNAMIC)
    shapes[t] = {0: Dim.DYNAMIC}
    for part in (condition.context, condition.context_mask):
        if part is not None:
            shapes[part] = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    if condition.embedding is not None:
        shapes[condition.embedding] = {0: Dim.DYNAMIC}
    if condition.concat is not None:
        shapes[condition.concat] = dict.fromkeys((0, *range(2, x.ndim)), Dim.DYNAMIC)
    return torch.export.export(network, given, dynamic_shapes=shapes.dynamic_shapes(network, given))


class Decode(nn.Module):
    """Latents to images, as a module: what is exported is a `forward`."""

    def __init__(self, autoencoder: ld.Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)


def decoder(**options: object) -> Decode:
    autoencoder = ld.Autoencoder(
        base_channels=4, channel_multipliers=(1, 2, 2), blocks_per_level=1, latent_channels=4, scaling_factor=0.3,
        shift_factor=0.1, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return Decode(randomised(autoencoder)).eval()


def exported_decoder(decode: Decode) -> ExportedProgram:
    """The decoder as a program for any batch and spatial size."""
    dims = range(2, 2 + decode.autoencoder.spatial_dims)
    latents = f32(2, 4, *(5, 6, 7)[: len(dims)])
    return torch.export.export(decode, (latents,), dynamic_shapes=(dict.fromkeys((0, *dims), Dim.DYNAMIC),))


def error(answer: Tensor, expected: Tensor) -> float:
    """The largest error over the standard deviation of what is expected."""
    assert answer.shape == expected.shape
    assert answer.dtype == expected.dtype
    return ((answer - expected).abs().max() / expected.std()).item()


# torch.export. The program runs the same kernels on the same numbers; constants may be folded.


@pytest.mark.parametrize(
    "options",
    [
        {"context_dim": 5},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"context_dim": 5, "attention_levels": (0,), "embedding_dim": 6, "use_linear_projection": True},
                {"scale_shift_norm": True, "residual_resampling": True, "num_classes": 6},
                {"concat_channels": 2, "qkv_order": "new", "num_heads": 2},
                {"spatial_dims": 1},
                {"spatial_dims": 3},
            )
        ),
    ],
    ids=lambda options: ", ".join(options),
)
@torch.no_grad()
def test_an_exported_unet_takes_other_batches_and_sizes(options: dict[str, object]) -> None:
    network = unet(**options)
    dims = network.spatial_dims
    program = exported(network, *(8, 12, 6)[:dims]).module()
    for batch, length, size in [(2, 9, (8, 12, 6)), (3, 4, (5, 7, 11)), (1, 1, (9, 6, 3))]:
        given = inputs(network, batch, *size[:dims], length=length)
        assert error(program(*given), network(*given)) < 1e-5


@torch.no_grad()
def test_an_exported_unet_is_saved_and_loaded() -> None:
    network = unet(channel_multipliers=(1,), context_dim=5)
    x, t, context = f32(2, 3, 5, 7), torch.tensor([3.0, 70.0]), f32(2, 9, 5, seed=1)
    shapes = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC})
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (x, t, context), dynamic_shapes=shapes), file)
    file.seek(0)
    program = torch.export.load(file).module()
    given = f32(3, 3, 5, 7), torch.tensor([1.0, 2.0, 3.0]), f32(3, 4, 5, seed=2)
    assert error(program(*given), network(*given)) < 1e-5


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.slow
@torch.no_grad()
def test_an_exported_dit_takes_sizes_of_its_kind(even: bool) -> None:
    network = randomised(ld.DiT(in_channels=3, dim=12, depth=1, num_heads=2, context_dim=5)).eval()
    program = exported(network, *((8, 12) if even else (7, 13))).module()
    given = inputs(network, 3, *((6, 14) if even else (9, 5)), length=4)
    assert error(program(*given), network(*given)) < 1e-5
    with pytest.raises(AssertionError, match="Guard failed"):
        program(*inputs(network, 3, *((9, 5) if even else (6, 14))))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bottleneck": "vq", "codebook_size": 11},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"bottleneck": "vq", "codebook_size": 11, "cosine_codes": True, "codebook_decay": 0.9},
                {"attention_levels": (0,), "bottleneck": "none"},
                {"spatial_dims": 1},
                {"spatial_dims": 3},
            )
        ),
    ],
    ids=lambda options: ", ".join(map(str, options.values())) or "kl",
)
@torch.no_grad()
def test_an_exported_decoder_takes_other_batches_and_sizes(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What would be searched in parts, had the number of parts not to be the same for all sizes.
    monkeypatch.setattr(latentdiff._codebook, "SEARCH_ELEMENTS_ELSEWHERE", 100)
    decode = decoder(**options)
    program = exported_decoder(decode).module()
    for batch, size in [(2, (5, 6, 7)), (3, (9, 4, 3)), (1, (1, 11, 2))]:
        latents = f32(batch, 4, *size[: decode.autoencoder.spatial_dims], seed=batch)
        assert error(program(latents), decode(latents)) < 1e-5


# ONNX, on the CPU. Kernels of another library: 6e-6 were measured.


class Session:
    """An ONNX file in onnxruntime."""

    def __init__(self, program: ExportedProgram, folder: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        written = torch.onnx.export(program, dynamo=True, verbose=False)
        assert written is not None
        written.save(folder / "model.onnx")
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def __call__(self, **given: Tensor | None) -> Tensor:
        feed = {name: part.numpy() for name, part in given.items() if part is not None}
        [y] = self.session.run(None, feed)
        return torch.from_numpy(y)


onnx = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, about its own parts


@onnx
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"context_dim": 5}, {"residual_resampling": True, "num_classes": 6}], ids=str)
@torch.no_grad()
def test_an_onnx_unet_takes_other_batches_and_sizes(options: dict[str, object], tmp_path: Path) -> None:
    network = unet(**options)
    session = Session(exported(network, 8, 12), tmp_path)
    for batch, length, size in [(2, 9, (8, 12)), (3, 4, (5, 7)), (1, 1, (9, 6))]:
        x, t, condition = inputs(network, batch, *size, length=length)
        answer = session(
            x=x, t=t, condition_context=condition.context, condition_context_mask=condition.context_mask,
            condition_embedding=condition.embedding,
        )  # fmt: skip
        assert error(answer, network(x, t, condition)) < 1e-4


@onnx
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bottleneck": "vq", "codebook_size": 11}], ids=["kl", "vq"])
@torch.no_grad()
def test_an_onnx_decoder_takes_other_batches_and_sizes(options: dict[str, object], tmp_path: Path) -> None:
    decode = decoder(**options)
    session = Session(exported_decoder(decode), tmp_path)
    for batch, size in [(2, (5, 6)), (3, (9, 4)), (1, (1, 11))]:
        latents = f32(batch, 4, *size, seed=batch)
        assert error(session(latents=latents), decode(latents)) < 1e-4
