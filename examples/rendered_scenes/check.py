"""What can be seen in a picture, by closed formulas: no trained network is asked.

Light and ground are grey: they change how strong a colour is, not which. So the spread of a point's red, green and
blue says how much of it a thing covers, and what is left when their mean is taken off says the thing's colour.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scenes import COLOURS, INSIDE, Box, Thing, coverage
from scipy import ndimage
from torch import Tensor

STRONG = 0.25
"""Spread of red, green and blue, of 1, from which a point belongs to a thing: about half of the palest colour's."""

LEAST_AREA = 6.0
"""Points that a thing covers at least."""

LEAST_OVERLAP = 0.65
"""Of a thing and the shape that it is called, intersection over union."""

UNKNOWN = "unknown"
"""The name of a shape that is none."""

Map = NDArray[np.float64]


def find(image: Tensor) -> list[Thing]:
    """The things in an image.

    Args:
        image: `[3, height, width]`, in [-1, 1].

    Returns:
        Connected regions of one colour, their shape that which overlaps most in the region's box, or `UNKNOWN`.
    """
    rgb = (image.double().clamp(-1, 1).numpy() + 1) / 2
    strength: Map = rgb.max(0) - rgb.min(0)
    nearest = _nearest_colour(rgb)
    regions = [
        (name, region)
        for number, name in enumerate(COLOURS)
        for region in _regions((strength > STRONG) & (nearest == number))
    ]
    taken = np.logical_or.reduce([region for _, region in regions]) if regions else np.zeros_like(nearest, bool)
    things = []
    for name, region in regions:
        around = ndimage.binary_dilation(region, np.ones((3, 3))) & (region | ~taken)
        alpha = np.where(around, strength / np.quantile(strength[region], 0.8), 0.0).clip(0, 1)
        alpha[alpha < 0.12] = 0
        if alpha.sum() >= LEAST_AREA:
            box = _box(alpha)
            things.append(Thing(_shape(alpha, box), name, box))
    return things


def find_all(images: Tensor) -> list[list[Thing]]:
    """The things in each of many images, `[images, 3, height, width]`."""
    return [find(image) for image in images]


def _nearest_colour(rgb: Map) -> NDArray[np.int64]:
    """The number of the colour whose hue is nearest, at each point."""
    palette = np.array(list(COLOURS.values()))
    palette = palette - palette.mean(1, keepdims=True)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    return np.tensordot(palette, rgb - rgb.mean(0), 1).argmax(0)


def _regions(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The connected parts of a mask; specks are left out."""
    labels, count = ndimage.label(mask)
    parts = (labels == number for number in range(1, count + 1))
    return [part for part in parts if part.sum() >= LEAST_AREA / 2]


def _box(alpha: Map) -> Box:
    """Left, top, right, bottom: the outermost rows and columns count as far as they are covered."""
    (left, right), (top, bottom) = _extent(alpha.max(0)), _extent(alpha.max(1))
    return left, top, right, bottom


def _extent(profile: Map) -> tuple[float, float]:
    """First and last place, in [0, 1], of what covers a profile."""
    first, last = np.flatnonzero(profile > 0)[[0, -1]]
    return float(first + 1 - profile[first]) / len(profile), float(last + profile[last]) / len(profile)


def _shape(alpha: Map, box: Box) -> str:
    """The shape that overlaps most with what is covered."""
    overlaps = {name: _overlap(alpha, coverage(inside, torch.tensor(box)).numpy()) for name, inside in INSIDE.items()}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= LEAST_OVERLAP else UNKNOWN


def _overlap(a: Map, b: Map) -> float:
    """Intersection over union of two coverages."""
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def intersection_over_union(a: Thing, b: Thing) -> float:
    """Of two boxes."""
    left, top = max(a.box[0], b.box[0]), max(a.box[1], b.box[1])
    right, bottom = min(a.box[2], b.box[2]), min(a.box[3], b.box[3])
    both = max(0.0, right - left) * max(0.0, bottom - top)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a.box, b.box)]
    return both / (sum(areas) - both) if both else 0.0
