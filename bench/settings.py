"""What a run of the benchmark may choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Settings:
    """Options that all workloads share.

    Attributes:
        device: Where contestants run.
        dtype: Of weights and inputs.
        rounds: How often each contestant is timed, at most; 2 at least, however slow.
        seconds: How long one case may be timed, warm-up left out; the number of rounds follows from it.
        quick: Tiny networks, to see that everything runs.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rounds: int = 15
    seconds: float = 30.0
    quick: bool = False

    @property
    def tolerance(self) -> float:
        """How far outputs of equal networks may differ, relative to the largest value: the rounding of a deep one."""
        return 1e-4 if self.dtype == torch.float32 else 0.05

    @property
    def is_cuda(self) -> bool:
        """Whether times are those of a CUDA device."""
        return torch.device(self.device).type == "cuda"
