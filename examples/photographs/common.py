"""What the four tasks share: arguments, settings, the photographs, and what stands before a diffusion model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import classifier
import first_stage
import fitting
import photos
import torch
from classifier import Classifier
from first_stage import Recipe
from fitting import Transform
from photos import Photos
from torch import nn

import latentdiff as ld
from latentdiff.training import Objective, diffusion_objective


@dataclass(frozen=True)
class Preset:
    """How large and how long.

    Attributes:
        classifier_steps: Of training, 128 photographs each.
        classifier_width: Its first layers' channels.
        steps: Of training the diffusion model.
        batch_size: Photographs in such a step.
        base_channels: Of the UNet.
        blocks_per_level: Of the UNet.
        learning_rate: Of the UNet at its highest.
        evaluated: Photographs and samples that are measured.
        sampling_steps: Of the sampler.
        limit: Photographs that are read of each class; None for all.
    """

    classifier_steps: int
    classifier_width: int
    steps: int
    batch_size: int
    base_channels: int
    blocks_per_level: int
    learning_rate: float
    evaluated: int
    sampling_steps: int
    limit: int | None = None


PRESETS = {
    "smoke": Preset(3, 8, 3, 8, 16, 1, 1e-3, 20, 2, limit=20),
    "cpu": Preset(500, 64, 700, 32, 48, 1, 1e-3, 300, 15, limit=3000),
    "gpu": Preset(4000, 128, 60000, 256, 192, 2, 3e-4, 5000, 40),
}


@dataclass
class Run:
    """One command: what it works with and what it has found.

    Attributes:
        preset: How large and how long.
        photos: What it trains and measures with.
        device: A GPU if there is one.
        output: Folder for everything it writes.
        arguments: What it was told.
        results: For `metrics.json`.
        seconds: How long each part took, and how many of them the processor worked.
    """

    preset: Preset
    photos: Photos
    device: torch.device
    output: Path
    arguments: argparse.Namespace
    results: dict[str, object]
    seconds: dict[str, dict[str, float]]

    def timed(self, part: str) -> Timed:
        """`with run.timed("sampling"):` notes how long it takes."""
        return Timed(self.output / "seconds.json", self.seconds, part)

    def checkpoints(self, part: str) -> Path | None:
        """Where those of a part of the training are; nowhere unless it may be resumed."""
        return self.output / "checkpoints" / part if self.arguments.resume else None

    def finish(self) -> None:
        """Write and print what was found."""
        total = {key: round(sum(part[key] for part in self.seconds.values()), 1) for key in ("wall", "processor")}
        everything = {
            "photographs": self.photos.source,
            "preset": self.arguments.preset,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "seconds": self.seconds | {"total": total},
            **self.results,
        }
        (self.output / "metrics.json").write_text(json.dumps(everything, indent=2) + "\n")
        print(json.dumps(everything, indent=2))
        print(f"{total['wall']:.0f} seconds in all; pictures, models and figures are in {self.output.resolve()}")


class Timed:
    """How long a part takes, by the clock and of the processor; added to what it took before it was interrupted."""

    def __init__(self, path: Path, seconds: dict[str, dict[str, float]], part: str) -> None:
        """Note it in `seconds` under `part`, and in a file."""
        self.path, self.seconds, self.part = path, seconds, part

    def __enter__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *raised: object) -> None:
        before = self.seconds.get(self.part, {"wall": 0.0, "processor": 0.0})
        spent = {"wall": time.perf_counter() - self.start[0], "processor": time.process_time() - self.start[1]}
        self.seconds[self.part] = {name: round(before[name] + spent[name], 1) for name in spent}
        self.path.write_text(json.dumps(self.seconds, indent=2) + "\n")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """What all commands are told."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="zip of pictures in class folders, or folder of large photographs")
    made.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures, models and figures")
    made.add_argument("--preset", choices=PRESETS, default="gpu" if torch.cuda.is_available() else "cpu")
    made.add_argument("--limit", type=int, help="pictures that are read of each class, if not those of the preset")
    made.add_argument("--steps", type=int, help="of training the diffusion model, if not those of the preset")
    made.add_argument("--resume", action="store_true", help="keep checkpoints, and go on from those that are there")
    made.add_argument("--first-stage", type=Path, help="a saved first stage, not to train one")
    made.add_argument("--classifier", type=Path, help="the classifier of an earlier run, not to train one")
    return made


def start(parsed: argparse.Namespace, steps: Mapping[str, int] | None = None) -> Run:
    """Read the photographs and make the output folder; `steps`, by preset, are the task's own."""
    parsed.output.mkdir(parents=True, exist_ok=True)
    own = (steps or {}).get(parsed.preset)
    told = {"steps": own if parsed.steps is None else parsed.steps, "limit": parsed.limit}
    preset = replace(PRESETS[parsed.preset], **{name: value for name, value in told.items() if value is not None})
    path = parsed.output / "seconds.json"
    seconds = json.loads(path.read_text()) if parsed.resume and path.exists() else {}
    seconds.pop("reading", None)
    with Timed(path, seconds, "reading"):
        found = photos.load(parsed.data, preset.limit)
    print(f"{found.source}: {len(found.train)} to train on, {len(found.validation)} held out", flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Run(preset, found, device, parsed.output, parsed, {}, seconds)


def judge(run: Run) -> Classifier:
    """The classifier that was given or a new one, which is saved, and how good it is."""
    held_out = run.photos.validation.spread(run.preset.evaluated)
    path = run.arguments.classifier or run.output / "classifier.safetensors"
    if run.arguments.classifier is not None or (run.arguments.resume and path.exists()):
        model = classifier.load(path, run.device)
    else:
        with run.timed("classifier"):
            model = classifier.train(
                run.photos, steps=run.preset.classifier_steps, width=run.preset.classifier_width, device=run.device
            )
        classifier.save(model, path)
    run.results["classifier_accuracy"] = model.accuracy(run.photos.validation.images(), run.photos.validation.labels)
    trained = run.photos.train.spread(len(held_out)).images()
    run.results["train_part"] = model.compare(trained, held_out.images())
    return model


def autoencoder(
    run: Run, recipe: Recipe, *, steps: int | None = None, base_channels: int | None = None
) -> ld.Autoencoder:
    """The first stage that was given, or a new one, which is saved; steps and channels as `first_stage.train` says."""
    if run.arguments.first_stage is not None:
        return first_stage.load(run.arguments.first_stage, run.device)
    path = run.output / "first_stage.safetensors"
    if run.arguments.resume and path.exists():
        return first_stage.load(path, run.device)
    with run.timed("first stage"):
        model = first_stage.train(
            run.photos,
            recipe,
            run.arguments.preset,
            run.checkpoints("first_stage"),
            steps=steps,
            base_channels=base_channels,
        )
    ld.save(model, path)
    return model


def train(
    model: ld.LatentDiffusion, run: Run, *, transform: Transform = fitting.mirrored, step: nn.Module | None = None
) -> None:
    """Train the diffusion model to the end, by the denoising loss or a step of one's own, then save it."""
    model.autoencoder.requires_grad_(False)
    preset, rate = run.preset, fitting.rate(run.preset.learning_rate, run.preset.steps)
    objective = diffusion_objective(model, learning_rate=rate) if step is None else Objective(step, learning_rate=rate)
    with run.timed("diffusion"):
        history = fitting.fit(
            model,
            objective,
            run.photos.train,
            steps=preset.steps,
            batch_size=preset.batch_size,
            transform=transform,
            folder=run.checkpoints("diffusion"),
        )
    last = history["loss"][-100:]
    run.results |= {"steps": preset.steps, "loss_of_last_steps": sum(last) / len(last)}
    run.results["parameters"] = sum(parameter.numel() for parameter in model.unet.parameters())
    ld.save(model, run.output / "model.safetensors")


def with_map_beside(
    autoencoder: ld.Autoencoder, encoder: ld.SpatialEncoder, multipliers: tuple[int, ...], run: Run
) -> ld.LatentDiffusion:
    """A UNet of convolutions alone, with what the encoder makes of a map beside the latents."""
    unet = ld.UNet(
        in_channels=autoencoder.latent_channels,
        concat_channels=encoder.concat_channels,
        base_channels=run.preset.base_channels,
        channel_multipliers=multipliers,
        blocks_per_level=run.preset.blocks_per_level,
        middle_attention=False,
    )
    return ld.LatentDiffusion(
        autoencoder=autoencoder,
        unet=unet,
        schedule=ld.NoiseSchedule.cosine(),
        condition_encoder=encoder,
        prediction="v_prediction",
    ).to(run.device)
