"""Inputs and outputs of published models, from a folder that `LATENTDIFF_ZOO` names; tests skip without it.

The folder has, for each model, `<name>.json` with its checkpoint's keys and shapes and `<name>.safetensors` with inputs
and outputs; and `deterministic_weights.py`, which makes the weights that the outputs were computed with.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = os.environ.get("LATENTDIFF_ZOO")
needs_zoo = pytest.mark.skipif(FOLDER is None, reason="LATENTDIFF_ZOO names no folder of published goldens")


def zoo() -> Path:
    assert FOLDER is not None
    return Path(FOLDER)


@functools.cache
def facts(name: str) -> dict[str, Any]:
    """What is known of a model: keys, configuration, counts."""
    return dict(json.loads((zoo() / f"{name}.json").read_text()))


@functools.cache
def goldens(name: str) -> dict[str, Tensor]:
    """Inputs and outputs, by name."""
    return load_file(zoo() / f"{name}.safetensors")


@functools.cache
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deterministic_weights", zoo() / "deterministic_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(name: str, prefix: str) -> dict[str, Tensor]:
    """The weights below `prefix` of a model's checkpoint, under their names without it."""
    state: dict[str, Tensor] = maker().deterministic_state_dict(facts(name)["keys"], prefix=prefix, strip=True)
    return state


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the standard deviation of what is wanted."""
    assert found.shape == wanted.shape
    return (found.double() - wanted.double()).abs().max().item() / wanted.double().std().item()


def text_keys(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published text transformer's weights under the names of ours: the table in `TextEncoder`, as code."""
    tables = {
        "token_emb": "token_embedding",
        "pos_emb.emb": "position_embedding",
        "net.0.0": "linear1",
        "net.2": "linear2",
    }
    state: dict[str, Tensor] = {}
    for key, tensor in published.items():
        if (parts := key.removeprefix("attn_layers.").split("."))[0] == "layers":
            number, place, rest = int(parts[1]), parts[2], ".".join(parts[3:])
            kind = ("norm1", "attention") if number % 2 == 0 else ("norm2", "")
            key = f"blocks.{number // 2}.{kind[int(place)]}.{rest}".replace("..", ".")
        for theirs, ours in tables.items():
            key = key.replace(theirs, ours)
        state[key] = tensor
    return state


TOLERANCE = 1e-4
"""Largest error over the output's standard deviation: two CPU kernels of one model differ by 2e-5 already."""
