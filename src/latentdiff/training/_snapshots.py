"""Averages chosen after training (Karras et al. 2024, arXiv:2312.02696, section 3.2 and appendix C)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latentdiff._checkpoints._files import read_tensors, write_safetensors
from latentdiff._errors import CheckpointError
from latentdiff.training._power_ema import PowerEMA, gamma_of
from latentdiff.training._sharding import whole_state

NAME: Final = re.compile(r"average-(\d\.\d{6})-(\d{9})\.safetensors")


@dataclass(frozen=True)
class Profile:
    r"""How much the weights of a step count in an average, \(p(\tau) = (\gamma + 1)\, \tau^\gamma / t^{\gamma + 1}\).

    Attributes:
        gamma: \(\gamma\).
        updates: t, the length of the training it is of.
    """

    gamma: float
    updates: int


def combine(profiles: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The factors by which profiles add up to `wanted` with the least squared error.

    Returns:
        The factors, and the error's norm as a share of that of `wanted`.
    """
    every = [*profiles, wanted]
    norms = torch.tensor([_product(p, p) for p in every], dtype=torch.float64).sqrt()
    products = torch.tensor([[_product(p, q) for q in every] for p in every], dtype=torch.float64)
    cosines = products / norms / norms[:, None]
    # profiles of neighbouring snapshots are nearly the same: what is below rounding is left out
    answer: Tensor = torch.linalg.pinv(cosines[:-1, :-1], hermitian=True, rtol=1e-14) @ cosines[:-1, -1]
    rest = torch.cat([answer, -torch.ones(1, dtype=torch.float64)])
    error = (rest @ cosines @ rest).clamp(min=0).sqrt()
    return (answer * norms[-1] / norms[:-1]).tolist(), error.item()


def _product(p: Profile, q: Profile) -> float:
    """The inner product of two profiles: the integral of their product over the steps."""
    low, high = (p, q) if p.updates <= q.updates else (q, p)
    share: float = (low.updates / high.updates) ** high.gamma
    return (p.gamma + 1) * (q.gamma + 1) / (p.gamma + q.gamma + 1) * share / high.updates


class EMASnapshots:
    """Snapshots of `PowerEMA` averages in a folder, from which an average of any other width is put together.

    Attributes:
        folder: Where they are: `average-<width>-<updates>.safetensors`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Look at a folder, which need not be there yet."""
        self.folder: Path = Path(folder)

    def add(self, *averages: PowerEMA[Any], dtype: torch.dtype | None = None) -> None:
        """Write snapshots of averages as they are, complete or not there; on several processes, on each.

        Args:
            averages: At least two of different widths are wanted, at the same times.
            dtype: In which floating weights are kept, such as `torch.float16`; None as they are.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for average in averages:
            path = self.folder / f"average-{average.sigma_rel:.6f}-{average.updates:09}.safetensors"
            averaged = set(average.averaged)
            frozen = {name for name, _ in average.module.named_parameters()} - averaged
            tensors = {name: tensor for name, tensor in whole_state(average.module).items() if name not in frozen}
            if dtype is not None:
                tensors = {name: t.to(dtype) if name in averaged else t for name, t in tensors.items()}
            write_safetensors(path, tensors)

    def _profiles(self) -> dict[Path, Profile]:
        """The snapshots that are there, oldest first, and of what they are."""
        found = [(path, NAME.fullmatch(path.name)) for path in self.folder.glob("average-*.safetensors")]
        known = [(int(match[2]), float(match[1]), path) for path, match in found if match is not None]
        return {path: Profile(gamma_of(sigma_rel), updates) for updates, sigma_rel, path in sorted(known)}

    @torch.no_grad()
    def reconstruct(self, module: nn.Module, sigma_rel: float, *, updates: int | None = None) -> float:
        """Give `module` the weights that a `PowerEMA` of this width would have had.

        Args:
            module: Like what was averaged.
            sigma_rel: Width of the average, as for `PowerEMA`.
            updates: After how many updates; None after those of the last snapshot. Later snapshots are left out.

        Returns:
            The error of the profile as a share of its norm: near 0 where it is well inside what the snapshots span.

        Raises:
            CheckpointError: If there are no snapshots so early, or they do not fit `module`.
            ValueError: If `sigma_rel` is out of range.
        """
        profiles = self._profiles()
        if updates is None:
            updates = max((profile.updates for profile in profiles.values()), default=0)
        used = {path: profile for path, profile in profiles.items() if profile.updates <= updates}
        if not used:
            raise CheckpointError(f"{self.folder} must have snapshots of at most {updates} updates, got none")
        factors, error = combine(list(used.values()), Profile(gamma_of(sigma_rel), updates))
        _fill(module, list(used), factors)
        return error


def _fill(module: nn.Module, paths: Sequence[Path], factors: Sequence[float]) -> None:
    """Weights are the sum of those of files, each by its factor; buffers are those of the last one."""
    weights = dict(module.named_parameters())
    sums: dict[str, Tensor] = {}
    for path, factor in zip(paths, factors, strict=True):
        stored = read_tensors(path)
        if lost := sorted(stored.keys() - module.state_dict().keys()):
            raise CheckpointError(f"{path} does not fit module, which has no {', '.join(lost[:4])}", unexpected=lost)
        for name in stored.keys() & weights.keys():
            part = factor * stored[name].double()
            sums[name] = sums[name] + part if name in sums else part
    for name, weight in weights.items():
        if name in sums:
            weight.copy_(sums[name])
    buffers = dict(module.named_buffers())
    for name, tensor in read_tensors(paths[-1]).items():
        if name in buffers:
            buffers[name].copy_(tensor)
