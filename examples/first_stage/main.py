"""Train two first stages on photographs, one regularised by KL, one with a codebook; look at them and measure them.

    python examples/first_stage/main.py --data cifar10-train.zip --output out

The data are a zip of pictures of one size in class folders, such as CIFAR-10; every tenth picture of a class is held
out. Without --data, patches of two sample photographs that come with scikit-learn stand in. A GPU is used if there is
one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import data
import figures
import torch
from data import Photographs, spread, to_images, to_pixels
from measuring import evaluate, features
from torch import Tensor
from training import PRESETS, Preset, Recipe, Trained, train

import latentdiff as ld
from latentdiff.evaluation import frechet_distance

SHOWN = 12
"""Photographs in the pictures."""


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What all commands of this example are told."""
    parser.add_argument("--data", type=Path, help="zip of pictures in class folders")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for pictures, models and figures")
    parser.add_argument("--preset", choices=PRESETS, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="of training, if not those of the preset")
    return parser


def prepare(parsed: argparse.Namespace) -> tuple[Preset, Photographs]:
    """The preset and the photographs that were asked for; the output folder is made."""
    parsed.output.mkdir(parents=True, exist_ok=True)
    preset = PRESETS[parsed.preset]
    if parsed.steps is not None:
        preset = replace(preset, steps=parsed.steps)
    photographs = data.load(parsed.data, preset.limit)
    print(f"{len(photographs.train)} photographs to train on, {len(photographs.validation)} held out", flush=True)
    return preset, photographs


def run(name: str, recipe: Recipe, preset: Preset, photographs: Photographs, parsed: argparse.Namespace) -> Trained:
    """Train one first stage and save it as `<name>.safetensors`; a run that was cut goes on."""
    trained = train(recipe, preset, photographs, parsed.output / f"{name}.checkpoints")
    ld.save(trained.autoencoder, parsed.output / f"{name}.safetensors")
    return trained


def measure(trained: Trained, preset: Preset, photographs: Photographs) -> dict[str, float]:
    """Figures on photographs that were held out, and how long training took."""
    figures_of_model = evaluate(trained.autoencoder, spread(photographs.validation, preset.evaluated))
    return figures_of_model | {"steps": trained.steps, "seconds": round(trained.seconds, 1)}


@torch.no_grad()
def reconstructed(autoencoder: ld.Autoencoder, pictures: Tensor) -> Tensor:
    """Pictures through the first stage and back."""
    images = to_images(pictures.to(autoencoder.last_layer.device))
    return to_pixels(autoencoder.decode(autoencoder.encode(images).mode())).cpu()


def shown(photographs: Photographs) -> Tensor:
    """Held-out photographs from all over."""
    return spread(photographs.validation, SHOWN)


def main() -> None:
    """Train, draw, measure, save."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsed = arguments(parser).parse_args()
    preset, photographs = prepare(parsed)
    rows, histories, results = {"held out": shown(photographs)}, {}, {}
    for bottleneck in ("kl", "vq"):
        trained = run(bottleneck, Recipe(bottleneck), preset, photographs, parsed)
        rows[f"{bottleneck.upper()}, f = 4"] = reconstructed(trained.autoencoder, shown(photographs))
        histories[bottleneck.upper()] = trained.history
        results[bottleneck] = measure(trained, preset, photographs)
    figures.grid(rows, parsed.output / "reconstructions.png", title=f"{photographs.source}: {preset.steps} steps")
    figures.curves(histories, parsed.output / "curves.png")
    parts = (spread(part, preset.evaluated) for part in (photographs.train, photographs.validation))
    total = time.perf_counter() - start
    everything = {
        "photographs": photographs.source,
        "preset": parsed.preset,
        "frechet_of_training_photographs": frechet_distance(*(features(to_images(part)) for part in parts)),
        "seconds_total": round(total, 1),
        **results,
    }
    (parsed.output / "metrics.json").write_text(json.dumps(everything, indent=2) + "\n")
    print(json.dumps(everything, indent=2))
    print(f"{total:.0f} seconds in all; pictures, models and figures are in {parsed.output.resolve()}")


if __name__ == "__main__":
    main()
