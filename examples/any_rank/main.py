"""Both stages of latent diffusion on what is no image: signals with one axis, volumes with three.

    python examples/any_rank/main.py --preset cpu --output out

The blocks are those for images, with `spatial_dims=1` and `3`. The data are rendered: electrocardiograms of four
seconds, and volumes with one to three hollow bodies. Each kind is trained from scratch, drawn from without condition,
and compared with samples that were rendered apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import data
import figures
import torch
from measuring import compare
from torch import Tensor

import latentdiff as ld
from latentdiff.evaluation import psnr
from latentdiff.training import EMA, Batches, LearningRate, Trainer, diffusion_objective, first_stage_objectives

SAMPLER = ld.Sampler("dpmpp_2m", steps=25, spacing="trailing")


@dataclass(frozen=True)
class Kind:
    """A kind of data, and the shape of the networks for it.

    Attributes:
        spatial_dims: Number of axes.
        size: Points on each axis.
        render: Samples `[count, 1, *spatial]` of a count, a size and a seed.
        draw: Writes rows of samples to a file.
        latent_channels: Of the autoencoder.
        factors: Channel multipliers of the autoencoder: one more than the halvings of each axis.
        unet: Channel multipliers of the UNet.
    """

    spatial_dims: Literal[1, 3]
    size: int
    render: Callable[[int, int, int], Tensor]
    draw: Callable[[dict[str, Tensor], Path], None]
    latent_channels: int
    factors: tuple[int, ...]
    unet: tuple[int, ...]


KINDS = {
    "signals": Kind(1, 512, data.heartbeats, figures.signals, 4, (1, 1, 2, 2), (1, 2)),
    "volumes": Kind(3, 16, data.bodies, figures.volumes, 8, (1, 2, 2), (1, 2)),
}


@dataclass(frozen=True)
class Preset:
    """How large and how long.

    Attributes:
        samples: To train on.
        compared: Drawn, and rendered to compare with.
        base_channels: Of autoencoder and UNet, by kind.
        steps: Of training of both, by kind.
        batch_size: Of the first stage; four times that of the UNet.
    """

    samples: int
    compared: int
    base_channels: dict[str, tuple[int, int]]
    steps: dict[str, tuple[int, int]]
    batch_size: int


PRESETS = {
    "smoke": Preset(16, 10, {"signals": (4, 8), "volumes": (4, 8)}, {"signals": (2, 2), "volumes": (2, 2)}, 2),
    "cpu": Preset(
        1000,
        200,
        {"signals": (16, 32), "volumes": (8, 32)},
        {"signals": (600, 900), "volumes": (600, 800)},
        8,
    ),
    "gpu": Preset(
        20_000,
        4000,
        {"signals": (64, 128), "volumes": (48, 96)},
        {"signals": (10_000, 40_000), "volumes": (10_000, 40_000)},
        64,
    ),
}


def build(kind: Kind, channels: tuple[int, int]) -> ld.LatentDiffusion:
    """Both stages."""
    autoencoder = ld.Autoencoder(
        in_channels=1,
        latent_channels=kind.latent_channels,
        base_channels=channels[0],
        channel_multipliers=kind.factors,
        blocks_per_level=1,
        middle_attention=False,
        spatial_dims=kind.spatial_dims,
    )
    unet = ld.UNet(
        in_channels=kind.latent_channels,
        base_channels=channels[1],
        channel_multipliers=kind.unet,
        blocks_per_level=1,
        attention_levels=(1,),
        head_dim=16,
        spatial_dims=kind.spatial_dims,
    )
    return ld.LatentDiffusion(
        autoencoder=autoencoder,
        unet=unet,
        schedule=ld.NoiseSchedule.cosine(),
        prediction="v_prediction",
        image_size=kind.size,
    )


def train(model: ld.LatentDiffusion, samples: Tensor, steps: tuple[int, int], batch_size: int, folder: Path) -> None:
    """The autoencoder by absolute error and a little KL, then the UNet; the model ends with averaged weights."""
    loss = ld.losses.AutoencoderLoss().to(samples.device)
    rate = LearningRate(2e-3, warm_up=steps[0] // 20, decay="cosine", steps=steps[0])
    objectives = first_stage_objectives(model.autoencoder, loss, learning_rate=rate)
    first_stage = Trainer(objectives, Batches(samples, batch_size), steps=steps[0], folder=folder / "first_stage")
    first_stage.train()  # from the last checkpoint in the folder, if there is one
    model.autoencoder.eval().calibrate(samples.split(100))
    print(ld.doctor(model, samples[:64], compiling=False))

    ema = EMA(model, decay=0.995)
    rate = LearningRate(1e-3, warm_up=steps[1] // 20, decay="cosine", steps=steps[1])
    objective = diffusion_objective(model, learning_rate=rate, weight_decay=1e-3)
    batches = Batches(samples, 4 * batch_size)
    Trainer(objective, batches, steps=steps[1], averages=[(ema, model)], folder=folder / "diffusion").train()
    ema.copy_to(model)
    model.eval()


@torch.no_grad()
def evaluate(model: ld.LatentDiffusion, kind: Kind, preset: Preset, path: Path) -> dict[str, dict[str, float]]:
    """Draw, write a picture, and compare with samples that were rendered apart."""
    device = model.autoencoder.last_layer.device
    real, others = (kind.render(preset.compared, kind.size, seed) for seed in (1, 2))
    autoencoder = model.autoencoder
    made = model.generate(batch=preset.compared, sampler=SAMPLER, generator=ld.CounterNoise(0)).cpu()
    latents = torch.cat([autoencoder.encode(part.to(device)).mode() for part in real.split(50)])
    noise = ld.CounterNoise(1).normal(latents.shape, step=0, device=device, dtype=latents.dtype)
    decoded, of_noise = (
        torch.cat([autoencoder.clamp(autoencoder.decode(part)).cpu() for part in z.split(50)]) for z in (latents, noise)
    )
    rows = {"rendered": others, "first stage": decoded, "drawn": made, "latent noise": of_noise}
    kind.draw(rows, path)
    results = {name: compare(samples, real) for name, samples in rows.items()}
    results["first stage"]["psnr"] = psnr(decoded, real).mean().item()
    return results


def main() -> None:
    """Train, draw and measure each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--kinds", choices=sorted(KINDS), nargs="+", default=sorted(KINDS))
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures, models and figures")
    arguments = parser.parse_args()
    preset, output = PRESETS[arguments.preset], arguments.output
    output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    results: dict[str, object] = {"preset": arguments.preset}
    for name in arguments.kinds:
        torch.manual_seed(0)
        kind = KINDS[name]
        model = build(kind, preset.base_channels[name]).to(device)
        begin = time.perf_counter()
        samples = kind.render(preset.samples, kind.size, 0).to(device)
        train(model, samples, preset.steps[name], preset.batch_size, output / name)
        seconds = time.perf_counter() - begin
        ld.save(model, output / f"{name}.safetensors")
        results[name] = {**evaluate(model, kind, preset, output / f"{name}.png"), "seconds_training": seconds}
    results["seconds_total"] = time.perf_counter() - start
    results["cpu_seconds_total"] = time.process_time()
    (output / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    print(f"pictures, models and figures are in {output.resolve()}")


if __name__ == "__main__":
    main()
