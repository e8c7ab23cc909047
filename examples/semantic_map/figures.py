"""The pictures of the example."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from PIL import Image
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def save(image: Tensor, path: Path) -> None:
    """Write one image `[3, height, width]` in [-1, 1]."""
    Image.fromarray(_pixels(image).numpy()).save(path, quality=90)


def panels(images: dict[str, Tensor], path: Path, *, detail: int) -> None:
    """Images `[3, height, width]` beside each other, and below a square of `detail` pixels from their middle."""
    figure, axes = plt.subplots(2, len(images), figsize=(3.1 * len(images), 6.6), squeeze=False)
    for (title, image), (above, below) in zip(images.items(), axes.T, strict=True):
        height, width = image.shape[1:]
        top, left = (height - detail) // 2, (width - detail) // 2
        above.imshow(_pixels(image), interpolation="antialiased")
        above.set_title(f"{title}\n{height} x {width}", fontsize=9)
        below.imshow(_pixels(image[:, top : top + detail, left : left + detail]), interpolation="nearest")
        below.set_title(f"its middle, {detail} x {detail}", fontsize=9)
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path, dpi=90, pil_kwargs={"quality": 82})
    plt.close(figure)


def curves(losses: dict[str, list[float]], path: Path) -> None:
    """Loss curves, as measured and smoothed."""
    figure, axes = plt.subplots(1, len(losses), figsize=(5.0 * len(losses), 3.2), squeeze=False)
    for axis, (name, values) in zip(axes[0], losses.items(), strict=True):
        raw = torch.tensor(values)
        window = min(30, len(raw))
        axis.plot(raw, linewidth=0.4, alpha=0.5)
        axis.plot(range(window - 1, len(raw)), raw.unfold(0, window, 1).mean(1), linewidth=1.6)
        axis.set(title=name, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _pixels(image: Tensor) -> Tensor:
    """Bytes `[height, width, 3]`."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1)
