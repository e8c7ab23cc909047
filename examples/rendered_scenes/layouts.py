"""Layouts of coloured shapes, and how well a picture keeps to one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from captions import GRID, draw_apart
from check import intersection_over_union
from scenes import COLOURS, SHAPES, SIZE, Box, Scenes, Thing
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SECTIONS = SIZE // GRID + 1
"""Boxes begin and end on a grid, which is that whose places `LayoutEncoder` numbers."""

SIDES = (6, 8)
"""Of boxes, in points: widths and heights are drawn apart, so that shapes are stretched."""

MOST_THINGS = 4


def draw_layout(draw: random.Random) -> list[Thing]:
    """One to four things whose boxes do not touch, in reading order, so that a token's place says roughly where."""
    boxes = sorted(draw_apart(draw.randint(1, MOST_THINGS), _draw_box, draw), key=lambda box: (box[1], box[0]))
    return [Thing(draw.choice(SHAPES), draw.choice(list(COLOURS)), box) for box in boxes]


def _draw_box(draw: random.Random) -> Box:
    width, height = draw.choice(SIDES), draw.choice(SIDES)
    left, top = (draw.randrange(0, SIZE - side + 1, GRID) for side in (width, height))
    return left / SIZE, top / SIZE, (left + width) / SIZE, (top + height) / SIZE


def classes(scenes: Scenes) -> Tensor:
    """One class for each shape in each colour, `[scenes, things]`."""
    return scenes.shapes * len(COLOURS) + scenes.colours


def agreement(layouts: Sequence[Sequence[Thing]], pictures: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """How well pictures keep to layouts.

    Args:
        layouts: What was asked for.
        pictures: What is found in the picture of each.

    Returns:
        Means over all things that were asked for, each matched with one thing in its picture so that their boxes
        overlap most in all: intersection over union of the boxes, 0 where none is left; the shares with the right
        shape, colour, and both, where none is left or none overlaps being wrong. And the share of pictures with as
        many things as were asked for.
    """
    matches = list[tuple[float, bool, bool]]()
    counted = 0
    for layout, found in zip(layouts, pictures, strict=True):
        counted += len(found) == len(layout)
        overlaps = np.array([[intersection_over_union(asked, thing) for thing in found] for asked in layout])
        overlaps = overlaps.reshape(len(layout), len(found))
        partner = dict(zip(*linear_sum_assignment(-overlaps), strict=True))
        for i, asked in enumerate(layout):
            overlap = float(overlaps[i, partner[i]]) if i in partner else 0.0
            thing = found[partner[i]] if overlap else None
            shape = thing is not None and thing.shape == asked.shape
            colour = thing is not None and thing.colour == asked.colour
            matches.append((overlap, shape, colour))
    overlap, shape, colour = np.array(matches, dtype=float).T
    return {
        "mean IoU": float(overlap.mean()),
        "shape": float(shape.mean()),
        "colour": float(colour.mean()),
        "shape and colour": float((shape * colour).mean()),
        "number of things": counted / len(layouts),
    }
