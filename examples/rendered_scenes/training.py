"""How both tasks are trained: a first stage, its latents, and a denoising network that looks at tokens."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import latentdiff as ld
from latentdiff.losses import AutoencoderLoss
from latentdiff.training import EMA, Batches, LearningRate, Trainer, diffusion_objective, first_stage_objectives

SAMPLER = ld.Sampler("dpmpp_2m", steps=16, spacing="trailing")
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Preset:
    """How large and how long.

    Attributes:
        scenes: That are rendered to train on.
        first_stage_steps: Of 16 pictures.
        first_stage_channels: At full size.
        patch_size: Latent points that are one token of the denoising network, on each axis.
        width: Of the denoising network.
        depth: Of it, in blocks.
        dim: Of the condition's tokens.
        steps: Of training the denoising network.
        batch_size: Of these steps.
        learning_rate: Of these steps, at its highest.
        evaluated: Captions of each kind that are drawn to measure; twice as many layouts.
    """

    scenes: int
    first_stage_steps: int
    first_stage_channels: int
    patch_size: int
    width: int
    depth: int
    dim: int
    steps: int
    batch_size: int
    learning_rate: float
    evaluated: int


PRESETS = {
    "smoke": Preset(64, 3, 8, 2, 16, 1, 16, 3, 8, 1e-3, 6),
    "cpu": Preset(16_000, 1200, 16, 2, 128, 4, 96, 5000, 32, 2e-3, 100),
    "gpu": Preset(200_000, 10_000, 32, 1, 384, 8, 256, 30_000, 256, 3e-4, 1000),
}


def parse(description: str | None) -> tuple[argparse.Namespace, Preset]:
    """What the command was told, and its preset; the output folder is made."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures, model and figures")
    parser.add_argument("--preset", choices=PRESETS, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--first-stage", type=Path, help="a saved autoencoder, such as the other task's; else trained")
    parsed = parser.parse_args()
    parsed.output.mkdir(parents=True, exist_ok=True)
    return parsed, PRESETS[parsed.preset]


def prepare() -> None:
    """Let a CPU do what it does fastest on arrays as small as these."""
    torch.set_num_threads(1)  # threads wait for each other longer than they work
    if device().type == "cpu":
        torch.set_float32_matmul_precision("medium")  # bfloat16 products, where the CPU has them
        torch.backends.cuda.enable_flash_sdp(False)  # says the CPU's too: plain products are faster here


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def first_stage(path: Path | None, images: Tensor, preset: Preset, output: Path) -> ld.Autoencoder:
    """The first stage at `path`, or one that is trained now, its latents of unit size; written to the output folder."""
    autoencoder = _fit_first_stage(images, preset, output / "first_stage") if path is None else ld.load(path)
    if not isinstance(autoencoder, ld.Autoencoder):
        raise TypeError(f"--first-stage must name an Autoencoder, got {type(autoencoder).__name__}")
    autoencoder.to(device()).eval().calibrate(part.to(device()) for part in images[:2048].split(256))
    ld.save(autoencoder, output / "first_stage.safetensors")
    return autoencoder


def _fit_first_stage(images: Tensor, preset: Preset, folder: Path) -> ld.Autoencoder:
    """Train an autoencoder with downsampling factor 2; a run that was cut goes on."""
    torch.manual_seed(0)
    autoencoder = ld.Autoencoder(
        latent_channels=LATENT_CHANNELS,
        base_channels=preset.first_stage_channels,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        middle_attention=False,
        bottleneck="none",
    ).to(device())
    # absolute errors would have the grey ground alone drawn at first, as most points are grey
    loss = AutoencoderLoss(reconstruction="l2", learn_log_variance=False).to(device())
    steps = preset.first_stage_steps
    rate = LearningRate(5e-3, warm_up=steps // 10, decay="cosine", steps=steps)
    objectives = first_stage_objectives(autoencoder, loss, learning_rate=rate, betas=(0.9, 0.99), clip=1.0)
    Trainer(objectives, Batches(images, batch_size=16), steps=steps, folder=folder, save_every=600).train()
    return autoencoder


def build_model(
    autoencoder: ld.Autoencoder, encoder: ld.ConditionEncoder, preset: Preset, size: int
) -> ld.LatentDiffusion:
    """A transformer over the points of the latents, which knows where they are, and looks at the condition's tokens."""
    return ld.LatentDiffusion(
        autoencoder=autoencoder,
        unet=ld.DiT(
            in_channels=LATENT_CHANNELS,
            dim=preset.width,
            depth=preset.depth,
            num_heads=4,
            patch_size=preset.patch_size,
            context_dim=preset.dim,
        ),
        schedule=ld.NoiseSchedule.cosine().shifted(2.0),  # things are few and strong: much noise leaves them visible
        condition_encoder=encoder,
        prediction="v_prediction",
        image_size=size,
    ).to(device())


def fit(model: ld.LatentDiffusion, images: Tensor, tokens: Tensor, preset: Preset, folder: Path) -> None:
    """Train denoising network and encoder jointly, on latents; the model ends with its averaged weights."""
    latents = torch.cat([model.encode(part.to(device())).cpu() for part in images.split(256)])
    average = EMA(model, decay=0.998)
    rate = LearningRate(preset.learning_rate, warm_up=preset.steps // 20, decay="cosine", steps=preset.steps)
    trainer = Trainer(
        diffusion_objective(model.train(), latents=True, learning_rate=rate, weight_decay=1e-3, betas=(0.9, 0.99)),
        Batches((latents, tokens), batch_size=preset.batch_size),
        steps=preset.steps,
        folder=folder,
        averages=[(average, model)],
        save_every=1000,
    )
    trainer.train()
    average.copy_to(model)
    model.eval()


def draw(model: ld.LatentDiffusion, tokens: Tensor, scale: float, seed: int) -> Tensor:
    """Pictures of what the tokens ask for, in batches; the same for the same seed."""
    drawn = [
        model.generate(
            part.to(device()), sampler=SAMPLER, guidance_scale=scale, generator=ld.CounterNoise(seed, 256 * i)
        )
        for i, part in enumerate(tokens.split(256))
    ]
    return torch.cat(drawn).cpu()


@torch.no_grad()
def reconstruct(model: ld.LatentDiffusion, images: Tensor) -> Tensor:
    """Through the first stage and back."""
    autoencoder = model.autoencoder
    parts = (autoencoder.encode(part.to(device())).mode() for part in images.split(256))
    return torch.cat([autoencoder.clamp(autoencoder.decode(latents)) for latents in parts]).cpu()


class Clock:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        """Start."""
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What was done since the last lap is called `name`."""
        now = time.perf_counter()
        self.seconds |= {name: round(now - self._last, 1), "total": round(now - self._start, 1)}
        self._last = now


def write_metrics(metrics: dict[str, object], output: Path) -> None:
    """Write and print the figures."""
    text = json.dumps(metrics, indent=2)
    (output / "metrics.json").write_text(text + "\n")
    print(text)
    print(f"pictures, model and figures are in {output.resolve()}")
