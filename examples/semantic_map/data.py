"""Photographs, and a map for each: classes of smoothed colour and texture, by a rule that works on any picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 13
"""Side of the square over which colours are averaged, in pixels."""


@dataclass(frozen=True)
class Photographs:
    """Photographs to train on, and others whose maps are never seen in training.

    Attributes:
        train: `[3, height, width]` each, in [-1, 1]; sizes may differ.
        held_out: Likewise.
        source: What they are.
    """

    train: list[Tensor]
    held_out: list[Tensor]
    source: str


def load(folder: Path | None) -> Photographs:
    """The photographs of a folder, every fourth one held out from the end; without a folder, scikit-learn's two.

    Files whose name ends in `_mask` are left out.
    """
    if folder is None:
        pictures = [Image.fromarray(photo) for photo in load_sample_images().images]
        source = "scikit-learn's china.jpg and flower.jpg"
    else:
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() in {".png", ".jpg", ".jpeg"})
        pictures = [Image.open(file).convert("RGB") for file in files if not file.stem.endswith("_mask")]
        source = f"{len(pictures)} photographs"
    images = [to_image(picture) for picture in pictures]
    held_out = set(range(len(images) - 1, 0, -4))
    return Photographs(
        [image for number, image in enumerate(images) if number not in held_out],
        [images[number] for number in sorted(held_out)],
        source,
    )


def to_image(picture: Image.Image) -> Tensor:
    """A picture as `[3, height, width]` in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 127.5 - 1


def enlarged(image: Tensor, size: int) -> Tensor:
    """An image `[3, height, width]` cut to a square from its middle and brought to `[3, size, size]`."""
    side = min(image.shape[1:])
    top, left = ((length - side) // 2 for length in image.shape[1:])
    square = image[None, :, top : top + side, left : left + side]
    return F.interpolate(square, size=(size, size), mode="bicubic", antialias=True)[0].clamp(-1, 1)


class Maps:
    """The rule that makes maps: k-means of colour and contrast around each pixel, learnt from the training part.

    Attributes:
        centres: Of the classes, `[classes, 4]`.
        colours: Mean colour of each class, `[classes, 3]`.
    """

    def __init__(self, photographs: Photographs, classes: int) -> None:
        """Learn the classes from 3,000 pixels of each training photograph."""
        generator = torch.Generator().manual_seed(0)
        chosen: list[Tensor] = []
        for image in photographs.train:
            pixels = torch.cat([self.features(image[None]), image[None]], 1).flatten(2)[0].T
            chosen.append(pixels[torch.randint(len(pixels), (3000,), generator=generator)])
        features, colours = torch.cat(chosen).split([4, 3], 1)
        means = KMeans(classes, n_init=3, random_state=0).fit(features.double().numpy())
        self.centres = torch.from_numpy(means.cluster_centers_).float()
        labels = torch.from_numpy(means.labels_)
        self.colours = torch.stack([colours[labels == label].mean(0) for label in range(classes)])

    @staticmethod
    def features(images: Tensor) -> Tensor:
        """Of images `[batch, 3, height, width]`, around each pixel: grey, red, blue and contrast `[batch, 4, ...]`."""
        grey = images.mean(1, keepdim=True)
        tint = 3 * (images[:, [0, 2]] - grey)
        means = smoothed(torch.cat([grey, tint, grey.square()], 1))
        contrast = (means[:, 3:] - means[:, :1].square()).clamp(min=0).sqrt()
        return torch.cat([means[:, :3], contrast], 1)

    def __call__(self, images: Tensor) -> Tensor:
        """The class of each pixel, int64 `[batch, height, width]`."""
        distances = [(self.features(images) - centre.reshape(1, -1, 1, 1)).square().sum(1) for centre in self.centres]
        return torch.stack(distances).argmin(0)

    def shown(self, maps: Tensor) -> Tensor:
        """Maps `[batch, height, width]` as images `[batch, 3, height, width]`, in the mean colours of the classes."""
        return self.colours[maps].movedim(-1, 1)


def smoothed(x: Tensor) -> Tensor:
    """Means over a square around each pixel, of `[batch, channels, height, width]`; the border is repeated."""
    pad = SMOOTH // 2
    return F.avg_pool2d(F.pad(x, (pad,) * 4, mode="replicate"), SMOOTH, stride=1)


class Crops:
    """Random crops of photographs with those of their maps: batches as a function of the step."""

    def __init__(self, images: list[Tensor], maps: list[Tensor], side: int) -> None:
        """Keep photographs `[3, height, width]`, their maps `[height, width]` and the side of a crop."""
        self.images, self.maps, self.side = images, maps, side

    def batch(self, size: int, step: int) -> tuple[Tensor, Tensor]:
        """Crops `[size, 3, side, side]`, half of them mirrored, and their maps `[size, side, side]`."""
        generator = torch.Generator().manual_seed(step)
        images, maps = [], []
        for _ in range(size):
            number, mirror = (int(torch.randint(n, (), generator=generator)) for n in (len(self.images), 2))
            image, labels = self.images[number], self.maps[number]
            rows, columns = (n - self.side + 1 for n in labels.shape)
            top, left = (int(torch.randint(n, (), generator=generator)) for n in (rows, columns))
            place = (..., slice(top, top + self.side), slice(left, left + self.side))
            images.append(image[place].flip(-1) if mirror else image[place])
            maps.append(labels[place].flip(-1) if mirror else labels[place])
        return torch.stack(images), torch.stack(maps)
