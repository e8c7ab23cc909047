"""What a benchmark ran on, in general words, and how fast its matrix products are."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from bench.settings import Settings
from bench.timing import Call

SIDES = {"cpu": 1024, "cuda": 8192}
"""Of the matrices whose product is timed; large enough to reach the most there is."""


def described(settings: Settings) -> str:
    """The machine, without its name: processor, cores, versions."""
    if settings.is_cuda:
        device = torch.cuda.get_device_name()
    else:
        device = f"{_processor()}, threads: {torch.get_num_threads()}, processors: {os.cpu_count()}, {_instructions()}"
    dtype = str(settings.dtype).removeprefix("torch.")
    return f"{device}; {dtype}; torch {torch.__version__}; Python {platform.python_version()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _instructions() -> str:
    return f"instructions up to {torch.backends.cpu.get_cpu_capability()}"


def matrix_product(settings: Settings) -> tuple[Call, float]:
    """A product of square matrices, and its work in floating point operations."""
    side = 64 if settings.quick else SIDES.get(torch.device(settings.device).type, 1024)
    a, b = torch.randn(2, side, side, device=settings.device).to(settings.dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * side**3
