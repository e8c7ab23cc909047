"""Captions of scenes, the scenes that they ask for, and how many of their words a picture obeys."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from check import UNKNOWN
from scenes import COLOURS, SHAPES, SIZE, Box, Thing

NUMBERS = {"a": 1, "two": 2, "three": 3}
PLACES = ("top left", "top right", "bottom left", "bottom right")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first thing is, seen from the second."""

Kind = Literal["seen", "colour and shape", "number and shape", "shapes and relation"]
KINDS: tuple[Kind, ...] = ("seen", "colour and shape", "number and shape", "shapes and relation")

UNSEEN_COLOURS = {("red", "triangle"), ("green", "circle"), ("blue", "cross"), ("yellow", "square")}
UNSEEN_NUMBERS = {("three", "cross"), ("two", "circle")}
UNSEEN_RELATIONS = {
    ("triangle", "left of", "square"),
    ("square", "right of", "triangle"),
    ("circle", "above", "cross"),
    ("cross", "below", "circle"),
}
"""With each relation its mirror image, which is the same scene."""

SIDES = (6, 8)
"""Sides that a thing may have, in points."""

GRID = 2
"""Boxes begin and end at multiples of so many points, where the latents' points do."""


@dataclass(frozen=True)
class Mention:
    """A colour and a shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Caption:
    """A sentence: so many of a kind; or one of a kind at a place; or one of a kind beside another.

    Attributes:
        number: Of `NUMBERS`; "a" with a place or a relation.
        first: What there is.
        place: Of `PLACES`.
        relation: Of `RELATIONS`.
        second: What the relation is to.
    """

    number: str
    first: Mention
    place: str | None = None
    relation: str | None = None
    second: Mention | None = None

    @property
    def text(self) -> str:
        """The words."""
        start = f"{self.number} {self.first.colour} {self.first.shape}"
        if self.number != "a":
            return start + ("es" if start.endswith("s") else "s")
        if self.place is not None:
            return f"{start} at the {self.place}"
        if self.second is not None:
            return f"{start} {self.relation} a {self.second.colour} {self.second.shape}"
        return start

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """What there is, one mention for each thing."""
        return (self.first,) * NUMBERS[self.number] if self.second is None else (self.first, self.second)

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of combinations in it that training never sees; "seen" if there are none."""
        unseen: set[Kind] = set()
        if any((mention.colour, mention.shape) in UNSEEN_COLOURS for mention in self.mentions):
            unseen.add("colour and shape")
        if (self.number, self.first.shape) in UNSEEN_NUMBERS:
            unseen.add("number and shape")
        if self.second and (self.first.shape, self.relation, self.second.shape) in UNSEEN_RELATIONS:
            unseen.add("shapes and relation")
        return unseen or {"seen"}


def draw_caption(kind: Kind, draw: random.Random) -> Caption:
    """A caption whose unseen combinations are of this kind only; numbers, places and relations are equally frequent."""
    while True:
        first, second = (Mention(draw.choice(list(COLOURS)), draw.choice(SHAPES)) for _ in range(2))
        caption = draw.choice(
            (
                Caption(draw.choice(list(NUMBERS)), first),
                Caption("a", first, place=draw.choice(PLACES)),
                Caption("a", first, relation=draw.choice(list(RELATIONS)), second=second),
            )
        )
        if caption.kinds == {kind} and first != caption.second:
            return caption


def compose(caption: Caption, draw: random.Random) -> list[Thing]:
    """A scene that a caption asks for: things in quarters of the picture that do not touch, elsewhere at random."""
    while True:
        boxes = draw_apart(len(caption.mentions), _draw_box, draw)
        pairs = zip(caption.mentions, boxes, strict=True)
        things = [Thing(mention.shape, mention.colour, box) for mention, box in pairs]
        if _is_clear(caption, things):
            return things


def draw_apart(count: int, draw_box: Callable[[random.Random], Box], draw: random.Random) -> list[Box]:
    """Boxes that do not touch, one after the other; anew where no room is found for the next."""
    boxes: list[Box] = []
    while len(boxes) < count:
        candidates = (draw_box(draw) for _ in range(20))
        box = next((box for box in candidates if all(_is_apart(box, other) for other in boxes)), None)
        boxes = [] if box is None else [*boxes, box]
    return boxes


def _is_apart(a: Box, b: Box) -> bool:
    """Whether boxes leave a gap between them."""
    gap = 1.5 / SIZE
    return any(a[i] >= b[i + 2] + gap or b[i] >= a[i + 2] + gap for i in range(2))


def _draw_box(draw: random.Random) -> Box:
    """A box in one of the quarters of the picture."""
    side, half = draw.choice(SIDES), SIZE // 2
    left, top = (draw.choice((0, half)) + draw.randrange(0, half - side + 1, GRID) for _ in range(2))
    return left / SIZE, top / SIZE, (left + side) / SIZE, (top + side) / SIZE


def _is_clear(caption: Caption, things: Sequence[Thing]) -> bool:
    """Whether nobody would argue about the place or the relation."""
    if caption.place is not None:
        return all(abs(position - 0.5) > 1.5 / SIZE for position in things[0].centre) and all(
            _place_words(caption.place, things[0])
        )
    if caption.relation is None:
        return True
    (x, y), (other_x, other_y) = (thing.centre for thing in things)
    along, across = sorted((abs(x - other_x), abs(y - other_y)), reverse=True)
    return across < 0.6 * along and _is_related(caption.relation, *things)


def obeyed(caption: Caption, found: Sequence[Thing]) -> dict[str, bool]:
    """Which of a caption's words a picture obeys.

    Args:
        caption: What was asked for.
        found: What is in the picture.

    Returns:
        For each word that says something whether it is obeyed: the number, if there are that many things in all; a
        colour and a shape, if the thing that is meant has it, or all things where they are counted; a place or a
        relation, if it holds of the things that are meant. These are the things that make most words true.
    """
    if caption.second is not None:
        pairs = permutations([*found, *[_NOTHING] * max(0, 2 - len(found))], 2)
        words = max((_of_two(caption, a, b) for a, b in pairs), key=lambda words: sum(words.values()))
    elif caption.place is not None:
        words = max((_at_place(caption, thing) for thing in found or [_NOTHING]), key=lambda words: sum(words.values()))
    else:
        words = {
            caption.first.colour: bool(found) and all(thing.colour == caption.first.colour for thing in found),
            caption.first.shape: bool(found) and all(thing.shape == caption.first.shape for thing in found),
        }
    return {caption.number: len(found) == len(caption.mentions), **words}


def role(word: str) -> str:
    """What a word of `obeyed` says: number, colour, shape, place or relation."""
    last = word.split()[-1]
    roles = {"number": NUMBERS, "colour": COLOURS, "shape": SHAPES, "relation": RELATIONS}
    return next((name for name, words in roles.items() if word in words or last in words), "place")


_NOTHING = Thing(UNKNOWN, UNKNOWN, (0.5, 0.5, 0.5, 0.5))


def _of_two(caption: Caption, a: Thing, b: Thing) -> dict[str, bool]:
    second, relation = caption.second or caption.first, caption.relation or ""
    return {
        caption.first.colour: a.colour == caption.first.colour,
        caption.first.shape: a.shape == caption.first.shape,
        relation: _is_related(relation, a, b) and _NOTHING not in (a, b),
        f"second {second.colour}": b.colour == second.colour,
        f"second {second.shape}": b.shape == second.shape,
    }


def _at_place(caption: Caption, thing: Thing) -> dict[str, bool]:
    place = caption.place or ""
    vertical, horizontal = _place_words(place, thing)
    row, column = place.split()
    return {
        caption.first.colour: thing.colour == caption.first.colour,
        caption.first.shape: thing.shape == caption.first.shape,
        row: thing is not _NOTHING and vertical,
        column: thing is not _NOTHING and horizontal,
    }


def _place_words(place: str, thing: Thing) -> tuple[bool, bool]:
    """Whether a thing is as high or low, and as far left or right, as the place says."""
    row, column = place.split()
    x, y = thing.centre
    return (y < 0.5) == (row == "top"), (x < 0.5) == (column == "left")


def _is_related(relation: str, a: Thing, b: Thing) -> bool:
    """Whether the way from `b` to `a` goes more in the relation's direction than in any other."""
    x, y = (own - other for own, other in zip(a.centre, b.centre, strict=True))
    along_x, along_y = RELATIONS[relation]
    return x * along_x + y * along_y > abs(x * along_y) + abs(y * along_x)
