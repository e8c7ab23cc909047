"""Every block compiles as one graph, and walks, training and other batches do not compile it again."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import latentdiff as ld
from conditions import parts
from latentdiff.solvers import SOLVERS, SolverName
from models import small_model
from networks import normal, plainly, randomised


@dataclass
class Counting:
    """A backend that runs graphs as they are, and counts how many it was given."""

    graphs: list[torch.fx.GraphModule] = field(default_factory=list)

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Compile anew in each test, whatever other tests have compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def f32(*shape: int, seed: int = 0) -> Tensor:
    return normal(shape, seed, torch.float32)


def unet(**options: object) -> ld.UNet:
    given: dict[str, object] = {"channel_multipliers": (1,), "blocks_per_level": 1, **options}
    return randomised(ld.UNet(in_channels=3, base_channels=4, **given)).eval()  # type: ignore[arg-type]


def condition(batch: int, length: int, seed: int = 1) -> ld.Condition:
    """A context whose last sample is masked throughout."""
    mask = torch.arange(length) < torch.arange(batch).flip(0)[:, None]
    return ld.Condition(context=f32(batch, length, 5, seed=seed), context_mask=mask)


# Walks.


@pytest.mark.parametrize("names", [("ddim", "ddpm", "heun"), pytest.param(tuple(SOLVERS), marks=pytest.mark.slow)])
def test_a_network_is_compiled_once_for_all_solvers_with_guidance(names: Sequence[SolverName]) -> None:
    backend, network = Counting(), unet(context_dim=5)
    compiled = torch.compile(network, backend=backend, fullgraph=True)

    def walk(network: Callable[[Tensor, Tensor, object], Tensor], solver: SolverName) -> Tensor:
        denoiser = ld.Denoiser(network, ld.NoiseSchedule.cosine(100), "v_prediction")
        guided = ld.guidance.ClassifierFree(denoiser, 3.0, negative=condition(2, 4, seed=2))
        sampler = ld.Sampler(solver, steps=20)
        return sampler.sample(guided, f32(2, 3, 6, 8), condition(2, 7), generator=ld.CounterNoise(3))

    for solver in names:
        with plainly():
            expected = walk(network, solver)
        assert torch.equal(walk(compiled, solver), expected)
        assert len(backend.graphs) == 1, solver


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks for one, and hides it elsewhere
def test_a_model_compiled_in_place_generates_and_trains_without_compiling_again(tmp_path: Path) -> None:
    model, backend = small_model(), Counting()
    plain = copy.deepcopy(model)
    model.unet.compile(backend=backend, fullgraph=True)
    plain.unet.forward = plainly()(plain.unet.forward)  # type: ignore[method-assign]
    y = torch.tensor([3, 0])
    for steps in (3, 4):
        drawn = [
            one.generate(
                y, size=(8, 12), sampler=ld.Sampler("ddim", steps), guidance_scale=2.0, generator=ld.CounterNoise(1)
            )
            for one in (model, plain)
        ]
        assert torch.equal(*drawn)
    assert len(backend.graphs) == 1  # of twice the batch, in evaluation mode
    model.train()
    for step in range(3):
        model.loss(f32(4, 1, 8, 12).clamp(-1, 1), torch.arange(4) % 5).backward()
        assert len(backend.graphs) == 2, step  # in training mode
    ld.save(model, tmp_path / "model.safetensors")
    assert isinstance(ld.load(tmp_path / "model.safetensors"), ld.LatentDiffusion)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UNet", "DiT"])
@torch.no_grad()
def test_one_graph_serves_all_sizes(name: str) -> None:
    network: nn.Module = unet(channel_multipliers=(1, 2), context_dim=5)
    if name == "DiT":
        network = randomised(ld.DiT(in_channels=3, dim=12, depth=1, num_heads=2, context_dim=5)).eval()
    backend = Counting()
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=True)
    for batch, length, *size in [(2, 9, 7, 6), (4, 13, 8, 11), (6, 10, 10, 9)]:
        given = (f32(batch, 3, *size), torch.arange(batch) * 7.0, condition(batch, length))
        with plainly():
            expected = network(*given)
        assert torch.equal(compiled(*given), expected)
    assert len(backend.graphs) == 1


@pytest.mark.slow
@torch.no_grad()
def test_a_third_batch_size_compiles_nothing() -> None:
    backend, network = Counting(), unet()
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    graphs: list[int] = []
    for batch in (2, 4, 6, 7):
        x, t = f32(batch, 3, 5, 8), torch.arange(batch)
        with plainly():
            expected = network(x, t)
        assert torch.equal(compiled(x, t), expected)
        graphs.append(len(backend.graphs))
    assert graphs == [1, 2, 2, 2]  # of that size, then of any


# Training.


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        ("epsilon", ld.NoiseSchedule.linear(100)),
        pytest.param("flow", ld.NoiseSchedule.flow(100), marks=pytest.mark.slow),
        pytest.param("edm", ld.NoiseSchedule.edm(), marks=pytest.mark.slow),
    ],
    ids=["epsilon", "flow", "edm"],
)
def test_a_loss_compiles_with_its_denoiser(prediction: str, schedule: ld.NoiseSchedule) -> None:
    network, backend = unet(middle_attention=False), Counting()
    denoiser = ld.Denoiser(network, schedule, prediction)  # type: ignore[arg-type]
    weighting = "uniform" if prediction == "edm" else "min_snr"
    objective = ld.losses.DiffusionLoss(weighting=weighting)  # type: ignore[arg-type]

    def loss(sample: Tensor) -> Tensor:
        return objective(denoiser, sample).loss

    compiled, sample = torch.compile(loss, backend=backend, fullgraph=True), f32(2, 3, 5, 8)
    for seed in range(3):
        results: list[Tensor] = []
        for each in (compiled, loss):
            network.zero_grad()
            torch.manual_seed(seed)  # times and noise are drawn inside
            value = each(sample)
            value.backward()
            results += [value.detach(), network.conv_in.weight.grad.clone()]  # type: ignore[union-attr]
        torch.testing.assert_close(results[:2], results[2:], rtol=1e-5, atol=1e-6)
    assert len(backend.graphs) == 1


def test_a_loss_compiles_with_numbered_noise() -> None:
    denoiser = ld.Denoiser(unet(middle_attention=False), ld.NoiseSchedule.cosine(100), "v_prediction")

    def loss(sample: Tensor, t: Tensor) -> Tensor:
        return ld.losses.DiffusionLoss()(denoiser, sample, t=t, generator=ld.CounterNoise(5)).loss

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    sample = f32(2, 3, 5, 8)
    for t in ([3, 70], [99, 0]):
        given = sample, torch.tensor(t)
        torch.testing.assert_close(compiled(*given), loss(*given), rtol=1e-5, atol=1e-6)


# Every block.


def autoencoder(**options: object) -> ld.Autoencoder:
    built = ld.Autoencoder(
        base_channels=4, channel_multipliers=(1, 2), blocks_per_level=1, latent_channels=3, scaling_factor=0.3,
        shift_factor=0.1, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    return randomised(built).eval()


def first_stage(method: str, **options: object) -> Callable[[Tensor], Tensor]:
    built = autoencoder(**options)
    match method:
        case "forward":
            return lambda x: built(x).reconstruction
        case "encode":
            return lambda x: built.encode(x).mode()
        case _:
            return built.decode


def quantizer(*, training: bool) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    built = ld.VectorQuantizer(codebook_size=11, dim=3).train(training)

    def quantize(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized: ld.Quantized = built(z)
        return quantized.latents, quantized.indices, quantized.loss

    return quantize


def sized(*size: int, **given: Tensor) -> tuple[Tensor, Tensor, ld.Condition]:
    """Inputs of a network: latents of a size, whole times, a condition."""
    return f32(2, 3, *size), torch.tensor([3, 70]), ld.Condition(**given)


def guided() -> Callable[[Tensor, Tensor, ld.Condition], tuple[Tensor, Tensor]]:
    denoiser = ld.Denoiser(unet(context_dim=5), ld.NoiseSchedule.cosine(100), "v_prediction")
    guidance = ld.guidance.ClassifierFree(
        denoiser, 3.0, negative=condition(2, 4, seed=2), rescale=0.7, interval=(0.2, 0.8)
    )

    def estimates(x: Tensor, t: Tensor, condition: ld.Condition) -> tuple[Tensor, Tensor]:
        denoised = guidance(x, t, condition)
        return denoised.sample, denoised.noise

    return estimates


def condition_of(encoder: ld.ConditionEncoder) -> Callable[[object], list[Tensor]]:
    """Some of the samples encoded, the others null."""
    keep = torch.tensor([True, False])
    return lambda y: list(parts(encoder(y).where(keep, encoder.null(2))).values())


def layout() -> dict[str, Tensor]:
    return {"boxes": torch.rand(2, 3, 4).sort(-1)[0], "classes": torch.tensor([[4, 1, 0], [2, 2, 3]])}


MAP = f32(2, 3, 5, 4)
IMAGES = f32(2, 3, 4, 6).clamp(-1, 1)
SMALL_TEXT = {"dim": 5, "depth": 1, "num_heads": 2, "head_dim": 3}
BLOCKS: dict[str, tuple[Callable[[], Callable[..., object]], tuple[object, ...]]] = {
    "UNet with every part of a condition": (
        lambda: unet(context_dim=5, embedding_dim=6, concat_channels=2),
        sized(
            7, 8,
            context=f32(2, 9, 5), context_mask=torch.arange(9) < torch.tensor([[4], [0]]),
            embedding=f32(2, 6), concat=f32(2, 2, 1, 1),
        ),
    ),
    "UNet of classes": (lambda: unet(num_classes=6), sized(7, 8, embedding=torch.tensor([5, -1]))),
    "UNet as in guided diffusion": (
        lambda: unet(channel_multipliers=(1, 2), scale_shift_norm=True, residual_resampling=True, qkv_order="new"),
        sized(7, 8),
    ),
    "UNet of signals": (lambda: unet(channel_multipliers=(1, 2), spatial_dims=1), sized(7)),
    "UNet of volumes": (lambda: unet(channel_multipliers=(1, 2), spatial_dims=3), sized(5, 7, 6)),
    "DiT": (
        lambda: randomised(ld.DiT(in_channels=3, dim=12, depth=1, num_heads=2, context_dim=5)).eval(),
        sized(7, 8, context=f32(2, 9, 5)),
    ),
    "DiT of signals and classes": (
        lambda: randomised(ld.DiT(in_channels=3, dim=12, depth=1, num_heads=2, num_classes=6, spatial_dims=1)).eval(),
        sized(7, embedding=torch.tensor([5, -1])),
    ),
    "CrossAttention": (
        lambda: ld.CrossAttention(query_dim=6, context_dim=5, num_heads=2, head_dim=4),
        (f32(2, 7, 6), f32(2, 9, 5), torch.arange(9) < torch.tensor([[4], [0]])),
    ),
    "Autoencoder": (lambda: first_stage("forward"), (IMAGES,)),
    "Autoencoder, encode": (lambda: first_stage("encode"), (IMAGES,)),
    "Autoencoder, decode": (lambda: first_stage("decode"), (MAP,)),
    "Autoencoder of volumes": (lambda: first_stage("forward", spatial_dims=3), (f32(2, 3, 4, 6, 8).clamp(-1, 1),)),
    "Autoencoder of codes": (lambda: first_stage("forward", bottleneck="vq", codebook_size=11), (IMAGES,)),
    "Autoencoder of codes, decode": (lambda: first_stage("decode", bottleneck="vq", codebook_size=11), (MAP,)),
    "VectorQuantizer": (lambda: quantizer(training=False), (MAP,)),
    "VectorQuantizer, training": (lambda: quantizer(training=True), (MAP,)),
    "Denoiser, guided": (guided, (f32(2, 3, 7, 8), torch.tensor([3, 70]), condition(2, 9))),
    "ClassEncoder": (lambda: condition_of(ld.ClassEncoder(num_classes=6, dim=5)), (torch.tensor([5, -1]),)),
    "TextEncoder": (
        lambda: condition_of(ld.TextEncoder(vocabulary_size=20, max_length=7, **SMALL_TEXT)),  # type: ignore[arg-type]
        (torch.tensor([[1, 17, 2, 0], [1, 2, 0, 0]]),),
    ),
    "LayoutEncoder": (
        lambda: condition_of(ld.LayoutEncoder(num_classes=6, max_objects=4, sections=8, **SMALL_TEXT)),  # type: ignore[arg-type]
        (layout(),),
    ),
    "SpatialEncoder": (
        lambda: condition_of(ld.SpatialEncoder(in_channels=6, out_channels=2, num_stages=1)),
        (torch.arange(96).reshape(2, 6, 8) % 6,),
    ),
    "FrozenEncoder": (
        lambda: condition_of(ld.FrozenEncoder(module=nn.Linear(3, 5), dim=5, null_kind="learned")),
        (f32(2, 9, 3),),
    ),
    "MultiEncoder": (
        lambda: condition_of(
            ld.MultiEncoder(
                encoders={
                    "label": ld.ClassEncoder(num_classes=6, dim=5),
                    "map": ld.SpatialEncoder(in_channels=6, out_channels=2, num_stages=1),
                }
            )
        ),
        ({"label": torch.tensor([5, -1]), "map": torch.arange(96).reshape(2, 6, 8) % 6},),
    ),
}  # fmt: skip
QUICK = {"CrossAttention", "VectorQuantizer", "SpatialEncoder"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BLOCKS])
@torch.no_grad()
def test_a_block_is_one_graph(name: str) -> None:
    build, given = BLOCKS[name]
    block, backend = build(), Counting()
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(*given), block(*given), rtol=1e-5, atol=1e-6)
    assert len(backend.graphs) == 1


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="the backend needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what torch says of its own parts
@torch.no_grad()
def test_the_default_backend_gives_the_same_numbers() -> None:
    network = unet(context_dim=5)
    given = (f32(2, 3, 7, 8), torch.tensor([3, 700]), condition(2, 9))
    y = network(*given)
    # Kernels that are fused round in other places.
    torch.testing.assert_close(torch.compile(network, fullgraph=True)(*given), y, rtol=1e-5, atol=1e-5)
