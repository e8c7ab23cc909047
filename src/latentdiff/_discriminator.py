"""The patch discriminator: which parts of an image look made up."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

from torch import Tensor, nn

from latentdiff._checks import SPATIAL, check_choice, check_floating, check_positive, check_shape
from latentdiff._layers import conv, group_norm
from latentdiff._module import Module
from latentdiff._typing import Images, SpatialDims

Normalization: TypeAlias = Literal["batch", "group", "none"]

KERNEL: Final = 4
"""Size of every convolution."""

BATCH_NORMS: Final[dict[int, type[nn.Module]]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class PatchDiscriminator(Module):
    """Convolutions of size 4 whose every answer sees a patch of the image: PatchGAN.

    `num_layers` of them halve the size, two more keep it but for one; leaky ReLUs of slope 0.2 stand between. In two
    dimensions with batch norm this is the published network, under the published names of its weights (`main.0.weight`
    ...); answers are logits, positive for "real".

    Batch norm lets the images of a batch see each other and, over several processes, wants
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm`; `"group"` does neither.

    Example:
        >>> import torch
        >>> PatchDiscriminator(in_channels=1, spatial_dims=1)(torch.randn(2, 1, 64)).shape
        torch.Size([2, 1, 6])

    References:
        Isola et al. 2017, arXiv:1611.07004, sec. 3.2.2 and appendix 6.1.2; Esser et al. 2021,
        arXiv:2012.09841, sec. 3.1.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        base_channels: int = 64,
        num_layers: int = 3,
        normalization: Normalization = "batch",
        spatial_dims: SpatialDims = 2,
    ) -> None:
        """Build the layers: weights from N(0, 0.02^2), as published.

        Args:
            in_channels: Channels of the images.
            base_channels: Channels after the first convolution; they double with each further one, up to 8 times.
            num_layers: Convolutions that halve the size; a patch spans 16, 34, 70, 142 ... pixels for 1, 2, 3, 4 ...
            normalization: After all convolutions but the first and last: `"batch"`, `"group"` or `"none"`.
            spatial_dims: 1, 2 or 3.

        Raises:
            ValueError: If a size is not positive or a name unknown.
        """
        super().__init__()
        check_choice("spatial_dims", spatial_dims, (1, 2, 3))
        check_choice("normalization", normalization, get_args(Normalization))
        check_positive("in_channels", in_channels)
        check_positive("base_channels", base_channels)
        check_positive("num_layers", num_layers)
        self.in_channels = in_channels
        self.base_channels = base_channels
        self.num_layers = num_layers
        self.normalization: Normalization = normalization
        self.spatial_dims: SpatialDims = spatial_dims
        layers: list[nn.Module] = [self._conv(in_channels, base_channels, stride=2), nn.LeakyReLU(0.2, inplace=True)]
        width = base_channels
        for layer in range(1, num_layers + 1):
            out_width = base_channels * min(2**layer, 8)
            layers.append(self._conv(width, out_width, stride=2 if layer < num_layers else 1, normalized=True))
            layers += [*self._norm(out_width), nn.LeakyReLU(0.2, inplace=True)]
            width = out_width
        self.main: nn.Sequential = nn.Sequential(*layers, self._conv(width, 1))

    def forward(self, x: Images) -> Tensor:
        """An answer for each patch.

        Args:
            x: `[batch, in_channels, *spatial]`, floating; each size `smallest_size` at least.

        Returns:
            `[batch, 1, *patches]`, n // 2 ** num_layers - 2 patches along an axis of size n.

        Raises:
            ValueError: If shape or size do not fit.
            TypeError: If `x` is not floating.
        """
        check_floating("x", x)
        check_shape("x", x, f"batch channels {SPATIAL[self.spatial_dims]}", channels=self.in_channels)
        if min(x.shape[2:]) < self.smallest_size:
            raise ValueError(
                f"x must have spatial sizes of at least {self.smallest_size} for num_layers={self.num_layers}, "
                f"got {list(x.shape[2:])}"
            )
        answers: Tensor = self.main(x)
        return answers

    @property
    def smallest_size(self) -> int:
        """The smallest size of an axis: it has one patch."""
        return int(3 * 2**self.num_layers)

    def _conv(self, channels: int, out_channels: int, *, stride: int = 1, normalized: bool = False) -> nn.Module:
        """A convolution; before a batch norm a bias would do nothing, and there is none."""
        layer = conv(self.spatial_dims, channels, out_channels, KERNEL, stride=stride, padding=1)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        if normalized and self.normalization == "batch":
            layer.register_parameter("bias", None)
        elif layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer

    def _norm(self, channels: int) -> list[nn.Module]:
        match self.normalization:
            case "batch":
                norm = BATCH_NORMS[self.spatial_dims](channels)
                nn.init.normal_(norm.weight, 1.0, 0.02)  # type: ignore[arg-type]
                return [norm]
            case "group":
                return [group_norm(channels, eps=1e-5)]
            case "none":
                return []
