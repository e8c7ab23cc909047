"""Train a model from layouts to images of rendered scenes from scratch, and measure how well it keeps to them.

    python examples/rendered_scenes/layout_to_image.py --preset cpu --output out/layout_to_image

A layout is up to four boxes, each with a class: one of four shapes in one of five colours. The layout encoder learns
together with the denoising network. A GPU is used if there is one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import figures
import training
from check import find_all
from layouts import MOST_THINGS, SECTIONS, agreement, classes, draw_layout
from scenes import COLOURS, SHAPES, SIZE, Scenes, Thing, render
from torch import Tensor

import latentdiff as ld

GUIDANCE_SCALE = 2.0
COLUMNS = 10
"""Layouts that are shown."""


def draw_layouts(count: int, seed: int) -> list[list[Thing]]:
    """Layouts at random."""
    draw = random.Random(seed)
    return [draw_layout(draw) for _ in range(count)]


def build_encoder(dim: int) -> ld.LayoutEncoder:
    """A transformer of two blocks over classes and corners."""
    return ld.LayoutEncoder(
        num_classes=len(SHAPES) * len(COLOURS),
        dim=dim,
        depth=2,
        max_objects=MOST_THINGS,
        sections=SECTIONS,
        num_heads=4,
        head_dim=dim // 4,
        null_kind="learned",
        dropout=0.1,
    )


def tokenize(encoder: ld.LayoutEncoder, layouts: Sequence[Sequence[Thing]]) -> Tensor:
    """Token ids `[layouts, tokens]`."""
    scenes = Scenes.of(layouts)
    return encoder.tokenize(scenes.boxes, classes(scenes), scenes.mask)


def evaluate(model: ld.LatentDiffusion, encoder: ld.LayoutEncoder, count: int) -> dict[str, dict[str, float]]:
    """How well pictures keep to layouts that were not trained on.

    Beside samples with and without guidance there are real pictures of the same layouts, these after the first stage,
    and as chance real pictures of other layouts.
    """
    layouts = draw_layouts(count, seed=2)
    real, tokens = render(Scenes.of(layouts), seed=3), tokenize(encoder, layouts)
    pictures = {
        "guided": training.draw(model, tokens, GUIDANCE_SCALE, seed=4),
        "unguided": training.draw(model, tokens, 1.0, seed=5),
        "reconstructed": training.reconstruct(model, real),
        "real": real,
    }
    found = {way: find_all(images) for way, images in pictures.items()}
    found["chance"] = [*found["real"][1:], found["real"][0]]
    return {way: agreement(layouts, things) for way, things in found.items()}


def write_samples(model: ld.LatentDiffusion, encoder: ld.LayoutEncoder, path: Path) -> None:
    """Layouts, two samples of each, and a rendering; none chosen."""
    layouts = draw_layouts(COLUMNS, seed=6)
    tokens = tokenize(encoder, layouts)
    samples = [(f"sample {i + 1}", training.draw(model, tokens, GUIDANCE_SCALE, seed=7 + i)) for i in range(2)]
    figures.laid_out(layouts, [*samples, ("rendered", render(Scenes.of(layouts), seed=9))], path)


def main() -> None:
    """Render, train, draw, measure, save."""
    parsed, preset = training.parse(__doc__)
    preset = replace(preset, steps=3 * preset.steps // 5)  # boxes say more than words: fewer steps do
    training.prepare()
    clock, output = training.Clock(), parsed.output
    layouts = draw_layouts(preset.scenes, seed=0)
    images = render(Scenes.of(layouts), seed=1)
    clock.lap("rendering")
    autoencoder = training.first_stage(parsed.first_stage, images, preset, output)
    clock.lap("first stage")
    encoder = build_encoder(preset.dim)
    model = training.build_model(autoencoder, encoder, preset, SIZE)
    training.fit(model, images, tokenize(encoder, layouts), preset, output / "diffusion")
    clock.lap("diffusion")
    ld.save(model, output / "model.safetensors")
    write_samples(model, encoder, output / "samples.png")
    results = evaluate(model, encoder, 2 * preset.evaluated)
    clock.lap("drawing and measuring")
    training.write_metrics(
        {"preset": parsed.preset, "guidance_scale": GUIDANCE_SCALE, "agreement": results, "seconds": clock.seconds},
        output,
    )


if __name__ == "__main__":
    main()
