"""What a training shows while it runs: a bar, and figures for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm  # type: ignore[import-untyped]

from latentdiff._distributed import is_distributed


class Progress:
    """Shows on the first process; the others are silent."""

    def __init__(self, folder: Path | None, *, bar: bool, tensorboard: bool) -> None:
        is_first = not is_distributed() or dist.get_rank() == 0
        self._has_bar = bar and is_first
        self._bar: tqdm[Any] | None = None
        self._writer: Any = _writer(folder) if tensorboard and is_first else None
        self._last = 0.0

    @contextmanager
    def running(self, step: int, until: int) -> Generator[None]:
        """Within, steps are shown."""
        self._last = time.perf_counter()
        self._bar = tqdm(total=until, initial=step, unit="step", disable=not self._has_bar)
        try:
            yield
        finally:
            self._bar.close()
            if self._writer is not None:
                self._writer.flush()

    def show(self, step: int, figures: Mapping[str, float], samples: int) -> None:
        """Tell of a step and of the samples it took, on all processes."""
        now = time.perf_counter()
        samples *= dist.get_world_size() if is_distributed() else 1
        per_second, self._last = samples / max(now - self._last, 1e-9), now
        if self._bar is not None and not self._bar.disable:
            losses = {name: f"{value:.4g}" for name, value in figures.items() if name.split("/")[-1] == "loss"}
            self._bar.set_postfix(losses | {"samples/s": f"{per_second:.3g}"}, refresh=False)
            self._bar.update()
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.add_scalar("samples_per_second", per_second, step)


def _writer(folder: Path | None) -> Any:
    if folder is None:
        raise ValueError("folder must be given for tensorboard=True, got None")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard must be installed for tensorboard=True: pip install tensorboard") from error
    return SummaryWriter(str(folder))
