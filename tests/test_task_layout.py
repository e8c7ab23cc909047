"""Layouts and how well pictures keep to them; and the layout-to-image example in its shortest setting."""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentdiff as ld
from programs import run as execute

EXAMPLE = Path(__file__).parent.parent / "examples" / "rendered_scenes"
sys.path.insert(0, str(EXAMPLE))
check, layouts, scenes = (importlib.import_module(name) for name in ("check", "layouts", "scenes"))
sys.path.remove(str(EXAMPLE))  # other examples have modules of the same names

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS)
def test_boxes_lie_on_the_grid_in_the_picture_and_apart(seed: int) -> None:
    things = layouts.draw_layout(random.Random(seed))
    assert 1 <= len(things) <= layouts.MOST_THINGS
    taken = torch.zeros(scenes.SIZE, scenes.SIZE)
    for thing in things:
        left, top, right, bottom = (round(edge * scenes.SIZE) for edge in thing.box)
        assert thing.box == tuple(edge / scenes.SIZE for edge in (left, top, right, bottom))
        assert 0 <= left < right <= scenes.SIZE
        assert 0 <= top < bottom <= scenes.SIZE
        taken[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] += 1
    assert taken.max() <= 1  # a point on each side is theirs too


@given(seed=SEEDS)
def test_things_come_in_reading_order(seed: int) -> None:
    corners = [thing.box[1::-1] for thing in layouts.draw_layout(random.Random(seed))]
    assert corners == sorted(corners)


@given(seed=SEEDS)
def test_a_layout_can_be_read_from_its_tokens(seed: int) -> None:
    things = layouts.draw_layout(random.Random(seed))
    drawn = scenes.Scenes.of([things])
    encoder = ld.LayoutEncoder(
        num_classes=20, dim=4, depth=1, max_objects=layouts.MOST_THINGS, sections=layouts.SECTIONS, num_heads=1
    )
    ids = encoder.tokenize(drawn.boxes, layouts.classes(drawn), drawn.mask)[0].tolist()
    read = []
    for kind, *corners in zip(ids[0::3], ids[1::3], ids[2::3], strict=True):
        if kind < encoder.vocabulary_size - 1:
            cells = (
                axis / (layouts.SECTIONS - 1) for corner in corners for axis in divmod(corner, layouts.SECTIONS)[::-1]
            )
            read.append(scenes.Thing(scenes.SHAPES[kind // 5], list(scenes.COLOURS)[kind % 5], tuple(cells)))
    assert read == things


@given(seed=SEEDS)
def test_renderings_keep_to_their_layout(seed: int) -> None:
    things = layouts.draw_layout(random.Random(seed))
    found = check.find(scenes.render(scenes.Scenes.of([things]), seed)[0])
    agreement = layouts.agreement([things], [found])
    assert agreement.pop("mean IoU") > 0.7  # boxes are read to about half a point, of five or more, on each side
    assert set(agreement.values()) == {1.0}


def test_each_share_says_what_it_names() -> None:
    asked = [
        scenes.Thing("circle", "red", (0.0, 0.0, 0.25, 0.25)),
        scenes.Thing("cross", "blue", (0.5, 0.5, 1.0, 0.75)),
    ]
    shifted = scenes.Thing("cross", "blue", (0.5, 0.625, 1.0, 0.875))  # half of the height: 1 / 3
    green, square = (scenes.Thing("circle", "green", asked[0].box), scenes.Thing("square", "red", asked[0].box))
    extra = scenes.Thing("circle", "red", (0.0, 0.75, 0.25, 1.0))
    expected = {
        "right": ([*asked], (1, 1, 1, 1, 1)),
        "in another order": (asked[::-1], (1, 1, 1, 1, 1)),
        "nothing": ([], (0, 0, 0, 0, 0)),
        "one missing": ([asked[1]], (0.5, 0.5, 0.5, 0.5, 0)),
        "one too many": ([extra, *asked], (1, 1, 1, 1, 0)),
        "shifted": ([asked[0], shifted], (2 / 3, 1, 1, 1, 1)),
        "another colour": ([green, asked[1]], (1, 1, 0.5, 0.5, 1)),
        "another shape": ([square, asked[1]], (1, 0.5, 1, 0.5, 1)),
        "elsewhere": ([extra, asked[1]], (0.5, 0.5, 0.5, 0.5, 1)),
    }
    for found, values in expected.values():
        assert tuple(layouts.agreement([asked], [found]).values()) == pytest.approx(values)


def test_things_not_pictures_are_averaged() -> None:
    one, other = (scenes.Thing("circle", "red", (x, 0.0, x + 0.25, 0.25)) for x in (0.0, 0.5))
    agreement = layouts.agreement([[one, other], [one]], [[one, other], []])
    assert agreement["shape"] == pytest.approx(2 / 3)
    assert agreement["number of things"] == pytest.approx(1 / 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the shortest run wrote, with a first stage given to it."""
    output = tmp_path_factory.mktemp("layout_to_image")
    ld.save(ld.Autoencoder(base_channels=8, channel_multipliers=(1, 1, 1), blocks_per_level=1), output / "given")
    script, given = EXAMPLE / "layout_to_image.py", output / "given"
    execute(EXAMPLE, script, "--preset", "smoke", "--output", output, "--first-stage", given)
    return output


def test_the_example_writes_pictures_and_figures(run: Path) -> None:
    agreement = json.loads((run / "metrics.json").read_text())["agreement"]
    assert agreement["real"]["shape and colour"] == agreement["real"]["number of things"] == 1
    assert agreement["real"]["mean IoU"] > 0.9 > agreement["chance"]["mean IoU"]
    assert (run / "samples.png").stat().st_size > 10_000


def test_the_saved_model_takes_layouts_and_has_the_first_stage_that_was_given(run: Path) -> None:
    model = ld.load(run / "model.safetensors")
    assert isinstance(model, ld.LatentDiffusion)
    boxes = torch.tensor([[[0.0, 0.0, 0.25, 0.5]]])
    layout = {"boxes": boxes, "classes": torch.tensor([[3]])}
    images = model.generate(layout, sampler=ld.Sampler("ddim", steps=2), generator=ld.CounterNoise(0))
    assert images.shape == (1, 3, scenes.SIZE, scenes.SIZE)
    assert images.isfinite().all()
    given_stage = ld.load(run / "given")
    assert isinstance(given_stage, ld.Autoencoder)
    assert torch.equal(model.autoencoder.last_layer, given_stage.last_layer)
