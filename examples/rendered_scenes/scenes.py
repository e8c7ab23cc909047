"""Scenes of coloured shapes on a grey ground, as tensors, and their rendering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

SIZE = 16
"""Points of a picture along each axis."""

SUBSAMPLES = 4
"""A point's coverage is the mean of this many places on each axis."""

COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.30, 0.95),
    "purple": (0.75, 0.15, 0.85),
}

INSIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda u, v: u.square() + v.square() <= 1,
    "square": lambda u, v: (u.abs() <= 1) & (v.abs() <= 1),
    "triangle": lambda u, v: (v <= 1) & (u.abs() <= (v + 1) / 2),
    "cross": lambda u, v: (torch.minimum(u.abs(), v.abs()) <= 1 / 3) & (torch.maximum(u.abs(), v.abs()) <= 1),
}
"""Which places belong to a shape, in coordinates that are -1 and 1 at the borders of its box, v downwards."""

SHAPES = tuple(INSIDE)

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in [0, 1]."""


@dataclass(frozen=True)
class Thing:
    """One shape in a scene.

    Attributes:
        shape: Of `SHAPES`.
        colour: Of `COLOURS`.
        box: Where it is.
    """

    shape: str
    colour: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, eq=False)
class Scenes:
    """Many scenes, filled up to the same number of things.

    Attributes:
        shapes: int64 `[scenes, things]`, numbers of `SHAPES`.
        colours: int64 `[scenes, things]`, numbers of `COLOURS`.
        boxes: `[scenes, things, 4]`, floats in [0, 1]: left, top, right, bottom.
        mask: bool `[scenes, things]`, True where there is a thing.
    """

    shapes: Tensor
    colours: Tensor
    boxes: Tensor
    mask: Tensor

    @classmethod
    def of(cls, scenes: Sequence[Sequence[Thing]]) -> Self:
        """The tensors of lists of things."""
        most, names = max(map(len, scenes)), list(COLOURS)
        filled = [[*things, *[Thing(SHAPES[0], names[0], (0, 0, 0, 0))] * (most - len(things))] for things in scenes]
        return cls(
            torch.tensor([[SHAPES.index(thing.shape) for thing in things] for things in filled]),
            torch.tensor([[names.index(thing.colour) for thing in things] for things in filled]),
            torch.tensor([[thing.box for thing in things] for things in filled], dtype=torch.float32),
            torch.tensor([[i < len(things) for i in range(most)] for things in scenes]),
        )

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.mask)

    def __getitem__(self, index: slice) -> Scenes:
        """Some of the scenes."""
        return Scenes(self.shapes[index], self.colours[index], self.boxes[index], self.mask[index])


def coverage(inside: Callable[[Tensor, Tensor], Tensor], boxes: Tensor, size: int = SIZE) -> Tensor:
    """The share of each point that a shape in its box covers: `[..., 4]` to `[..., size, size]`."""
    places = (torch.arange(size * SUBSAMPLES, dtype=boxes.dtype) + 0.5) / (size * SUBSAMPLES)
    left, top, right, bottom = (edge[..., None] for edge in boxes.unbind(-1))
    u = (2 * places - left - right) / (right - left).clamp(min=1e-6)
    v = (2 * places - top - bottom) / (bottom - top).clamp(min=1e-6)
    u, v = torch.broadcast_tensors(u[..., None, :], v[..., :, None])
    covered = inside(u, v).to(boxes.dtype)
    return covered.unflatten(-1, (size, SUBSAMPLES)).mean(-1).unflatten(-2, (size, SUBSAMPLES)).mean(-2)


def render(scenes: Scenes, seed: int, chunk: int = 512) -> Tensor:
    """Draw scenes, their grounds and lights at random.

    Args:
        scenes: What is to be seen.
        seed: Of grounds and lights.
        chunk: How many are drawn at a time.

    Returns:
        `[scenes, 3, SIZE, SIZE]`, in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([_render(scenes[i : i + chunk], generator) for i in range(0, len(scenes), chunk)])


def _render(scenes: Scenes, generator: torch.Generator) -> Tensor:
    ground, slope, light = torch.rand(3, len(scenes), 2, generator=generator).unbind(0)
    axis = torch.linspace(-1, 1, SIZE)
    x, y = axis.expand(SIZE, SIZE), axis[:, None].expand(SIZE, SIZE)
    grey = 0.15 + 0.35 * ground[:, :1, None] + _plane(slope, x, y)  # [scenes, SIZE, SIZE]
    picture = grey[:, None].expand(-1, 3, -1, -1)
    palette = torch.tensor(list(COLOURS.values()))
    for thing in range(scenes.mask.shape[1]):
        alpha = torch.zeros(len(scenes), SIZE, SIZE)
        for number, inside in enumerate(INSIDE.values()):
            chosen = scenes.mask[:, thing] & (scenes.shapes[:, thing] == number)
            alpha[chosen] = coverage(inside, scenes.boxes[chosen, thing])
        picture = picture.lerp(palette[scenes.colours[:, thing], :, None, None], alpha[:, None])
    return 2 * (picture * (0.9 + _plane(light, x, y))[:, None]) - 1


def _plane(slope: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A tilted plane for each slope `[scenes, 2]` in [0, 1], between -0.1 and 0.1."""
    a, b = (0.1 * slope - 0.05)[..., None, None].unbind(1)
    plane: Tensor = a * x + b * y
    return plane
