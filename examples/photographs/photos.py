"""Photographs with their classes: a zip of pictures in class folders, or patches of large photographs.

What examples/first_stage reads and writes pictures with is used here too.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from skimage import data as shipped
from torch import Tensor
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent.parent / "first_stage"))
from data import PATCH, numbered, patches, spread, to_bytes, to_images, to_pixels

__all__ = ["Labelled", "Large", "Photos", "large", "load", "spread", "to_images", "to_pixels"]

SHIPPED = ("astronaut", "chelsea", "coffee", "rocket")
"""Photographs that come with scikit-image."""


@dataclass(frozen=True)
class Labelled:
    """Pictures of one size and their classes.

    Attributes:
        pictures: uint8 `[pictures, 3, height, width]`.
        labels: int64 `[pictures]`.
    """

    pictures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.labels)

    def spread(self, count: int) -> Labelled:
        """About `count` of them, from all over: they are ordered by class."""
        return Labelled(spread(self.pictures, count), spread(self.labels, count))

    def images(self, device: torch.device | str = "cpu") -> Tensor:
        """All of them as numbers in [-1, 1]."""
        return to_images(self.pictures.to(device))


@dataclass(frozen=True)
class Photos:
    """A part to train on and a part that is never trained on.

    Attributes:
        train: What is trained on.
        validation: What is measured on.
        classes: Their names.
        source: What they are.
    """

    train: Labelled
    validation: Labelled
    classes: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Large:
    """A large photograph and a hole in it.

    Attributes:
        name: What it is.
        picture: uint8 `[3, height, width]`.
        hole: bool `[1, height, width]`, True where something is missing.
    """

    name: str
    picture: Tensor
    hole: Tensor

    def crop(self, size: int) -> Large:
        """A square of `size` from its middle."""
        top, left = ((whole - size) // 2 for whole in self.picture.shape[1:])
        part = (..., slice(top, top + size), slice(left, left + size))
        return Large(self.name, self.picture[part], self.hole[part])


def load(path: Path | None, limit: int | None) -> Photos:
    """Photographs of a zip, at most `limit` of each class, or patches of those of a folder, or of scikit-image's."""
    if path is not None and path.suffix == ".zip":
        return from_zip(path, limit)
    source = "patches of scikit-image's photographs" if path is None else f"patches of the photographs in {path.name}"
    return from_large(large(path), source)


def from_zip(path: Path, limit: int | None) -> Photos:
    """The folders are the classes; of each, in the order of names, every tenth picture is held out, and the first."""
    parts: tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]] = ([], [])
    with zipfile.ZipFile(path) as archive:
        names = numbered(archive.namelist(), limit)
        classes = tuple(dict.fromkeys(PurePosixPath(name).parent.name for _, name in names))
        for number, name in tqdm(names, desc="reading", unit="picture", leave=False):
            picture = to_bytes(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            parts[number % 10 == 0].append((picture, classes.index(PurePosixPath(name).parent.name)))
    train, validation = (
        Labelled(torch.stack([p for p, _ in part]), torch.tensor([c for _, c in part])) for part in parts
    )
    return Photos(train, validation, classes, path.stem)


def from_large(photographs: Sequence[Large], source: str) -> Photos:
    """The photograph is the class; patches of the right of each do not overlap with others and are held out."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for photograph in photographs:
        edge = photograph.picture.shape[-1] * 7 // 10
        parts[0].append(patches(photograph.picture[..., :edge], PATCH // 2))
        parts[1].append(patches(photograph.picture[..., edge:], PATCH))
    train, validation = (
        Labelled(torch.cat(part), torch.arange(len(part)).repeat_interleave(torch.tensor([len(p) for p in part])))
        for part in parts
    )
    return Photos(train, validation, tuple(photograph.name for photograph in photographs), source)


def large(folder: Path | None) -> list[Large]:
    """Photographs `<name>.png` and their holes `<name>_mask.png`, white; without a folder, those of scikit-image.

    A photograph that has no mask gets a hole in its middle.
    """
    if folder is None:
        return [with_hole(name, to_bytes(Image.fromarray(getattr(shipped, name)()))) for name in SHIPPED]
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg"}):
        if path.stem.endswith("_mask"):
            continue
        picture, mask = to_bytes(Image.open(path).convert("RGB")), path.with_name(f"{path.stem}_mask.png")
        if mask.exists():
            found.append(Large(path.stem, picture, to_bytes(Image.open(mask).convert("RGB"))[:1] > 127))
        else:
            found.append(with_hole(path.stem, picture))
    if not found:
        raise ValueError(f"data must be a zip or a folder of photographs, found no picture in {folder}")
    return found


def with_hole(name: str, picture: Tensor) -> Large:
    """A photograph with an elliptic hole of a quarter of its height and width in its middle."""
    height, width = picture.shape[1:]
    y, x = torch.meshgrid(torch.linspace(-4, 4, height), torch.linspace(-4, 4, width), indexing="ij")
    return Large(name, picture, (x**2 + y**2 < 1)[None])
