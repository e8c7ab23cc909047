"""Photographs in memory, as bytes: a zip of pictures in class folders, or patches of two sample photos."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from tqdm import tqdm

PATCH = 32
"""Side of the patches of the sample photos, in pixels."""


@dataclass(frozen=True)
class Photographs:
    """Pictures of one size, and a part of them that is never trained on.

    Attributes:
        train: uint8 `[pictures, 3, height, width]`.
        validation: uint8 `[other_pictures, 3, height, width]`.
        source: What they are.
    """

    train: Tensor
    validation: Tensor
    source: str

    def batch(self, size: int, step: int, device: torch.device) -> Tensor:
        """Pictures for a step of training, half of them mirrored: a function of the step, so that a run can resume."""
        generator = torch.Generator().manual_seed(step)
        pictures = self.train[torch.randint(len(self.train), (size,), generator=generator)]
        mirrored = torch.rand(size, generator=generator) < 0.5
        pictures[mirrored] = pictures[mirrored].flip(-1)
        return to_images(pictures.to(device))


def load(path: Path | None, limit: int | None) -> Photographs:
    """The photographs of a zip, at most `limit` of each class; without a zip, patches of the sample photos."""
    return sample_patches() if path is None else from_zip(path, limit)


def from_zip(path: Path, limit: int | None) -> Photographs:
    """Of each class folder, in the order of names, every tenth picture is held out, beginning with the first."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    with zipfile.ZipFile(path) as archive:
        for number, name in tqdm(numbered(archive.namelist(), limit), desc="reading", unit="picture", leave=False):
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            parts[number % 10 == 0].append(to_bytes(picture))
    train, validation = (torch.stack(part) for part in parts)
    return Photographs(train, validation, path.stem)


def numbered(names: list[str], limit: int | None) -> list[tuple[int, str]]:
    """The pictures of each folder with their number in it."""
    folders: dict[PurePosixPath, list[str]] = {}
    for name in sorted(names):
        if PurePosixPath(name).suffix.lower() in {".jpg", ".jpeg", ".png"}:
            folders.setdefault(PurePosixPath(name).parent, []).append(name)
    return [pair for folder in folders.values() for pair in enumerate(folder[:limit])]


def sample_patches() -> Photographs:
    """Overlapping patches of the left of a temple and a flower; those of the right do not overlap and are held out."""
    photos = [to_bytes(Image.fromarray(photo)) for photo in load_sample_images().images]
    edge = photos[0].shape[-1] * 7 // 10
    train = torch.cat([patches(photo[..., :edge], PATCH // 2) for photo in photos])
    validation = torch.cat([patches(photo[..., edge:], PATCH) for photo in photos])
    return Photographs(train, validation, "patches of scikit-learn's china.jpg and flower.jpg")


def patches(photo: Tensor, stride: int) -> Tensor:
    """Square patches `[patches, 3, PATCH, PATCH]` of a photo `[3, height, width]`."""
    windows = photo.unfold(1, PATCH, stride).unfold(2, PATCH, stride)
    return windows.flatten(1, 2).movedim(0, 1).contiguous()


def spread(pictures: Tensor, count: int) -> Tensor:
    """About `count` of them, from all over: they may be ordered by class."""
    return pictures[:: max(1, len(pictures) // count)][:count]


def to_bytes(picture: Image.Image) -> Tensor:
    """A picture as uint8 `[3, height, width]`."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)


def to_images(pictures: Tensor) -> Tensor:
    """Bytes as numbers in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Numbers as bytes, the way back of `to_images`."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
