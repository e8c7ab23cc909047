"""How close a reconstruction is."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff._checks import check_positive, check_shape
from latentdiff._typing import Images


def psnr(reconstruction: Images, images: Images, data_range: float = 2.0) -> Tensor:
    r"""Peak signal-to-noise ratio of each sample, \(10 \log_{10}(R^2 / \mathrm{MSE})\), in decibels.

    Args:
        reconstruction: `[batch, channels, *spatial]`.
        images: Same shape.
        data_range: R, the width of the range of values; 2 for [-1, 1].

    Returns:
        float64 `[batch]`; infinite for equal images.

    Raises:
        ValueError: If the shapes differ.
    """
    check_positive("data_range", data_range)
    check_shape("images", images, "batch channels ...")
    if reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction must have shape {list(images.shape)}, got {list(reconstruction.shape)}")
    error = (reconstruction.double() - images.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)
