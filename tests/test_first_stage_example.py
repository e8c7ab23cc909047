"""The example of the first stage in its shortest setting: it runs, resumes as if nothing had happened, compares."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import latentdiff as ld
from programs import run

EXAMPLE = Path(__file__).parent.parent / "examples" / "first_stage"


def photographs(path: Path, count: int = 12) -> None:
    """A zip as the example wants it: JPEGs in class folders."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat", "ship"):
            for i in range(count):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
                with archive.open(f"{name}/{i:04}.jpg", "w") as file:
                    Image.fromarray(pixels.numpy()).save(file, "JPEG")
        archive.writestr("README.txt", "no picture")


def test_the_example_runs_and_writes_models_pictures_and_figures(tmp_path: Path) -> None:
    run(EXAMPLE, EXAMPLE / "main.py", "--preset", "smoke", "--output", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for bottleneck in ("kl", "vq"):
        autoencoder = ld.load(tmp_path / f"{bottleneck}.safetensors")
        assert isinstance(autoencoder, ld.Autoencoder)
        assert autoencoder.downsampling_factor == 4
        assert metrics[bottleneck]["steps"] == 6
        assert 0 < metrics[bottleneck]["psnr"] < 60
        assert metrics[bottleneck]["latent_std"] == pytest.approx(1, abs=0.2)
    assert 0 < metrics["vq"]["codebook_use"] <= 1
    for picture in ("reconstructions.png", "curves.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


RESUME = """
import sys
from pathlib import Path
import torch, training
from data import sample_patches
from training import PRESETS, Recipe, train

preset, recipe, folder, photographs = PRESETS["smoke"], Recipe("vq"), Path(sys.argv[1]), sample_patches()
whole = train(recipe, preset, photographs, folder / "whole")
parts = training.build(recipe, preset, torch.device("cpu"))
start = photographs.batch(training.start_size(recipe, preset, photographs), 0, torch.device("cpu"))
parts[0].initialize_codebook(start, generator=torch.Generator().manual_seed(0))
training.make_trainer(*parts, preset, photographs, folder / "cut").train(until=4)
again = train(recipe, preset, photographs, folder / "cut")
assert (again.steps, again.history) == (whole.steps, whole.history)
for name, tensor in whole.autoencoder.state_dict().items():
    assert torch.equal(tensor, again.autoencoder.state_dict()[name]), name
"""


def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path: Path) -> None:
    run(EXAMPLE, "-c", RESUME, tmp_path)


DATA = """
import sys
from pathlib import Path
import torch
from data import from_zip, sample_patches, to_images, to_pixels

photographs = from_zip(Path(sys.argv[1]), None)
assert photographs.train.shape == (20, 3, 32, 32) and photographs.validation.shape == (4, 3, 32, 32)
assert from_zip(Path(sys.argv[1]), 5).train.shape == (8, 3, 32, 32)
assert torch.equal(to_pixels(to_images(photographs.train)), photographs.train)
first, again = (photographs.batch(7, 3, torch.device("cpu")) for _ in range(2))
assert torch.equal(first, again) and first.min() >= -1 and first.max() <= 1
stand_in = sample_patches()
flat = {bytes(p.numpy()) for p in stand_in.train}
assert not any(bytes(p.numpy()) in flat for p in stand_in.validation)
"""


def test_every_tenth_picture_of_a_class_is_held_out(tmp_path: Path) -> None:
    photographs(tmp_path / "photographs.zip")
    run(EXAMPLE, "-c", DATA, tmp_path / "photographs.zip")


@pytest.mark.slow
def test_the_comparison_and_the_tiles_are_written(tmp_path: Path) -> None:
    photographs(tmp_path / "photographs.zip")
    for table, lines in (("factors", 8), ("options", 9)):
        run(
            EXAMPLE,
            *(EXAMPLE / "compare.py", "--data", tmp_path / "photographs.zip", "--preset", "smoke"),
            *("--steps", "2", "--table", table, "--output", tmp_path),
        )
        text = (tmp_path / f"{table}.md").read_text().splitlines()
        assert len(text) == 2 + lines
        assert len(json.loads((tmp_path / f"{table}.json").read_text())["models"]) == lines
        assert (tmp_path / f"{table}.png").exists()
    run(
        EXAMPLE,
        EXAMPLE / "tile.py",
        "--model",
        tmp_path / "vq__f___4.safetensors",
        "--output",
        tmp_path,
        "--tile",
        "200",
    )
    tiles = json.loads((tmp_path / "tiles.json").read_text())
    assert tiles["height"] * tiles["width"] > 1e6
    assert tiles["exact bands"]["largest_difference"] < 0.1  # of 256 grey levels
    assert tiles["exact bands"]["mean_difference"] < tiles["blended tiles"]["mean_difference"]
