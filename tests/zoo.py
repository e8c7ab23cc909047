"""Outputs of the published code, from the folder that LATENTDIFF_ZOO names; tests that need them skip without it."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Golden:
    """One file of the zoo: what the published code computed, and from which weights."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names begin with `prefix`, without it."""
        path = folder() / "deterministic_weights.py"
        spec = importlib.util.spec_from_file_location("deterministic_weights", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        weights: dict[str, Tensor] = module.deterministic_state_dict(self.facts["keys"], prefix=prefix, strip=True)
        return weights


def folder() -> Path:
    """The zoo, or a skipped test."""
    if "LATENTDIFF_ZOO" not in os.environ:
        pytest.skip("LATENTDIFF_ZOO names no folder with outputs of the published code")
    return Path(os.environ["LATENTDIFF_ZOO"])


def facts(name: str) -> dict[str, Any]:
    """Names, shapes and hyperparameters of `name`, or a skipped test."""
    found: dict[str, Any] = json.loads((folder() / f"{name}.json").read_text())
    return found


def golden(name: str) -> Golden:
    """What `name` computed, or a skipped test."""
    return Golden(load_file(folder() / f"{name}.safetensors"), facts(name))


def assert_published(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the output's standard deviation (of its size, for a number): ten times the CPU kernels' noise."""
    scale = expected.std() if expected.numel() > 2 else expected.abs().max()
    torch.testing.assert_close(actual.reshape(expected.shape), expected, rtol=0, atol=1e-4 * scale.item())
