"""Pictures with what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import matplotlib
from scenes import COLOURS, Thing
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

RIGHT, WRONG = "tab:green", "tab:red"


def captioned(
    rows: Sequence[str], images: Tensor, captions: Sequence[Sequence[str]], right: Sequence[Sequence[bool]], path: Path
) -> None:
    """Write images `[rows, columns, 3, height, width]` in [-1, 1] with captions above.

    Args:
        rows: What stands beside each row.
        images: The pictures.
        captions: Of each picture.
        right: Whether the picture obeys its caption: a green frame, else a red one.
        path: Where to.
    """
    figure, axes = _axes(*images.shape[:2])
    for i, row in enumerate(rows):
        for j, axis in enumerate(axes[i]):
            _show(axis, images[i, j])
            axis.set_title(fill(captions[i][j], 18), fontsize=7, pad=3)
            axis.spines[:].set(edgecolor=RIGHT if right[i][j] else WRONG, linewidth=2.5)
        axes[i][0].set_ylabel(fill(row, 14), rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def laid_out(layouts: Sequence[Sequence[Thing]], rows: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Write layouts as boxes, and below them rows of images `[layouts, 3, height, width]` with those boxes."""
    figure, axes = _axes(1 + len(rows), len(layouts))
    for axis, things in zip(axes[0], layouts, strict=True):
        axis.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=[], yticks=[], facecolor="0.2")
        _outline(axis, things, named=True)
    for line, (_, images) in zip(axes[1:], rows, strict=True):
        for axis, image, things in zip(line, images, layouts, strict=True):
            _show(axis, image)
            _outline(axis, things, named=False)
    for line, name in zip(axes, ["layout", *(name for name, _ in rows)], strict=True):
        line[0].set_ylabel(fill(name, 14), rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _axes(height: int, width: int) -> tuple[Figure, list[list[Axes]]]:
    figure, axes = plt.subplots(
        height, width, figsize=(1.2 * width + 1, 1.45 * height), squeeze=False, layout="constrained"
    )
    return figure, [list(line) for line in axes]


def _show(axis: Axes, image: Tensor) -> None:
    axis.imshow((image.clamp(-1, 1).movedim(0, -1) + 1) / 2, extent=(0, 1, 1, 0), interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def _outline(axis: Axes, things: Sequence[Thing], *, named: bool) -> None:
    for thing in things:
        left, top, right, bottom = thing.box
        colour = COLOURS[thing.colour] if named else "white"
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1))
        if named:
            axis.text(*thing.centre, thing.shape, color="white", fontsize=6, ha="center", va="center")
