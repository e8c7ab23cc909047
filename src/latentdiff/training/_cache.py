"""Latents computed once: written to shards with a fingerprint, read by index, drawn anew each epoch."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latentdiff._autoencoder import Autoencoder
from latentdiff._checkpoints._files import read_tensors, replace, write_safetensors
from latentdiff._checks import check_choice, check_count, working_dtype
from latentdiff._distributions import DiagonalGaussian, Gaussian, PointMass, Posterior
from latentdiff._errors import CheckpointError
from latentdiff._noise import CounterNoise
from latentdiff._typing import Images, Latents
from latentdiff.training._fingerprint import Fingerprint

INDEX: Final = "index.json"
FORMAT: Final = 1
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

STREAM: Final = 1
"""Of `CounterNoise`: apart from the numbers of walks and losses, so that all may have one seed."""


class LatentCache(Dataset[Tensor | tuple[Tensor, Tensor]]):
    """Posteriors of the latents of a data set, on disk: what `cache_latents` wrote.

    A data set for `torch.utils.data.DataLoader`: item i is a draw from the posterior of image i, `[latent_channels,
    *spatial]`, or a pair of it and what belongs to it. The draw is a function of (`seed`, i, `epoch`): another one in
    each epoch, the same whatever the order, the batch size, the process and the worker. Shards are mapped, not read:
    memory is needed for what is asked for.

    Attributes:
        folder: Where the shards are.
        fingerprint: What they were made by.
        seed: Of the draws.
        epoch: Which draw `cache[i]` is; set it before each epoch, as for `DistributedSampler`. Workers of a
            `DataLoader` that persist keep the one they started with.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        autoencoder: Autoencoder,
        *,
        preprocessing: str,
        size: int | Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        """Open a cache, and make sure that it holds what `autoencoder` would make of the images now.

        Args:
            folder: What was given to `cache_latents`.
            autoencoder: The first stage that the latents are for.
            preprocessing: What images go through before they are encoded, in the words given to `cache_latents`.
            size: Spatial size of the images, one number or one for each axis; None takes that of the cache.
            seed: Of the draws, in 0 ... 2 ** 64 - 1.

        Raises:
            CheckpointError: If there is no cache, its writing was interrupted, a shard is missing or damaged, or it
                was made by another encoder or preprocessing: then both fingerprints are told.
        """
        self.folder: Path = Path(folder)
        self.seed = seed
        self.epoch: int = 0
        index = _read_index(self.folder)
        self.fingerprint: Fingerprint = Fingerprint(index["encoder"], index["preprocessing"], tuple(index["size"]))
        dims = autoencoder.spatial_dims
        wanted = self.fingerprint.size if size is None else (size,) * dims if isinstance(size, int) else tuple(size)
        now = Fingerprint.of(autoencoder, preprocessing, wanted)
        if now != self.fingerprint:
            raise CheckpointError(
                f"{self.folder} must hold latents of [{now}], got [{self.fingerprint}]; write it anew"
            )
        self._names: list[str] = index["tensors"]
        self._ends: list[int] = list(accumulate(shard["samples"] for shard in index["shards"]))
        self._files: list[str] = [_checked_file(self.folder, shard) for shard in index["shards"]]
        self._shift = torch.tensor(index["shift"], dtype=torch.float64)
        self._scaling = torch.tensor(index["scaling"], dtype=torch.float64)
        self._shards: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, Tensor]:
        """A draw for image `index`, `[latent_channels, *spatial]`, and what was cached beside it, if anything was."""
        latents, y = self.latents([index])[0], self.y([index])
        return latents if y is None else (latents, y[0])

    def posterior(self, indices: Sequence[int]) -> Posterior:
        """The posteriors of images, as `Autoencoder.encode` gives them, of `[len(indices), latent_channels, *spatial]`.

        Args:
            indices: Which images, in any order; negative ones count from the end.

        Raises:
            IndexError: If one is out of range.
        """
        mean = self._rows("mean", indices)
        if "log_variance" not in self._names:
            return PointMass(mean.to(working_dtype(mean.dtype)))
        shape = (1, -1, *(1,) * (mean.ndim - 2))
        shift, scaling = (factor.to(mean.dtype).reshape(shape) for factor in (self._shift, self._scaling))
        prior = Gaussian((0 - shift) * scaling, scaling.square())
        return DiagonalGaussian(mean, self._rows("log_variance", indices), prior)

    def latents(self, indices: Sequence[int], epoch: int | None = None) -> Latents:
        """Draws from the posteriors of images.

        Args:
            indices: Which images, as for `posterior`.
            epoch: Which draw, in 0 ... 2 ** 32 - 1; None is that of `epoch`.

        Returns:
            `[len(indices), latent_channels, *spatial]`, of unit size, float32 at least.

        Raises:
            IndexError: If an index is out of range.
        """
        posterior = self.posterior(indices)
        if isinstance(posterior, PointMass):
            return posterior.mean
        shape, device = (1, *posterior.mean.shape[1:]), posterior.mean.device
        steps = [self.epoch if epoch is None else epoch]
        draws = [
            CounterNoise(self.seed, index % len(self)).normals(shape, steps, device=device, stream=STREAM)[0]
            for index in indices
        ]
        return posterior.mean + posterior.std * torch.cat(draws).to(posterior.mean.dtype)

    def y(self, indices: Sequence[int]) -> Tensor | None:
        """What was cached beside images, `[len(indices), ...]`; None if nothing was."""
        return self._rows("y", indices) if "y" in self._names else None

    def __getstate__(self) -> dict[str, object]:
        """All but the mapped memory, which each process maps for itself."""
        state: dict[str, object] = {**self.__dict__, "_shards": {}}
        return state

    def _rows(self, name: str, indices: Sequence[int]) -> Tensor:
        rows: list[Tensor] = []
        for index in indices:
            if not -len(self) <= index < len(self):
                raise IndexError(f"indices must be in [{-len(self)}, {len(self) - 1}], got {index}")
            place = index % len(self)
            number = bisect_right(self._ends, place)
            start = self._ends[number - 1] if number else 0
            rows.append(self._shard(number)[name][place - start])
        return torch.stack(rows)

    def _shard(self, number: int) -> dict[str, Tensor]:
        """A shard, mapped when it is first asked for."""
        if number not in self._shards:
            self._shards[number] = read_tensors(self.folder / self._files[number])
        return self._shards[number]


@torch.no_grad()
def cache_latents(
    autoencoder: Autoencoder,
    batches: Iterable[Images | tuple[Images, Tensor]],
    folder: str | os.PathLike[str],
    *,
    preprocessing: str,
    shard_size: int = 4096,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    seed: int = 0,
) -> LatentCache:
    """Encode a data set once, and write the moments of its latents to shards.

    Moments, not draws, so that training sees another draw in each epoch. Each shard is complete or not there, and the
    index is written last: an interrupted writing leaves no cache. The autoencoder is in evaluation mode meanwhile.

    Args:
        autoencoder: The first stage, calibrated: latents are cached as `encode` gives them, of unit size.
        batches: Images `[batch, channels, *spatial]`, all of one spatial size, or pairs of them and what belongs to
            them, a tensor `[batch, ...]` such as labels. They are moved to the device of the weights.
        folder: Where shards `latents-00000.safetensors`, ... and `index.json` go; made if missing.
        preprocessing: What the images went through, in words: whoever opens the cache must say the same.
        shard_size: Images in a shard.
        dtype: In which moments are kept; a half-precision type halves the space and rounds them.
        overwrite: Whether a cache that is there gives way.
        seed: As for `LatentCache`.

    Returns:
        The cache, opened.

    Raises:
        ValueError: If there are no batches, their sizes differ, or a tensor does not fit.
        FileExistsError: If there is a cache already, and no `overwrite`.
    """
    check_count("shard_size", shard_size)
    check_choice("dtype", dtype, DTYPES)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists() and not overwrite:
        raise FileExistsError(
            f"folder must hold no cache yet, got {folder}; open it with LatentCache, or overwrite=True"
        )
    for old in (folder / INDEX, *sorted(folder.glob("latents-*.safetensors"))):  # the index first: no half-old cache
        old.unlink(missing_ok=True)
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        writer = _Writer(folder, shard_size, dtype)
        for batch in batches:
            images, y = batch if isinstance(batch, tuple | list) else (batch, None)
            writer.add(images, autoencoder.encode(images.to(autoencoder.last_layer.device)), y)
        writer.finish(autoencoder, preprocessing)
    finally:
        autoencoder.train(was_training)
    return LatentCache(folder, autoencoder, preprocessing=preprocessing, seed=seed)


class _Writer:
    """Collects samples until a shard is full."""

    def __init__(self, folder: Path, shard_size: int, dtype: torch.dtype) -> None:
        self.folder, self.shard_size, self.dtype = folder, shard_size, dtype
        self.size: tuple[int, ...] = ()
        self.shards: list[dict[str, int | str]] = []
        self.waiting: list[dict[str, Tensor]] = []
        self.names: set[str] = set()

    def add(self, images: Images, posterior: Posterior, y: Tensor | None) -> None:
        """Take the posterior of a batch `[batch, ...]`, and write what shards it fills."""
        size = tuple(images.shape[2:])
        if self.size and size != self.size:
            raise ValueError(f"batches must have one spatial size, got {list(self.size)} and {list(size)}")
        self.size = size
        part = {"mean": posterior.mean.to("cpu", self.dtype)}
        if isinstance(posterior, DiagonalGaussian):
            part["log_variance"] = posterior.log_variance.to("cpu", self.dtype)
        if y is not None:
            if len(y) != len(images):
                raise ValueError(f"y must have the {len(images)} samples of images, got {len(y)}")
            part["y"] = y.detach().cpu()
        if self.names and part.keys() != self.names:
            raise ValueError("batches must all be images, or all pairs of images and y, got both")
        self.names = set(part)
        self.waiting.append(part)
        while sum(len(part["mean"]) for part in self.waiting) >= self.shard_size:
            self._write(self.shard_size)

    def finish(self, autoencoder: Autoencoder, preprocessing: str) -> None:
        """Write what is left, and then the index."""
        if rest := sum(len(part["mean"]) for part in self.waiting):
            self._write(rest)
        if not self.shards:
            raise ValueError("batches must hold at least one batch, got none")
        fingerprint = Fingerprint.of(autoencoder, preprocessing, self.size)
        index = {
            "format": FORMAT,
            "encoder": fingerprint.encoder,
            "preprocessing": preprocessing,
            "size": list(self.size),
            "shift": autoencoder.latent_shift.tolist(),
            "scaling": autoencoder.latent_scaling.tolist(),
            "tensors": sorted(self.names),
            "shards": self.shards,
        }
        replace(self.folder / INDEX, lambda beside: beside.write_text(json.dumps(index, indent=2) + "\n"))

    def _write(self, count: int) -> None:
        """Write the first `count` samples that wait; the rest waits on."""
        joined = {name: torch.cat([part[name] for part in self.waiting]) for name in sorted(self.names)}
        file = f"latents-{len(self.shards):05}.safetensors"
        write_safetensors(self.folder / file, {name: tensor[:count] for name, tensor in joined.items()})
        self.shards.append({"file": file, "samples": count, "bytes": (self.folder / file).stat().st_size})
        rest = {name: tensor[count:].clone() for name, tensor in joined.items()}
        self.waiting = [rest] if len(rest["mean"]) else []


def _read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache that was written to its end."""
    path = folder / INDEX
    if not path.is_file():
        if any(folder.glob("latents-*.safetensors")):
            raise CheckpointError(f"{folder} has shards but no {INDEX}: its writing was interrupted; write it anew")
        raise CheckpointError(f"{folder} must be a folder that cache_latents wrote, but it has no {INDEX}")
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        version = index["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version of latentdiff reads {FORMAT}")
    return index


def _checked_file(folder: Path, shard: dict[str, Any]) -> str:
    """The name of a shard that is there and as long as it was when written."""
    path = folder / shard["file"]
    size = path.stat().st_size if path.is_file() else 0
    if size != shard["bytes"]:
        raise CheckpointError(f"{path} must have {shard['bytes']} bytes, got {size}: missing or damaged")
    return str(shard["file"])
