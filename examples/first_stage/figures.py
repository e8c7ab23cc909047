"""The example's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def grid(rows: Mapping[str, Tensor], path: Path, *, title: str) -> None:
    """Write rows of pictures, uint8 `[columns, 3, height, width]` each, as one labelled picture."""
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(0.9 * columns + 1.6, 0.9 * len(rows) + 0.6), squeeze=False, layout="constrained"
    )
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture.movedim(0, -1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves(histories: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Write the course of each figure, one panel each, one line a model; smoothed over a fiftieth of the steps."""
    panels = list(dict.fromkeys(name for history in histories.values() for name in history))
    steps = max(len(values) for history in histories.values() for values in history.values())
    figure, axes = plt.subplots(
        (len(panels) + 2) // 3, 3, figsize=(13, 3.2 * ((len(panels) + 2) // 3)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for model, history in histories.items():
            if any(values := history.get(panel, [])):
                window = max(1, len(values) // 50)
                smooth = torch.tensor(values).unfold(0, window, 1).mean(1)
                axis.plot(range(steps - len(smooth), steps), smooth, label=model, linewidth=1.2)
        axis.set(title=panel, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def pictures(named: Mapping[str, Tensor], path: Path) -> None:
    """Write large pictures, uint8 `[3, height, width]`, side by side."""
    figure, axes = plt.subplots(1, len(named), figsize=(5 * len(named), 5.4), squeeze=False, layout="constrained")
    for axis, (name, picture) in zip(axes[0], named.items(), strict=True):
        axis.imshow(picture.movedim(0, -1))
        axis.set(xticks=[], yticks=[], title=name)
    figure.savefig(path, dpi=110)
    plt.close(figure)
