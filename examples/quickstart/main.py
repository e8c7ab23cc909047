"""Train a latent diffusion model of handwritten digits from scratch, look at it and measure it.

The data are scikit-learn's 1,797 scans of 8 x 8 pixels, which come with the package. Run it with

    python examples/quickstart/main.py --output out

A GPU is used if there is one. The figures are measured on a fifth of the scans that is never trained on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import figures
import torch
from metrics import Judge
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

import latentdiff as ld
from latentdiff.evaluation import psnr
from latentdiff.losses import AutoencoderLoss
from latentdiff.training import EMA, Batches, LearningRate, Trainer, diffusion_objective, first_stage_objectives

GUIDANCE_SCALE = 1.25  # chosen with --tune, which leaves the test part alone
SAMPLER = ld.Sampler("dpmpp_2m", steps=20, spacing="trailing")  # what the scale was chosen with
GRID_SEED = 7
KL_WEIGHT = 1e-5


class Digits(NamedTuple):
    """Scans `[n, 1, 8, 8]` in [-1, 1] and their labels `[n]`."""

    images: Tensor
    labels: Tensor


def load_parts(tune: bool) -> tuple[Digits, Digits]:
    """A training part of 80 % and the rest, always the same ones; for tuning, the training part is split likewise."""
    data = load_digits()
    everything = Digits(torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(data.target))
    train, test = split(everything)
    return split(train) if tune else (train, test)


def split(digits: Digits) -> tuple[Digits, Digits]:
    """80 % and 20 %, by a fixed seed."""
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(0))
    cut = len(order) * 4 // 5
    first, second = order[:cut], order[cut:]
    return Digits(digits.images[first], digits.labels[first]), Digits(digits.images[second], digits.labels[second])


def build_first_stage() -> ld.Autoencoder:
    """An autoencoder with downsampling factor 2: 8 x 8 pixels become 4 x 4 latents of 4 channels."""
    return ld.Autoencoder(
        in_channels=1, latent_channels=4, base_channels=16, channel_multipliers=(1, 2), blocks_per_level=1
    )


def build_model(autoencoder: ld.Autoencoder) -> ld.LatentDiffusion:
    """A UNet that looks at the digit's class by cross-attention."""
    return ld.LatentDiffusion(
        autoencoder=autoencoder,
        unet=ld.UNet(
            in_channels=4,
            base_channels=32,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_levels=(1,),
            head_dim=16,
            context_dim=32,
        ),
        schedule=ld.NoiseSchedule.cosine(),
        condition_encoder=ld.ClassEncoder(num_classes=10, dim=32, dropout=0.1),
        prediction="v_prediction",
        image_size=8,
    )


def train_first_stage(autoencoder: ld.Autoencoder, digits: Digits, steps: int) -> list[float]:
    """Reconstruction and a little KL, then calibrated to unit latents; the mean squared error of each step."""
    loss = AutoencoderLoss(reconstruction="l2", learn_log_variance=False, kl_weight=KL_WEIGHT, kl_reduction="sample")
    objectives = first_stage_objectives(
        autoencoder, loss, learning_rate=rate(steps), weight_decay=1e-4, betas=(0.9, 0.999)
    )
    history = Trainer(objectives, Batches(digits.images, batch_size=64), steps=steps).train()
    device = next(autoencoder.parameters()).device
    autoencoder.eval().calibrate(images.to(device) for images in digits.images.split(256))
    return history["generator/reconstruction"]


def train_diffusion(model: ld.LatentDiffusion, digits: Digits, steps: int) -> list[float]:
    """The denoising loss in latent space; the model ends with its averaged weights."""
    average = EMA(model, decay=0.998)
    objective = diffusion_objective(model, learning_rate=rate(steps), weight_decay=1e-3)
    trainer = Trainer(objective, Batches(tuple(digits), batch_size=64), steps=steps, averages=[(average, model)])
    history = trainer.train()
    average.copy_to(model)
    model.eval()
    return history["loss"]


def rate(steps: int) -> LearningRate:
    """Up in three tenths of the steps, then down along a cosine."""
    return LearningRate(2e-3, warm_up=steps * 3 // 10, decay="cosine", steps=steps)


def draw(model: ld.LatentDiffusion, labels: Tensor, scale: float, seed: int) -> Tensor:
    """Digits of the given classes; the same for the same seed."""
    device = next(model.parameters()).device
    noise = ld.CounterNoise(seed)
    return model.generate(labels.to(device), sampler=SAMPLER, guidance_scale=scale, generator=noise).cpu()


def draw_grid(model: ld.LatentDiffusion) -> Tensor:
    """Ten classes by eight samples: `[10, 8, 1, 8, 8]`."""
    return draw(model, torch.arange(10).repeat_interleave(8), GUIDANCE_SCALE, GRID_SEED).unflatten(0, (10, 8))


def denoising_strip(model: ld.LatentDiffusion) -> tuple[Tensor, list[str]]:
    """How one digit of each class comes out of noise: decoded latents `[10, moments, 1, 8, 8]` and their times."""
    device = next(model.parameters()).device
    encoder = model.condition_encoder
    if encoder is None:
        raise ValueError("the strip needs a class-conditional model")
    denoiser = ld.guidance.ClassifierFree(model.denoiser, GUIDANCE_SCALE, negative=encoder.null(10))
    noise = ld.CounterNoise(GRID_SEED).normal((10, 4, 4, 4), step=0, device=device, dtype=torch.float32)
    strip, times = [], []
    with torch.no_grad():
        for step in SAMPLER.iterate(denoiser, noise, encoder(torch.arange(10, device=device))):
            if step.index % 2 == 0 or step.index == SAMPLER.steps - 1:
                strip.append(model.decode(step.x).clamp(-1, 1).cpu())
                times.append(f"t={step.next_t:.0f}")
    return torch.stack(strip, 1), times


def evaluate(model: ld.LatentDiffusion, train: Digits, test: Digits) -> dict[str, float]:
    """The figures, on the part that was not trained on."""
    judge = Judge(*train)
    labels = torch.arange(10).repeat_interleave(100)
    guided, unguided = draw(model, labels, GUIDANCE_SCALE, seed=1), draw(model, labels, 1.0, seed=2)
    compared = judge.compare(guided, test.images)
    return {
        "reconstruction_psnr": psnr(reconstruct(model, test.images), test.images).mean().item(),
        "accuracy_guided": judge.accuracy(guided, labels),
        "accuracy_unguided": judge.accuracy(unguided, labels),
        "accuracy_real": judge.accuracy(*test),
        "precision_guided": compared["precision"],
        "recall_guided": compared["recall"],
        "frechet_guided": compared["frechet"],
        "frechet_real": judge.compare(train.images, test.images)["frechet"],
    } | {f"{name}_unguided": value for name, value in judge.compare(unguided, test.images).items()}


@torch.no_grad()
def reconstruct(model: ld.LatentDiffusion, images: Tensor) -> Tensor:
    """Through the first stage and back."""
    device = next(model.parameters()).device
    return model.decode(model.autoencoder.encode(images.to(device)).mode()).clamp(-1, 1).cpu()


def write_pictures(model: ld.LatentDiffusion, test: Digits, losses: dict[str, list[float]], output: Path) -> None:
    """Samples, reconstructions, denoising strip and curves; and the samples as numbers, to compare with."""
    samples = draw_grid(model)
    save_file({"samples": samples.contiguous()}, output / "samples.safetensors")
    digits = [str(i) for i in range(10)]
    figures.grid(samples, output / "samples.png", rows=digits, title=f"Samples, guidance scale {GUIDANCE_SCALE:g}")
    originals = torch.stack([test.images[test.labels == i][0] for i in range(10)])
    pair = torch.stack([originals, reconstruct(model, originals)])
    figures.grid(pair, output / "reconstructions.png", rows=["test scan", "decoded"], title="First stage, f = 2")
    strip, times = denoising_strip(model)
    figures.grid(strip, output / "denoising.png", rows=digits, columns=times, title="Latents on the way, decoded")
    figures.curves(losses, output / "losses.png")


def main() -> None:
    """Train, draw, measure, save, and draw again from the saved file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures, model and figures")
    parser.add_argument("--first-stage-steps", type=int, default=700)
    parser.add_argument("--diffusion-steps", type=int, default=1700)
    parser.add_argument("--tune", action="store_true", help="leave the test part alone: hold out a fifth of the rest")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # on arrays this small threads wait for each other longer than they work
    train, test = load_parts(arguments.tune)

    start = time.perf_counter()
    autoencoder = build_first_stage().to(device)
    losses = {"First stage (mean squared error)": train_first_stage(autoencoder, train, arguments.first_stage_steps)}
    middle = time.perf_counter()
    model = build_model(autoencoder).to(device)
    losses["Diffusion (v-prediction)"] = train_diffusion(model, train, arguments.diffusion_steps)
    end = time.perf_counter()

    ld.save(model, output / "model.safetensors")
    write_pictures(model, test, losses, output)
    results = evaluate(model, train, test)
    results |= {"seconds_first_stage": middle - start, "seconds_diffusion": end - middle}
    subprocess.run([sys.executable, Path(__file__).with_name("reproduce.py"), output], check=True)
    results["seconds_total"] = time.perf_counter() - start
    (output / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(f"{name:<22} {value:9.4f}" for name, value in results.items()))
    print(f"pictures, model and figures are in {output.resolve()}")


if __name__ == "__main__":
    main()
