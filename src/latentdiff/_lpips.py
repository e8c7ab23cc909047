"""A learned perceptual distance (Zhang et al. 2018, arXiv:1801.03924), from weights that lie on one's own disk."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff._checks import check_floating, check_range, check_shape, working_dtype
from latentdiff._errors import CheckpointError
from latentdiff._module import Module
from latentdiff._typing import Images

WIDTHS: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of VGG16 (Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, D), by stage."""

SMALLEST_SIZE: Final = 16
"""Four poolings leave one pixel of it."""

SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
"""ImageNet's mean and standard deviation of the colours, for images in [-1, 1]."""

EPS: Final = 1e-10


class LPIPS(Module):
    r"""Distance of images in the feature space of VGG16.

    With \(\hat y_l\) the features of stage \(l\) (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3), scaled to length 1 over
    the channels at each place, and \(w_l\) learned weights of the channels, the distance is
    \(\sum_l \overline{\sum_c w_{lc} (\hat y_l - \hat y'_l)_c^2}\), a mean over places (eq. 1).

    A fresh instance has random weights: its distance means nothing until `from_files` or `load_state_dict` has brought
    the published ones, which are not part of this package. Nothing is downloaded. Weights are frozen and the module
    starts in evaluation mode; `train` switches on the dropout before the last layers, for those who train these.

    The gradient is finite everywhere, also where images are equal or all features are 0.

    Example:
        >>> distance = LPIPS()
        >>> images = torch.rand(2, 3, 32, 48) * 2 - 1
        >>> distance(images, images).tolist()
        [0.0, 0.0]
    """

    def __init__(self) -> None:
        """Build the network, with random weights."""
        super().__init__()
        self.scaling_layer: nn.Module = _ScalingLayer()
        self.net: _Features = _Features()
        for stage, widths in enumerate(WIDTHS):
            self.add_module(f"lin{stage}", _Head(widths[-1]))
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_files(cls, *paths: str | os.PathLike[str]) -> Self:
        """Build the network from the published weights on disk.

        Either one file holds everything, or one holds torchvision's VGG16 (`features.0.weight` ..., its classifier is
        ignored) and another the five last layers (`lin0.model.1.weight` ..., the `vgg.pth` of the authors). Checkpoints
        of CompVis' first stages hold everything under `loss.perceptual_loss.`.

        Args:
            paths: Files of `torch.save`, read with `weights_only=True`, or `*.safetensors`.

        Raises:
            CheckpointError: If a file is missing or damaged, or weights are missing, unknown or of another shape.
        """
        tensors: dict[str, Tensor] = {}
        for path in paths:
            tensors |= _published(_read(Path(path)))
        module = cls()
        own = module.state_dict()
        for name in ("scaling_layer.shift", "scaling_layer.scale"):  # constants, which not every file repeats
            tensors.setdefault(name, own[name])
        missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        misshapen = [n for n in sorted(own.keys() & tensors.keys()) if own[n].shape != tensors[n].shape]
        lists = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if problems := [f"{kind}: {', '.join(names)}" for kind, names in lists if names]:
            files = ", ".join(str(path) for path in paths)
            raise CheckpointError(f"{files} must hold the weights of LPIPS with VGG16; {'; '.join(problems)}")
        module.load_state_dict(tensors)
        return module

    def forward(self, reconstruction: Images, images: Images) -> Tensor:
        """The distance of each pair; symmetric, but for what is checked.

        Args:
            reconstruction: `[batch, 3, height, width]`, or 1 channel that stands for three; may leave [-1, 1] a little.
            images: Same shape, in [-1, 1] (looked at on the CPU only); 16 x 16 pixels at least.

        Returns:
            `[batch]`, float32 at least; at least 0 with the published weights.

        Raises:
            ValueError: If shapes, sizes or values do not fit.
            TypeError: If a tensor is not floating.
        """
        return torch.stack(self._by_stage(reconstruction, images)).sum(0)

    def _by_stage(self, reconstruction: Images, images: Images) -> list[Tensor]:
        """The summands of the distance, one a stage, `[batch]` each."""
        _check(reconstruction, images)
        dtype = next(self.net.parameters()).dtype
        pairs = zip(self._features(reconstruction.to(dtype)), self._features(images.to(dtype)), strict=True)
        return [self._distance(stage, a, b) for stage, (a, b) in enumerate(pairs)]

    def _features(self, x: Images) -> list[Tensor]:
        features: list[Tensor] = self.net(self.scaling_layer(x))
        return features

    def _distance(self, stage: int, a: Tensor, b: Tensor) -> Tensor:
        head = self.get_submodule(f"lin{stage}")
        with torch.autocast(a.device.type, enabled=False):  # the weighted sum of small squares stays exact
            distances: Tensor = head((_normalised(a) - _normalised(b)).square())
        return distances.flatten(1).mean(1)


class _ScalingLayer(nn.Module):
    """From [-1, 1] to the scale that VGG16 was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).reshape(1, 3, 1, 1))

    def forward(self, x: Images) -> Tensor:
        return (x - self.shift) / self.scale


class _Features(nn.Module):
    """The convolutions of VGG16 in five stages; layers have their number in the whole network for a name."""

    def __init__(self) -> None:
        super().__init__()
        number, channels = 0, 3
        for stage, widths in enumerate(WIDTHS):
            layers = nn.Sequential()
            if stage:
                layers.add_module(str(number), nn.MaxPool2d(2))
                number += 1
            for width in widths:
                layers.add_module(str(number), nn.Conv2d(channels, width, 3, padding=1))
                layers.add_module(str(number + 1), nn.ReLU(inplace=True))
                number, channels = number + 2, width
            self.add_module(f"slice{stage + 1}", layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for stage in self.children():
            x = stage(x)
            features.append(x)
        return features


class _Head(nn.Module):
    """The weights of a stage's channels: a 1x1 convolution after dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model: nn.Sequential = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        dropout, layer = self.model
        weight = layer.get_parameter("weight")
        return F.conv2d(dropout(x), weight.to(x.dtype))


def _normalised(features: Tensor) -> Tensor:
    """`features` `[batch, channels, height, width]` at length 1; the norm's derivative at 0 is taken as 0."""
    features = features.to(working_dtype(features.dtype))
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + EPS)


def _check(reconstruction: Images, images: Images) -> None:
    for name, tensor in (("reconstruction", reconstruction), ("images", images)):
        check_floating(name, tensor)
        check_shape(name, tensor, "batch channels height width")
    if reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction must have shape {list(images.shape)}, got {list(reconstruction.shape)}")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have channels=3, or 1 that stands for three, got channels={images.shape[1]}")
    if min(images.shape[2:]) < SMALLEST_SIZE:
        raise ValueError(
            f"images must have at least {SMALLEST_SIZE} x {SMALLEST_SIZE} pixels, got {list(images.shape[2:])}"
        )
    check_range("images", images, -1.0, 1.0)
    if torch.compiler.is_compiling() or images.device.type != "cpu":
        return
    least, most = (bound.item() for bound in torch.aminmax(images.detach()))
    if 0 <= least < most:
        warnings.warn(
            f"all values of images are in [{least:g}, {most:g}], but LPIPS compares images in [-1, 1]; data in [0, 1] "
            "need 2 * x - 1",
            stacklevel=5,  # whoever called the module
        )


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, by name."""
    if not path.is_file():
        raise CheckpointError(f"{path} must be a file of weights, but there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no complete file of weights (damaged or truncated): {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} must hold a state dict, got {type(content).__name__}")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of this module; those of torchvision's VGG16 and of CompVis' checkpoints too."""
    prefix = "loss.perceptual_loss."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    # torchvision numbers the layers through; the authors' package also lists the last layers a second time, as lins.0
    with torch.device("meta"):
        stages = {name.split(".", 1)[1]: name for name in _Features().state_dict()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == "features":
            renamed[f"net.{stages.get(rest, rest)}"] = tensor
        elif first == "lins":
            renamed[f"lin{rest}"] = tensor
        elif first != "classifier":
            renamed[name] = tensor
    return renamed
