from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import latentdiff as ld
from latentdiff.losses import DiffusionLoss
from models import small_model

SIZES = {1: (10,), 2: (4, 6), 3: (2, 4, 6)}
every_rank = pytest.mark.parametrize("dims", SIZES)


def images(dims: int = 2, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 1, *SIZES[dims]) * 2 - 1


@every_rank
def test_images_are_drawn_at_the_size_asked_for(dims: int) -> None:
    model = small_model(spatial_dims=dims)
    drawn = model.generate(torch.tensor([1, 4, 0]), size=SIZES[dims], sampler=ld.Sampler("ddim", 3), guidance_scale=2.0)
    assert drawn.shape == (3, 1, *SIZES[dims])
    assert drawn.abs().max() <= 1
    assert drawn.std() > 0


def test_generate_is_encode_condition_sample_decode() -> None:
    model, y = small_model(), torch.tensor([1, 4])
    sampler = ld.Sampler("heun", 4)
    got = model.generate(y, size=(4, 6), sampler=sampler, guidance_scale=3.0, generator=ld.CounterNoise(5))
    encoder = model.condition_encoder
    assert encoder is not None
    noise = ld.draw_noise((2, 3, 2, 3), ld.CounterNoise(5))
    guided = ld.guidance.ClassifierFree(model.denoiser, 3.0, negative=encoder.null(2))
    want = model.decode(sampler.sample(guided, noise, encoder(y))).clamp(-1, 1)
    assert torch.equal(got, want)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model, y = small_model(), torch.tensor([1, 4, 0, 2])
    draw = {"size": (4, 6), "sampler": ld.Sampler("ddpm", 3), "guidance_scale": 2.0}
    whole = model.generate(y, generator=ld.CounterNoise(9), **draw)  # type: ignore[arg-type]
    part = model.generate(y[2:], generator=ld.CounterNoise(9, 2), **draw)  # type: ignore[arg-type]
    torch.testing.assert_close(part, whole[2:], rtol=1e-4, atol=1e-5)  # matrix products of other sizes round otherwise


def test_the_condition_steers_and_none_draws_from_the_null() -> None:
    model = small_model()
    draw = {"size": (4, 6), "sampler": ld.Sampler("ddim", 2), "generator": ld.CounterNoise(1)}
    one, two = (model.generate(torch.tensor([label]), **draw) for label in (0, 1))  # type: ignore[arg-type]
    free = model.generate(batch=1, **draw)  # type: ignore[arg-type]
    guided_nowhere = model.generate(torch.tensor([1]), guidance_scale=0.0, **draw)  # type: ignore[arg-type]
    assert not torch.equal(one, two)
    assert torch.equal(free, guided_nowhere)


@every_rank
def test_the_loss_reaches_network_and_encoder_but_not_the_first_stage(dims: int) -> None:
    model = small_model(spatial_dims=dims).train()
    loss = model.loss(images(dims), torch.tensor([1, 4, 0]))
    loss.backward()
    assert loss.ndim == 0
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert not model.autoencoder.training
    missing = [name for name, p in model.unet.named_parameters() if p.grad is None]
    assert not missing
    assert model.condition_encoder is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.condition_encoder.parameters())


def test_the_loss_is_that_of_its_latents() -> None:
    model, x, y = small_model(), images(), torch.tensor([1, 4, 0])
    got = model.loss(x, y, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    latents = model.encode(x, generator)
    assert model.condition_encoder is not None
    want = DiffusionLoss()(model.denoiser, latents, model.condition_encoder(y), generator=generator).loss
    assert torch.equal(got, want)


def test_training_lowers_the_loss() -> None:
    model = small_model(classes=None).train()
    optimizer = torch.optim.Adam(model.unet.parameters(), lr=1e-2)
    x = images(batch=8)
    losses = []
    for step in range(100):
        loss = model.loss(x, generator=torch.Generator().manual_seed(step % 10))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@every_rank
@pytest.mark.parametrize("classes", [None, 5])
def test_a_saved_model_is_the_same_model(dims: int, classes: int | None, tmp_path: Path) -> None:
    model = small_model(classes=classes, spatial_dims=dims)
    ld.save(model, tmp_path / "model.safetensors")
    again = ld.load(tmp_path / "model.safetensors")
    assert isinstance(again, ld.LatentDiffusion)
    assert again.config == model.config
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    y = None if classes is None else torch.tensor([2, 3])
    draw = {"batch": 2, "size": SIZES[dims], "sampler": ld.Sampler("dpmpp_2m", 3), "generator": ld.CounterNoise(0)}
    assert torch.equal(again.generate(y, **draw), model.generate(y, **draw))  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


PARTS = {
    "autoencoder": lambda: ld.Autoencoder(
        base_channels=4, channel_multipliers=(1, 2), bottleneck="vq", codebook_size=7
    ),
    "calibrated": lambda: ld.Autoencoder(base_channels=4, latent_channels=2, scaling_factor=[0.1, 3.0]),
    "quantizer": lambda: ld.VectorQuantizer(codebook_size=7, dim=3, decay=0.9),
    "unet": lambda: ld.UNet(in_channels=2, base_channels=4, channel_multipliers=(1,), num_classes=3),
    "attention": lambda: ld.CrossAttention(query_dim=6, context_dim=5, num_heads=2, head_dim=3),
    "classes": lambda: ld.ClassEncoder(num_classes=3, dim=4, routing="embedding"),
}


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
def test_every_block_is_saved_and_loaded_alone(make: object, tmp_path: Path) -> None:
    assert callable(make)
    module = make()
    ld.save(module, tmp_path / "part.safetensors")
    again = ld.load(tmp_path / "part.safetensors")
    assert type(again) is type(module)
    assert again.config == module.config
    state, other = module.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_class_of_ones_own_is_loaded_when_named(tmp_path: Path) -> None:
    class Mine(ld.Module):
        def __init__(self, *, width: int, parts: tuple[int, ...] = (1, 2)) -> None:
            super().__init__()
            self.width, self.parts = width, parts
            self.layer = torch.nn.Linear(width, 3)

    ld.save(Mine(width=4), tmp_path / "mine.safetensors")
    with pytest.raises(ld.CheckpointError, match="unknown class 'Mine'; give classes of your own"):
        ld.load(tmp_path / "mine.safetensors")
    again = ld.load(tmp_path / "mine.safetensors", classes=[Mine])
    assert isinstance(again, Mine)
    assert again.layer.weight.shape == (3, 4)


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    ld.save(small_model(), tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["latentdiff"])
    assert described["module"]["class"] == "LatentDiffusion"
    assert described["module"]["config"]["unet"]["config"]["base_channels"] == 8


def test_another_process_draws_the_same_bits(tmp_path: Path) -> None:
    model = small_model()
    ld.save(model, tmp_path / "model.safetensors")
    code = (
        "import sys, torch, latentdiff as ld; torch.set_num_threads(1); m = ld.load(sys.argv[1]);"
        "s, n = ld.Sampler('ddpm', 3), ld.CounterNoise(3);"
        "x = m.generate(torch.tensor([1, 2]), size=(4, 6), sampler=s, generator=n);"
        "print(x.flatten().tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.safetensors")], capture_output=True, text=True, check=True
    )
    want = model.generate(
        torch.tensor([1, 2]), size=(4, 6), sampler=ld.Sampler("ddpm", 3), generator=ld.CounterNoise(3)
    )
    assert json.loads(run.stdout) == want.flatten().tolist()


def test_a_model_learns_its_variance_and_keeps_it(tmp_path: Path) -> None:
    """Twice the channels out of the network; the hybrid loss reaches the half that is the variance."""
    small = small_model(classes=None)
    model = ld.LatentDiffusion(
        autoencoder=small.autoencoder,
        unet=ld.UNet(in_channels=3, out_channels=6, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1),
        schedule=ld.NoiseSchedule.linear(20),
        variance="learned_range",
    )
    images = torch.rand(2, 1, 8, 12) * 2 - 1
    model.loss(images, objective=DiffusionLoss(vlb_weight=0.001)).backward()
    gradient = [parameter.grad for parameter in model.unet.parameters()][-1]
    assert gradient is not None
    assert (gradient[3:] != 0).all()
    ld.save(model, tmp_path / "model.safetensors")
    again = ld.load(tmp_path / "model.safetensors")
    assert isinstance(again, ld.LatentDiffusion)
    assert again.variance == "learned_range"
    sampler = ld.Sampler("ddpm", steps=3)
    drawn = [
        m.generate(batch=2, size=(8, 12), sampler=sampler, generator=ld.CounterNoise(0)) for m in (model.eval(), again)
    ]
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="variance must be one of"):
        ld.LatentDiffusion(autoencoder=small.autoencoder, unet=small.unet, schedule=small.schedule, variance="big")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        ({"in_channels": 3}, "unet must have in_channels=2, as the autoencoder's latents, got in_channels=3"),
        ({"in_channels": 2, "spatial_dims": 3}, "unet must have spatial_dims=2, .*, got spatial_dims=3"),
    ],
)
def test_a_network_for_other_latents_is_refused(network: dict[str, int], wanted: str) -> None:
    first_stage = ld.Autoencoder(in_channels=1, latent_channels=2, base_channels=4, channel_multipliers=(1, 1))
    unet = ld.UNet(**network, base_channels=4, channel_multipliers=(1,), attention_levels=())
    with pytest.raises(ValueError, match=wanted):
        ld.LatentDiffusion(autoencoder=first_stage, unet=unet, schedule=ld.NoiseSchedule.cosine())
