"""A perceptual distance that needs no trained network."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff._checks import check_floating, check_positive, check_shape, working_dtype
from latentdiff._module import Module
from latentdiff._typing import Images


class PyramidLoss(Module):
    r"""Distance of normalised Laplacian pyramids: contrast against its surroundings, at several scales.

    With \(B\) the binomial filter (1, 4, 6, 4, 1) / 16 along each axis and \(\downarrow\) every second value,

    \[ z_k = x_k - B x_k, \quad x_{k+1} = {\downarrow} B x_k, \quad y_k = \frac{z_k}{\sigma + B |z_k|}, \]

    and the distance is the mean over the levels \(k < K\) of \(\overline{|y_k - y'_k|}\), with
    \(\overline{|x_K - x'_K|}\) as one more level. The division makes faint texture count beside strong edges, as
    it does for the eye: of pictures that have lost their detail, a pixel-wise error says little and this distance much.
    It is 0 for equal images only, its gradient is finite everywhere, and it has no weights: any rank, any channels
    (each by itself), any size.

    References:
        Laparra et al. 2016, "Perceptual image quality assessment using a normalized Laplacian pyramid", with the local
        mean of all neighbours for their fitted filters and absolute for squared differences; Burt and Adelson 1983,
        "The Laplacian pyramid as a compact image code", for the pyramid.

    Example:
        >>> distance = PyramidLoss()
        >>> volumes = torch.rand(2, 1, 8, 9, 10)
        >>> distance(volumes, volumes)
        tensor([0., 0.])
    """

    def __init__(self, *, levels: int = 4, saturation: float = 0.2) -> None:
        r"""Nothing is drawn or learnt.

        Args:
            levels: K, the number of scales above the coarsest.
            saturation: \(\sigma\), the contrast beyond which neighbours mask each other, in units of the images.

        Raises:
            ValueError: If a number is not positive.
        """
        super().__init__()
        check_positive("levels", levels)
        check_positive("saturation", saturation)
        self.levels = levels
        self.saturation = saturation

    def forward(self, reconstruction: Images, images: Images) -> Tensor:
        """The distance of each pair.

        Args:
            reconstruction: `[batch, channels, *spatial]`, floating.
            images: Same shape.

        Returns:
            `[batch]`, at least 0, float32 at least.

        Raises:
            ValueError: If the shapes differ.
            TypeError: If a tensor is not floating.
        """
        check_floating("reconstruction", reconstruction)
        check_floating("images", images)
        check_shape("images", images, "batch channels ...")
        if reconstruction.shape != images.shape:
            raise ValueError(f"reconstruction must have shape {list(images.shape)}, got {list(reconstruction.shape)}")
        both = torch.cat(
            [reconstruction.to(working_dtype(reconstruction.dtype)), images.to(working_dtype(images.dtype))]
        )
        distance: Tensor | float = 0.0
        for _ in range(self.levels):
            coarse = _blurred(both)
            detail = both - coarse
            distance = distance + _difference(detail / (self.saturation + _blurred(detail.abs())))
            both = _halved(coarse)
        return (distance + _difference(both)) / (self.levels + 1)


def _halved(x: Tensor) -> Tensor:
    """Every second value of `x` `[batch, channels, *spatial]` along each spatial axis."""
    for axis in range(2, x.ndim):
        x = x.movedim(axis, -1)[..., ::2].movedim(-1, axis)
    return x


def _difference(both: Tensor) -> Tensor:
    """Mean absolute difference of the halves of `both` `[2 * batch, ...]`: `[batch]`."""
    first, second = both.chunk(2)
    return (first - second).abs().flatten(1).mean(1)


def _blurred(x: Tensor) -> Tensor:
    """`x` `[batch, channels, *spatial]` under (1, 4, 6, 4, 1) / 16 along each spatial axis, its edges continued."""
    for axis in range(2, x.ndim):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, -1, 1)
        x = torch.cat([first, first, x, last, last], dim=axis)
        for _ in range(4):  # the binomial filter is four means of neighbours
            size = x.shape[axis] - 1
            x = 0.5 * (x.narrow(axis, 0, size) + x.narrow(axis, 1, size))
    return x
