"""Pictures of large photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def table(columns: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Write columns of pictures, uint8 `[3, height, width]` each, as one picture; a row is a photograph."""
    rows = len(next(iter(columns.values())))
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(2.4 * len(columns), 2.4 * rows + 0.3), squeeze=False, layout="constrained"
    )
    for number, (name, pictures) in enumerate(columns.items()):
        axes[0][number].set_title(name, fontsize=10)
        for axis, picture in zip(axes[:, number], pictures, strict=True):
            axis.imshow(picture.movedim(0, -1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)
    plt.close(figure)
