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
    _check_pair(reconstruction, images, data_range)
    error = (reconstruction.double() - images.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def ssim(
    reconstruction: Images, images: Images, data_range: float = 2.0, *, window: int = 11, std: float = 1.5
) -> Tensor:
    r"""Structural similarity of each sample (Wang et al. 2004, IEEE TIP 13(4), eq. 13).

    With \(\mu, \sigma^2, \sigma_{xy}\) the means, variances and covariance of a channel under a Gaussian window,
    \(C_1 = (0.01 R)^2\) and \(C_2 = (0.03 R)^2\),

    \[ \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}{(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}, \]

    a mean over channels and all places where the window lies inside. The window is a product of one along each axis.
    Values clipped to their range or not, and the treatment of colours, make a difference: say what was compared.

    Args:
        reconstruction: `[batch, channels, *spatial]`, any rank.
        images: Same shape; each size `window` at least.
        data_range: R, the width of the range of values; 2 for [-1, 1].
        window: Size of the window on each axis.
        std: Its standard deviation, in pixels.

    Returns:
        float64 `[batch]`, in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: If the shapes differ or an axis is smaller than the window.
    """
    _check_pair(reconstruction, images, data_range)
    check_positive("std", std)
    check_positive("window", window)
    if min(images.shape[2:], default=0) < window:
        raise ValueError(f"images must have spatial sizes of at least window={window}, got {list(images.shape[2:])}")
    x, y = reconstruction.double(), images.double()
    places = torch.arange(window, dtype=torch.float64, device=x.device) - (window - 1) / 2
    weights = (-0.5 * (places / std).square()).softmax(0)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _windowed(torch.stack([x, y, x * x, y * y, x * y]), weights)
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    covariance = mean_xy - mean_x * mean_y
    variances = mean_xx - mean_x.square() + mean_yy - mean_y.square()
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x.square() + mean_y.square() + c_1)
    similarity: Tensor = luminance * (2 * covariance + c_2) / (variances + c_2)
    return similarity.flatten(1).mean(1)


def _windowed(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of `x` `[kinds, batch, channels, *spatial]`, wherever the window `[window]` lies inside."""
    for axis in range(3, x.ndim):
        places = x.shape[axis] - len(weights) + 1
        x = torch.stack([weight * x.narrow(axis, i, places) for i, weight in enumerate(weights)]).sum(0)
    return x


def _check_pair(reconstruction: Images, images: Images, data_range: float) -> None:
    check_positive("data_range", data_range)
    check_shape("images", images, "batch channels ...")
    if reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction must have shape {list(images.shape)}, got {list(reconstruction.shape)}")
