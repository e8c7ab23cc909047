"""The quickstart's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def grid(images: Tensor, path: Path, *, rows: Sequence[str], title: str, columns: Sequence[str] = ()) -> None:
    """Write images `[rows, columns, 1, height, width]` in [-1, 1] as one labelled picture."""
    height, width = images.shape[:2]
    figure, axes = plt.subplots(height, width, figsize=(0.75 * width + 1.2, 0.75 * height + 0.9), squeeze=False)
    for i in range(height):
        for j in range(width):
            axes[i][j].imshow(-images[i, j, 0], cmap="gray", vmin=-1, vmax=1)
            axes[i][j].set(xticks=[], yticks=[])
            if i == 0 and columns:
                axes[i][j].set_title(columns[j], fontsize=9)
        axes[i][0].set_ylabel(rows[i], rotation=0, ha="right", va="center", fontsize=10)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(losses: dict[str, list[float]], path: Path) -> None:
    """Write loss curves, one panel each, thin as measured and thick as smoothed."""
    figure, axes = plt.subplots(1, len(losses), figsize=(5.5 * len(losses), 3.6), squeeze=False)
    for axis, (name, values) in zip(axes[0], losses.items(), strict=True):
        raw = torch.tensor(values)
        window = min(50, len(raw))
        smooth = raw.unfold(0, window, 1).mean(1)
        axis.plot(raw, linewidth=0.4, alpha=0.5, label="each step")
        axis.plot(range(window - 1, len(raw)), smooth, linewidth=1.8, label=f"mean of {window} steps")
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
