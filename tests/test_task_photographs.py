"""The tasks on photographs: laws of their data, baselines and measures; each runs in its shortest setting."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import latentdiff as ld
from programs import run

pytest.importorskip("skimage")

EXAMPLES = Path(__file__).parent.parent / "examples"
EXAMPLE = EXAMPLES / "photographs"
NAMES = {path.stem for folder in (EXAMPLE, EXAMPLES / "first_stage") for path in folder.glob("*.py")}


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the example; other examples have modules of the same names, which come back afterwards."""
    path, others = list(sys.path), {name: sys.modules.pop(name) for name in NAMES & set(sys.modules)}
    sys.path.insert(0, str(EXAMPLE))
    yield importlib.import_module
    sys.path[:] = path
    for name in NAMES & set(sys.modules):
        del sys.modules[name]
    sys.modules.update(others)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def ramp(height: int, width: int) -> torch.Tensor:
    """Three planes `[1, 3, height, width]`, no two alike, within [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([0.5 * y + 0.25 * x, -0.5 * y, 0.25 * y - 0.5 * x])[None]


def write_zip(path: Path, count: int = 12) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for label, name in enumerate(("cat", "ship")):
            for i in range(count):
                with archive.open(f"{name}/{i:04}.png", "w") as file:
                    Image.new("RGB", (32, 32), (100 * label, i, 7)).save(file, "PNG")


def test_labels_are_those_of_the_folders_and_every_tenth_picture_is_held_out(
    load: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    write_zip(tmp_path / "photographs.zip")
    found = load("photos").load(tmp_path / "photographs.zip", None)
    assert found.classes == ("cat", "ship")
    for part, numbers in ((found.train, [*range(1, 10), 11]), (found.validation, [0, 10])):
        assert part.pictures[:, 1, 0, 0].tolist() == 2 * numbers
        assert torch.equal(part.labels, part.pictures[:, 0, 0, 0] // 100)


def test_no_patch_of_the_held_out_part_overlaps_the_part_to_train_on(load: Callable[[str], ModuleType]) -> None:
    photos = load("photos")
    places = torch.stack([*torch.meshgrid(torch.arange(64), torch.arange(200), indexing="ij"), torch.zeros(64, 200)])
    one = photos.Large("one", places.to(torch.uint8), torch.zeros(1, 64, 200, dtype=torch.bool))
    found = photos.from_large([one, one], "places")
    assert found.train.pictures[:, 1].max() < found.validation.pictures[:, 1].min()
    assert found.train.labels.unique().tolist() == found.validation.labels.unique().tolist() == [0, 1]


def test_holes_of_large_photographs_are_read_from_masks_or_drawn(
    load: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    photos = load("photos")
    for name in ("a", "b"):
        Image.new("RGB", (48, 40), (1, 2, 3)).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (48, 40), 0)
    mask.paste(255, (32, 4, 40, 10))
    mask.save(tmp_path / "b_mask.png")
    a, b = photos.large(tmp_path)
    assert 0.04 < a.hole.double().mean() < 0.06  # an ellipse of a quarter of each side: pi / 64 of the area
    assert b.hole.sum() == 8 * 6
    assert b.crop(24).picture.shape == (3, 24, 24)
    assert b.crop(24).hole.sum() == 4 * 2  # columns 32 to 36 and rows 8 to 10 of the hole


def test_a_folder_without_photographs_is_refused(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data must be a zip or a folder of photographs, found no picture"):
        load("photos").load(tmp_path, None)


@given(seed=st.integers(0, 2**31), size=st.integers(10, 40))
@settings(max_examples=20)
def test_holes_leave_something_and_are_a_function_of_the_seed(
    load: Callable[[str], ModuleType], seed: int, size: int
) -> None:
    holes = load("inpainting").holes(7, size, seed)
    shares = holes.double().mean((1, 2, 3))
    assert holes.shape == (7, 1, size, size)
    assert shares.min() >= (size // 5) ** 2 / size**2
    assert shares.max() <= 2 * (size // 2) ** 2 / size**2
    assert torch.equal(holes, load("inpainting").holes(7, size, seed))
    assert not torch.equal(holes, load("inpainting").holes(7, size, seed + 1))


def model_with_hole(load: Callable[[str], ModuleType]) -> tuple[ld.LatentDiffusion, object]:
    """An untrained model of the inpainting example, and the run it is built with."""
    run = SimpleNamespace(preset=load("common").PRESETS["smoke"], device=torch.device("cpu"))
    torch.manual_seed(0)
    autoencoder = ld.Autoencoder(latent_channels=2, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1)
    return load("inpainting").build(autoencoder.eval(), run).eval(), run


def test_the_model_is_told_nothing_of_what_is_in_the_hole(load: Callable[[str], ModuleType]) -> None:
    inpainting, (model, _) = load("inpainting"), model_with_hole(load)
    hole = inpainting.holes(3, 16, seed=1)
    x, other = images(3, 3, 16, 16), images(3, 3, 16, 16, seed=1)
    first, second = (inpainting.given(model.autoencoder, y, hole) for y in (x, torch.where(hole, other, x)))
    assert torch.equal(first["image"], second["image"])
    cells = hole.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).any(-1)
    assert torch.equal(first["mask"].bool(), cells)  # a latent is made as soon as one of its pixels is missing


def test_known_pixels_stay_to_the_last_bit(load: Callable[[str], ModuleType]) -> None:
    inpainting, (model, run) = load("inpainting"), model_with_hole(load)
    x, hole = images(3, 3, 16, 16), inpainting.holes(3, 16, seed=1)
    made = [inpainting.fill(model, x, hole, run)]
    made += [inpainting.fill_in_the_loop(model, x, hole, run, resamples=n) for n in (1, 2)]
    filled = [inpainting.seamless(y, x, hole) for y in made]
    for y in (*filled, inpainting.mean_colour(x, hole), inpainting.smooth(x, hole), inpainting.biharmonic(x, hole)):
        assert torch.equal(y[(~hole).expand_as(y)], x[(~hole).expand_as(x)])
        assert not torch.equal(y, x)


def test_baselines_are_exact_where_they_should_be(load: Callable[[str], ModuleType]) -> None:
    inpainting, hole = load("inpainting"), load("inpainting").holes(1, 20, seed=3)
    flat = torch.full((1, 3, 20, 20), 0.25)
    torch.testing.assert_close(inpainting.mean_colour(torch.where(hole, 0.9, flat), hole), flat)
    hole = torch.zeros(1, 1, 24, 20, dtype=torch.bool)
    hole[..., 8:14, 7:12] = True
    plane = ramp(24, 20)  # a solution of the biharmonic equation
    torch.testing.assert_close(inpainting.biharmonic(torch.where(hole, 0.9, plane), hole), plane, rtol=0, atol=1e-5)


@given(seed=st.integers(0, 2**31), height=st.integers(4, 40), width=st.integers(4, 40))
@settings(max_examples=20, deadline=None)
def test_a_smooth_filling_is_made_of_means_of_what_is_known(
    load: Callable[[str], ModuleType], seed: int, height: int, width: int
) -> None:
    smooth, generator = load("inpainting").smooth, torch.Generator().manual_seed(seed)
    x, hole = images(3, 2, height, width, seed=seed), torch.rand(3, 1, height, width, generator=generator) < 0.95
    hole[..., :4, :4] = torch.eye(4).bool()  # something is known even where a rest of odd sizes is not looked at
    y, known = smooth(x, hole), (~hole).expand_as(x)
    assert torch.equal(y[known], x[known])
    assert torch.equal(y, smooth(torch.where(hole, torch.nan, x), hole))
    low, high = x.masked_fill(hole, 2).amin((2, 3), True), x.masked_fill(hole, -2).amax((2, 3), True)
    assert ((low - 1e-6 <= y) & (y <= high + 1e-6)).all()  # rounding of the means


def test_a_corner_fills_a_long_picture(load: Callable[[str], ModuleType]) -> None:
    hole = torch.ones(1, 1, 4, 60, dtype=torch.bool)
    hole[..., :2, :2] = False
    flat = torch.full((1, 3, 4, 60), 0.25)
    torch.testing.assert_close(load("inpainting").smooth(flat.masked_fill(hole, 0.9), hole), flat)


def test_more_rounds_of_means_come_to_a_solution_of_laplaces_equation(load: Callable[[str], ModuleType]) -> None:
    hole = torch.zeros(1, 1, 24, 20, dtype=torch.bool)
    hole[..., 8:14, 7:12] = True
    plane = ramp(24, 20)  # a solution itself
    errors = [(load("inpainting").smooth(plane, hole, rounds) - plane).abs().max() for rounds in (0, 4, 200)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_a_seamless_filling_has_lost_its_tint_and_kept_its_detail(load: Callable[[str], ModuleType]) -> None:
    inpainting, x = load("inpainting"), 0.5 * images(3, 3, 24, 20)
    hole = inpainting.holes(3, 24, seed=2)[..., :20]
    tint = torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    found, known = inpainting.seamless(x + tint, x, hole), (~hole).expand_as(x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)
    assert torch.equal(found[known], x[known])
    assert torch.equal(inpainting.seamless(images(3, 3, 24, 20, seed=1), x, hole)[known], x[known])


def test_errors_by_place_are_those_of_the_edge_and_of_the_middle(load: Callable[[str], ModuleType]) -> None:
    x, hole, middle = images(1, 3, 12, 14), torch.zeros(2, 1, 1, 12, 14, dtype=torch.bool), slice(5, 8)
    hole[0, ..., 3:10, 3:10] = hole[1, ..., 4:9, 4:9] = True
    made = x + 2 / 255 * hole[0] + 4 / 255 * hole[1]  # 1 grey level at the edge, 3 further in
    found = load("inpainting").by_place(made, x, hole[0])
    assert found == {"mean_error_edge": pytest.approx(1, abs=1e-4), "mean_error_middle": pytest.approx(3, abs=1e-4)}
    made[..., middle, middle] = x[..., middle, middle]
    assert load("inpainting").by_place(made, x, hole[0])["mean_error_middle"] == pytest.approx(0, abs=1e-4)


def test_errors_are_those_of_the_hole_alone_in_grey_levels(load: Callable[[str], ModuleType]) -> None:
    inpainting, x = load("inpainting"), images(2, 3, 8, 6)
    hole = torch.zeros(2, 1, 8, 6, dtype=torch.bool)
    hole[0, :, 2:4, 1:5] = True
    found = inpainting.error_in_hole(torch.where(hole, x + 2 / 255, x - 1), x, hole)
    assert found["mean_error"] == pytest.approx(1, abs=1e-4)
    assert found["root_mean_square_error"] == pytest.approx(1, abs=1e-4)


def test_shrinking_keeps_planes_and_does_not_alias(load: Callable[[str], ModuleType]) -> None:
    example = load("super_resolution")
    small = example.shrink(ramp(32, 48))
    step = small[..., 2:-2, 2:-2].diff(dim=-1)  # away from the border, where pixels are missing
    torch.testing.assert_close(step, ramp(32, 48).diff(dim=-1)[..., :1, :1].expand_as(step) * 4, rtol=0, atol=1e-5)
    wave = torch.cos(2 * torch.pi * torch.arange(48) / 3).expand(1, 3, 32, -1)  # too fine for the small image
    assert example.shrink(wave)[..., 2:-2, 2:-2].abs().max() < 0.05
    assert example.bicubic(small).shape == (1, 3, 32, 48)


def test_a_consistent_image_is_closer_to_what_was_given(load: Callable[[str], ModuleType]) -> None:
    example, x = load("super_resolution"), 0.5 * images(2, 3, 32, 48)
    tinted = x + 0.2
    torch.testing.assert_close(example.consistent(tinted, example.shrink(x)), x, rtol=0, atol=1e-5)
    made, small = 0.5 * images(2, 3, 32, 48, seed=1), example.shrink(0.5 * images(2, 3, 32, 48, seed=2))
    before, after = (example.shrink(y) - small for y in (made, example.consistent(made, small)))
    assert after.square().mean() < 0.2 * before.square().mean()


def test_photographs_are_nearest_to_themselves(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    classifier = load("classifier")
    torch.manual_seed(0)
    model = classifier.Classifier(5, 8).eval()
    x = images(30, 3, 32, 32)
    itself, other = model.compare(x, x), model.compare(0.5 * x, x)
    assert itself["precision"] == itself["recall"] == 1
    assert itself["frechet"] < 1e-9 < other["frechet"]
    classifier.save(model, tmp_path / "classifier.safetensors")
    again = classifier.load(tmp_path / "classifier.safetensors", torch.device("cpu"))
    assert torch.equal(again.of_all(x)[0], model.of_all(x)[0])
    assert model.accuracy(x, model.of_all(x)[1]) == 1


SMOKE = """
import importlib, sys
for task in ("class_conditional", "super_resolution", "inpainting", "tradeoff"):
    given = []
    if task != "class_conditional":
        given += ["--classifier", f"{sys.argv[1]}/classifier.safetensors"]
    if task in ("super_resolution", "inpainting"):
        given += ["--first-stage", f"{sys.argv[1]}/first_stage.safetensors"]
    if task == "tradeoff":
        given += ["--factors", "1", "8"]
    output = sys.argv[1] if task == "class_conditional" else f"{sys.argv[1]}/{task}"
    importlib.import_module(task).main(["--preset", "smoke", "--output", output, *given])
"""


def test_each_task_runs_in_its_shortest_setting(tmp_path: Path) -> None:
    run(EXAMPLE, "-c", SMOKE, tmp_path)
    for folder, pictures in {
        "": ("samples_1.png", "samples_2.png", "reconstructions.png"),
        "super_resolution": ("super_resolution.png", "large.png"),
        "inpainting": ("inpainting.png", "large.png"),
        "tradeoff": ("tradeoff.png", "samples_1.png", "samples_8.png"),
    }.items():
        assert all((tmp_path / folder / picture).stat().st_size > 10_000 for picture in pictures)
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert metrics["photographs"] == "patches of scikit-image's photographs"
        assert metrics["seconds"]["total"]["processor"] > 0
        if folder != "tradeoff":
            assert isinstance(ld.load(tmp_path / folder / "model.safetensors"), ld.LatentDiffusion)
    assert json.loads((tmp_path / "inpainting" / "metrics.json").read_text())["known_pixels_exact"] is True
    factors = json.loads((tmp_path / "tradeoff" / "metrics.json").read_text())["factors"]
    assert list(factors) == ["1", "8"]
    for factor, one in factors.items():
        expected = ld.UNet if factor == "1" else ld.LatentDiffusion
        assert isinstance(ld.load(tmp_path / "tradeoff" / f"model_{factor}.safetensors"), expected)
        assert [point["seconds"] for point in one["course"]] == sorted(point["seconds"] for point in one["course"])
