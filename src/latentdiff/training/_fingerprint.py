"""What latents were made by: an encoder, and what was done to the images before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from latentdiff._autoencoder import Autoencoder
from latentdiff._module import describe

DECODING: Final = ("decoder.", "post_quant_conv.")
"""How names of weights begin that latents do not depend on."""


@dataclass(frozen=True)
class Fingerprint:
    """What latents depend on, in short: where two are equal, cached latents are those that would be computed now.

    Attributes:
        encoder: SHA-256 of the encoder's weights and of the latents' shift and scaling, hexadecimal.
        preprocessing: The user's own words for what images go through before they are encoded, such as
            `"centre crop, antialiased, 2 x - 1"`.
        size: Spatial size of the images.
    """

    encoder: str
    preprocessing: str
    size: tuple[int, ...]

    @classmethod
    def of(cls, autoencoder: Autoencoder, preprocessing: str, size: Sequence[int]) -> Fingerprint:
        """The fingerprint of an autoencoder as it is, and of images of a spatial size; its decoder does not matter."""
        return cls(_hash(autoencoder), preprocessing, tuple(size))

    def __str__(self) -> str:
        """In one line, the hash cut short."""
        size = " x ".join(map(str, self.size))
        return f"encoder {self.encoder[:12]}, preprocessing {self.preprocessing!r}, size {size}"


def _hash(autoencoder: Autoencoder) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all that latents depend on; the device makes no difference."""
    digest = hashlib.sha256(json.dumps(describe(autoencoder.bottleneck), sort_keys=True).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        if name.startswith(DECODING):
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
