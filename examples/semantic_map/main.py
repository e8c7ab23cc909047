"""Train a model of photographs given their semantic maps on small crops, and make megapixel pictures of new maps.

    python examples/semantic_map/main.py --preset cpu --data FOLDER --output out

A map says of each pixel to which of some classes of colour and texture it belongs; it is derived from the photograph,
so that any picture can be asked which map it has. Without `--data` scikit-learn's two photographs are taken. Both
networks are without attention. Large maps are denoised in windows of the size known from training, and decoded in
pieces. How far a picture obeys its map is measured on photographs that were held out.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import figures
import torch
from data import Crops, Maps, Photographs, enlarged, load
from torch import Tensor

import latentdiff as ld
from latentdiff.evaluation import psnr
from latentdiff.training import (
    EMA,
    Batches,
    LatentCache,
    LearningRate,
    Trainer,
    cache_latents,
    diffusion_objective,
    first_stage_objectives,
)

SAMPLER = ld.Sampler("dpmpp_2m", steps=12, spacing="trailing")


@dataclass(frozen=True)
class Preset:
    """How large and how long.

    Attributes:
        crops: Sides of the crops to train both on, in pixels.
        size: Side of the pictures that are made, in pixels.
        classes: Of a map.
        base_channels: Of the autoencoder and of the UNet.
        steps: Of training of both.
        batch_sizes: Of both.
        cached: Crops whose latents are computed once, to train the UNet on.
        window: Side of the windows that are denoised, in latents.
        pictures: How many held-out maps are painted.
    """

    crops: tuple[int, int]
    size: int
    classes: int
    base_channels: tuple[int, int]
    steps: tuple[int, int]
    batch_sizes: tuple[int, int]
    cached: int
    window: int
    pictures: int


PRESETS = {
    "smoke": Preset((32, 32), 64, 4, (8, 8), (3, 3), (2, 4), 8, 8, 1),
    "cpu": Preset((32, 64), 1024, 12, (16, 32), (1600, 1200), (8, 16), 1200, 32, 1),
    "gpu": Preset((128, 128), 2048, 16, (64, 128), (20_000, 60_000), (16, 64), 100_000, 64, 8),
}


def build_first_stage(preset: Preset) -> ld.Autoencoder:
    """An autoencoder with f = 4 that looks at nothing but the neighbourhood."""
    return ld.Autoencoder(
        latent_channels=8,
        base_channels=preset.base_channels[0],
        channel_multipliers=(1, 2, 4),
        blocks_per_level=1,
        middle_attention=False,
    )


def build_model(autoencoder: ld.Autoencoder, preset: Preset) -> ld.LatentDiffusion:
    """A UNet without attention, that gets the map beside the latents."""
    return ld.LatentDiffusion(
        autoencoder=autoencoder,
        unet=ld.UNet(
            in_channels=8,
            base_channels=preset.base_channels[1],
            channel_multipliers=(1, 2, 2),
            blocks_per_level=1,
            middle_attention=False,
            concat_channels=preset.classes,
        ),
        schedule=ld.NoiseSchedule.cosine(),
        condition_encoder=ld.SpatialEncoder(in_channels=preset.classes, num_stages=2, dropout=0.1),
        prediction="v_prediction",
    )


def train_first_stage(autoencoder: ld.Autoencoder, crops: Crops, preset: Preset, folder: Path) -> list[float]:
    """Absolute error, a pyramid distance and a little KL; then calibrated to unit latents."""
    steps, size = preset.steps[0], preset.batch_sizes[0]
    loss = ld.losses.AutoencoderLoss(perceptual=ld.losses.PyramidLoss()).to(autoencoder.last_layer.device)
    rate = LearningRate(2e-3, warm_up=steps // 20, decay="cosine", steps=steps)
    objectives = first_stage_objectives(autoencoder, loss, learning_rate=rate)
    trainer = Trainer(objectives, lambda step: crops.batch(size, step)[0], steps=steps, folder=folder, save_every=100)
    history = trainer.train()  # from the last checkpoint in the folder, if there is one
    autoencoder.eval().calibrate(crops.batch(size, steps + i)[0] for i in range(max(1, 256 // size)))
    return history["generator/reconstruction"]


def cache(autoencoder: ld.Autoencoder, crops: Crops, preset: Preset, folder: Path) -> LatentCache:
    """The latents of many crops, with their maps, as they stay while the UNet is trained."""
    words = f"{preset.cached} random crops of {preset.crops[1]}, half of them mirrored"
    try:
        return LatentCache(folder, autoencoder, preprocessing=words)
    except ld.CheckpointError as reason:
        print(reason)
    size = min(preset.cached, 50)
    batches = (crops.batch(size, 1_000_000 + i) for i in range(preset.cached // size))
    pairs = ((images, maps.byte()) for images, maps in batches)
    return cache_latents(autoencoder, pairs, folder, preprocessing=words, overwrite=True)


def train_diffusion(model: ld.LatentDiffusion, cached: LatentCache, preset: Preset, folder: Path) -> list[float]:
    """The denoising loss of cached latents, drawn anew each epoch; the model ends with its averaged weights."""
    steps, size = preset.steps[1], preset.batch_sizes[1]

    ema = EMA(model, decay=0.995)
    rate = LearningRate(2e-3, warm_up=steps // 20, decay="cosine", steps=steps)
    objective = diffusion_objective(model, latents=True, learning_rate=rate, weight_decay=1e-3)
    averages = [(ema, model)]
    history = Trainer(
        objective, Batches(cached, size), steps=steps, averages=averages, folder=folder, save_every=100
    ).train()
    ema.copy_to(model)
    model.eval()
    return history["loss"]


@torch.no_grad()
def paint(model: ld.LatentDiffusion, maps: Tensor, window: int | None, seed: int = 0) -> Tensor:
    """Pictures `[batch, 3, height, width]` of maps `[batch, height, width]`, denoised in windows or as a whole."""
    device = model.autoencoder.last_layer.device
    encoder = model.condition_encoder
    if encoder is None:
        raise ValueError("the model must take maps")
    condition: ld.Condition = encoder(maps.to(device))
    shape = (len(maps), model.autoencoder.latent_channels, *(n // 4 for n in maps.shape[1:]))
    noise = ld.CounterNoise(seed).normal(shape, step=0, device=device, dtype=torch.float32)
    denoiser: ld.Denoise = model.denoiser
    if window is not None:
        denoiser = ld.TiledDenoiser(denoiser, size=window, overlap=window // 4)
    latents = SAMPLER.sample(denoiser, noise, condition, progress=True)
    return model.autoencoder.clamp(model.autoencoder.decode(latents, tile=256)).cpu()


def agreement(maps: Maps, images: Tensor, wanted: Tensor) -> float:
    """Share of the pixels of images `[batch, 3, height, width]` whose class is that of `wanted` `[batch, ...]`."""
    return (maps(images) == wanted).double().mean().item()


@torch.no_grad()
def evaluate(
    model: ld.LatentDiffusion, maps: Maps, photographs: Photographs, preset: Preset, output: Path
) -> dict[str, float]:
    """Pictures of the maps of held-out photographs, and how far they obey."""
    real = torch.stack([enlarged(image, preset.size) for image in photographs.held_out[-preset.pictures :]])
    wanted = maps(real)
    device = model.autoencoder.last_layer.device
    latents = torch.cat([model.autoencoder.encode(image[None].to(device), tile=256).mode() for image in real])
    decoded = model.autoencoder.clamp(model.autoencoder.decode(latents, tile=256)).cpu()
    start = time.perf_counter()
    made = paint(model, wanted, preset.window)
    middle = time.perf_counter()
    whole = paint(model, wanted, None)
    end = time.perf_counter()
    for number, image in enumerate(made):
        shown = {"map": maps.shown(wanted[number : number + 1])[0], "made of the map": image, "photo": real[number]}
        figures.panels(shown, output / f"map_{number}.jpg", detail=preset.size // 4)
        figures.save(image, output / f"made_{number}.jpg")
    shares = torch.bincount(wanted.flatten(), minlength=preset.classes) / wanted.numel()
    return {
        "agreement_in_windows": agreement(maps, made, wanted),
        "agreement_as_a_whole": agreement(maps, whole, wanted),
        "agreement_of_first_stage": agreement(maps, decoded, wanted),
        "agreement_with_mirrored_map": agreement(maps, made, wanted.flip(-1)),
        "largest_class": shares.max().item(),
        "first_stage_psnr": psnr(decoded, real).mean().item(),
        "seconds_a_picture_in_windows": (middle - start) / len(real),
        "seconds_a_picture_as_a_whole": (end - middle) / len(real),
    }


def main() -> None:
    """Train both stages, paint, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures, model and figures")
    arguments = parser.parse_args()
    preset, output = PRESETS[arguments.preset], arguments.output
    output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    photographs = load(arguments.data)
    maps = Maps(photographs, preset.classes)
    labels = [maps(image[None])[0] for image in photographs.train]
    small, crops = (Crops(photographs.train, labels, side) for side in preset.crops)

    start = time.perf_counter()
    autoencoder = build_first_stage(preset).to(device)
    losses = {"first stage, absolute error": train_first_stage(autoencoder, small, preset, output / "first_stage")}
    middle = time.perf_counter()
    cached = cache(autoencoder, crops, preset, output / "latents")
    model = build_model(autoencoder, preset).to(device)
    images, wanted = crops.batch(16, 0)
    print(ld.doctor(model, images.to(device), wanted.to(device), compiling=False))
    losses["diffusion, v-prediction"] = train_diffusion(model, cached, preset, output / "diffusion")
    end = time.perf_counter()

    ld.save(model, output / "model.safetensors")
    figures.curves(losses, output / "losses.png")
    results: dict[str, float | str] = {"photographs": photographs.source, "preset": arguments.preset}
    results |= evaluate(model, maps, photographs, preset, output)
    results |= {"seconds_first_stage": middle - start, "seconds_diffusion": end - middle}
    results["seconds_total"] = time.perf_counter() - start
    results["cpu_seconds_total"] = time.process_time()
    (output / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    print(f"pictures, model and figures are in {output.resolve()}")


if __name__ == "__main__":
    main()
