"""The example of semantic maps in its shortest setting, and the rule that makes its maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import latentdiff as ld
from programs import run

EXAMPLE = Path(__file__).parent.parent / "examples" / "semantic_map"


def test_the_example_runs_and_writes_a_model_pictures_and_figures(tmp_path: Path) -> None:
    run(EXAMPLE, EXAMPLE / "main.py", "--preset", "smoke", "--output", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("in_windows", "as_a_whole", "of_first_stage", "with_mirrored_map"):
        assert 0 <= metrics[f"agreement_{name}"] <= 1
    model = ld.load(tmp_path / "model.safetensors")
    assert isinstance(model, ld.LatentDiffusion)
    assert isinstance(model.condition_encoder, ld.SpatialEncoder)
    with Image.open(tmp_path / "made_0.jpg") as picture:
        assert picture.size == (64, 64)
    for picture_of in ("map_0.jpg", "losses.png"):
        assert (tmp_path / picture_of).stat().st_size > 5_000


RULE = """
import torch
from data import Crops, Maps, Photographs, enlarged, smoothed

torch.manual_seed(0)
left, right = torch.full((3, 40, 30), -0.5), torch.full((3, 40, 30), 0.5)
right[0] += 0.4 * torch.randn(40, 30).clamp(-1, 1)
photo = torch.cat([left, right], 2)
maps = Maps(Photographs([photo], [], ""), classes=2)
labels = maps(photo[None])[0]
assert labels.shape == (40, 60)
dark, light = labels[0, 0], labels[0, -1]
assert dark != light
assert (labels[:, :22] == dark).all() and (labels[:, 38:] == light).all()  # but for the reach of the smoothing
assert torch.equal(maps(photo[None].flip(-1))[0], labels.flip(-1))
shown = maps.shown(labels[None])[0]
assert shown.shape == photo.shape and (shown[:, :, :20].mean() + 0.5).abs() < 0.1

crops = Crops([photo], [labels], side=16)
images, cut = crops.batch(5, 3)
assert images.shape == (5, 3, 16, 16) and cut.shape == (5, 16, 16)
again, _ = crops.batch(5, 3)
assert torch.equal(images, again) and not torch.equal(images, crops.batch(5, 4)[0])
both = torch.cat([photo, labels[None].float()])
places = both.unfold(1, 16, 1).unfold(2, 16, 1).flatten(1, 2).movedim(0, 1)
places = {place.numpy().tobytes() for part in (places, places.flip(-1)) for place in part.contiguous()}
for image, map_ in zip(images, cut):
    assert torch.cat([image, map_[None].float()]).numpy().tobytes() in places

assert enlarged(photo, 80).shape == (3, 80, 80)
assert torch.allclose(enlarged(left, 90), torch.full((3, 90, 90), -0.5), atol=1e-5)
x = torch.randn(1, 2, 20, 21, dtype=torch.float64)
assert torch.allclose(smoothed(x)[0, 1, 8, 9], x[0, 1, 2:15, 3:16].mean())
"""


def test_maps_follow_their_rule_and_crops_keep_picture_and_map_together() -> None:
    run(EXAMPLE, "-c", RULE)


DATA = """
import sys
from pathlib import Path
from data import load
photographs = load(Path(sys.argv[1]))
assert [tuple(image.shape) for image in photographs.train] == [(3, 10, 20), (3, 10, 22), (3, 10, 23), (3, 10, 24)]
assert [tuple(image.shape) for image in photographs.held_out] == [(3, 10, 21), (3, 10, 25)]
"""


@pytest.mark.parametrize("suffix", ["png", "JPG"])
def test_every_fourth_photograph_from_the_end_is_held_out_and_masks_are_left_out(tmp_path: Path, suffix: str) -> None:
    for number in range(6):
        Image.new("RGB", (20 + number, 10)).save(tmp_path / f"{number}.{suffix}")
        Image.new("L", (20 + number, 10)).save(tmp_path / f"{number}_mask.png")
    (tmp_path / "notes.txt").write_text("no picture")
    run(EXAMPLE, "-c", DATA, tmp_path)
