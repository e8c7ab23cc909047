"""The pictures of the example."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = 6
"""Samples in a row."""


def signals(rows: dict[str, Tensor], path: Path) -> None:
    """Write rows of signals `[n, 1, length]`."""
    _, axes = plt.subplots(len(rows), SHOWN, figsize=(2.2 * SHOWN, 1.25 * len(rows)), sharex=True, sharey=True)
    for (title, samples), line in zip(rows.items(), axes, strict=True):
        for axis, sample in zip(line, samples[:, 0], strict=False):
            axis.plot(sample, linewidth=0.8)
            axis.set(ylim=(-1.05, 1.05), xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8)
    _save(path)


def volumes(rows: dict[str, Tensor], path: Path) -> None:
    """Write rows of volumes `[n, 1, side, side, side]`: the middle slice, and the brightest value along the depth."""
    _, axes = plt.subplots(len(rows), SHOWN, figsize=(2.2 * SHOWN, 1.3 * len(rows)))
    for (title, samples), line in zip(rows.items(), axes, strict=True):
        for axis, volume in zip(line, samples[:, 0], strict=False):
            gap = torch.ones(volume.shape[1], 1)
            axis.imshow(torch.cat([volume[len(volume) // 2], gap, volume.amax(0)], 1), cmap="gray", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8)
    _save(path)


def _save(path: Path) -> None:
    plt.tight_layout()
    plt.savefig(path, dpi=90)
    plt.close()
