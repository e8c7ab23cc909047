"""Rendered scenes, their captions and the check of pictures; and the text-to-image example in its shortest setting."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
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
captions, check, scenes = (importlib.import_module(name) for name in ("captions", "check", "scenes"))
sys.path.remove(str(EXAMPLE))  # other examples have modules of the same names

AREAS = {"circle": math.pi / 4, "square": 1.0, "triangle": 1 / 2, "cross": 5 / 9}
"""Of shapes, in areas of their boxes."""

SEEDS = st.integers(0, 2**32 - 1)


def picture(*things: object, seed: int = 0) -> torch.Tensor:
    """One scene."""
    return scenes.render(scenes.Scenes.of([things]), seed)[0]


def scene(kind: str, seed: int) -> tuple[captions.Caption, list[scenes.Thing]]:  # type: ignore[name-defined]
    """A caption of a kind and a scene that it asks for."""
    draw = random.Random(seed)
    caption = captions.draw_caption(kind, draw)
    return caption, captions.compose(caption, draw)


@pytest.mark.parametrize("shape", scenes.SHAPES)
@given(left=st.floats(0, 7), top=st.floats(0, 7), width=st.floats(5, 9), height=st.floats(5, 9))
def test_a_shape_covers_its_share_of_its_box(shape: str, left: float, top: float, width: float, height: float) -> None:
    box = torch.tensor([left, top, left + width, top + height]).double() / scenes.SIZE
    area = scenes.coverage(scenes.INSIDE[shape], box).sum().item()
    # the border is about as long as that of the box, twice that of a cross; places are 1 / 4 of a point apart
    assert area == pytest.approx(AREAS[shape] * width * height, abs=(width + height) / 4)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_shape_that_moves_by_whole_points_looks_the_same(shape: str) -> None:
    box = torch.tensor([1.3, 0.7, 8.1, 6.9]).double()
    moved = box + torch.tensor([5, 7, 5, 7])
    maps = [scenes.coverage(scenes.INSIDE[shape], corners / scenes.SIZE) for corners in (box, moved)]
    torch.testing.assert_close(maps[0].roll((7, 5), (0, 1)), maps[1], rtol=0, atol=0)


@given(seed=SEEDS)
def test_pictures_are_in_range_and_functions_of_their_seed(seed: int) -> None:
    things = scene("seen", seed)[1]
    drawn, again = (picture(*things, seed=seed) for _ in range(2))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, picture(*things, seed=seed ^ 1))
    assert drawn.abs().max() <= 1


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_the_check_finds_a_thing_where_it_is(shape: str, colour: str) -> None:
    for seed in range(5):
        draw = random.Random(seed)
        left, top = draw.uniform(0, 9), draw.uniform(0, 9)
        box = tuple(x / scenes.SIZE for x in (left, top, left + draw.uniform(5, 7), top + draw.uniform(5, 7)))
        (found,) = check.find(picture(scenes.Thing(shape, colour, box), seed=seed))
        assert (found.shape, found.colour) == (shape, colour)
        # the tip of a triangle is narrower than a point
        assert found.box == pytest.approx(box, abs=1 / scenes.SIZE)


def test_the_check_finds_nothing_in_empty_grounds_and_noise_of_grey() -> None:
    assert check.find(torch.linspace(-1, 1, 16).expand(3, 16, 16)) == []
    noise = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    assert check.find((2 * noise - 1).expand(3, -1, -1)) == []


def test_a_shape_that_is_none_is_unknown() -> None:
    square = picture(scenes.Thing("square", "blue", (0.125, 0.125, 0.875, 0.875)))
    square[:, 4:12, 4:12] = square[:, :1, :1]  # a frame
    assert [thing.shape for thing in check.find(square)] == [check.UNKNOWN]


@pytest.mark.parametrize("kind", captions.KINDS)
@given(seed=SEEDS)
def test_renderings_obey_every_word(kind: str, seed: int) -> None:
    caption, things = scene(kind, seed)
    words = captions.obeyed(caption, check.find(picture(*things, seed=seed)))
    assert all(words.values())
    assert {captions.role(word) for word in words} >= {"number", "colour", "shape"}


@pytest.mark.parametrize("kind", captions.KINDS)
@given(seed=SEEDS)
def test_things_stand_on_the_grid_each_in_a_quarter_of_its_own(kind: str, seed: int) -> None:
    things = scene(kind, seed)[1]
    edges = [edge * scenes.SIZE / captions.GRID for thing in things for edge in thing.box]
    assert all(edge.is_integer() for edge in edges)
    quarters = [tuple(int(2 * first) for first in thing.box[:2]) for thing in things]
    assert quarters == [tuple(math.ceil(2 * last) - 1 for last in thing.box[2:]) for thing in things]
    assert len(set(quarters)) == len(things)


@given(seed=SEEDS)
def test_an_empty_picture_obeys_no_word(seed: int) -> None:
    assert not any(captions.obeyed(scene("seen", seed)[0], []).values())


@given(seed=SEEDS)
def test_a_mirrored_picture_disobeys_left_and_right_alone(seed: int) -> None:
    caption, things = scene("seen", seed)
    words = captions.obeyed(caption, check.find(picture(*things, seed=seed).flip(-1)))
    assert {word for word, right in words.items() if not right} == {
        word for word in words if word.split()[0] in ("left", "right")
    }


def recoloured(thing: object, colour: str) -> object:
    """The same thing in another colour."""
    return scenes.Thing(thing.shape, colour, thing.box)  # type: ignore[attr-defined]


def test_each_word_is_judged_by_itself() -> None:
    red, green = captions.Mention("red", "circle"), captions.Mention("green", "square")
    a = scenes.Thing("circle", "red", (0.1, 0.1, 0.4, 0.4))
    b = scenes.Thing("square", "green", (0.6, 0.1, 0.9, 0.4))
    c = scenes.Thing("square", "green", (0.6, 0.6, 0.9, 0.9))
    beside = captions.Caption("a", red, relation="left of", second=green)
    wrong = {
        "a": [a, b, c],
        "red": [recoloured(a, "blue"), b],
        "circle": [scenes.Thing("cross", "red", a.box), b],
        "left of": [scenes.Thing("circle", "red", (0.7, 0.6, 1.0, 0.9)), b],
        "second green": [a, recoloured(b, "purple")],
    }
    for word, things in wrong.items():
        assert [name for name, right in captions.obeyed(beside, things).items() if not right] == [word]
    many = captions.Caption("two", green)
    assert captions.obeyed(many, [b, c]) == {"two": True, "green": True, "square": True}
    assert captions.obeyed(many, [a, b]) == {"two": True, "green": False, "square": False}
    assert captions.obeyed(many, [b]) == {"two": False, "green": True, "square": True}
    assert beside.text == "a red circle left of a green square"
    assert many.text == "two green squares"
    assert captions.Caption("three", captions.Mention("blue", "cross")).text == "three blue crosses"


PHRASES = {
    "colour and shape": "red triangle|green circle|blue cross|yellow square",
    "number and shape": r"three \w+ crosses|two \w+ circles",
    "shapes and relation": r"triangle left of a \w+ square|square right of a \w+ triangle"
    r"|circle above a \w+ cross|cross below a \w+ circle",
}
"""What only captions of a kind may say."""


@pytest.mark.parametrize("kind", captions.KINDS)
def test_captions_say_what_is_unseen_of_their_kind_and_no_other(kind: str) -> None:
    draw = random.Random(0)
    texts = [captions.draw_caption(kind, draw).text for _ in range(300)]
    for name, phrases in PHRASES.items():
        assert all((re.search(phrases, text) is not None) == (name == kind) for text in texts)


def test_a_relation_is_unseen_with_its_mirror_image() -> None:
    back = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {(b, back[relation], a) for a, relation, b in captions.UNSEEN_RELATIONS} == captions.UNSEEN_RELATIONS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the shortest run wrote."""
    output = tmp_path_factory.mktemp("text_to_image")
    execute(EXAMPLE, EXAMPLE / "text_to_image.py", "--preset", "smoke", "--output", output)
    return output


def test_the_example_writes_pictures_and_figures(run: Path) -> None:
    shares = json.loads((run / "metrics.json").read_text())["shares"]
    assert set(shares) == {*captions.KINDS, "unseen"}
    for kind in captions.KINDS:
        assert shares[kind]["real"]["words"] == shares[kind]["real"]["whole captions"] == 1
        assert 0 <= shares[kind]["guided"]["words"] < 1
    assert (run / "samples.png").stat().st_size > 10_000


def test_the_saved_model_knows_every_word_and_takes_strings(run: Path) -> None:
    model = ld.load(run / "model.safetensors")
    assert isinstance(model, ld.LatentDiffusion)
    encoder = model.condition_encoder
    assert isinstance(encoder, ld.TextEncoder)
    draw = random.Random(0)
    texts = [captions.draw_caption(kind, draw).text for kind in captions.KINDS for _ in range(50)]
    tokens = encoder.tokenize(texts)
    assert torch.equal(tokens["mask"], tokens["ids"] != 0)
    assert tokens["mask"].sum(1).tolist() == [len(text.split()) for text in texts]
    sampler = ld.Sampler("ddim", steps=2)
    images = model.generate(["two red circles", texts[0]], sampler=sampler, generator=ld.CounterNoise(0))
    assert images.shape == (2, 3, scenes.SIZE, scenes.SIZE)
    assert images.isfinite().all()
