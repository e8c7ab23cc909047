"""What a checkpoint holds of an engine, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from latentdiff._errors import CheckpointError
from latentdiff.training import _checkpoint as files
from latentdiff.training._engine import Engine
from latentdiff.training._objective import Objective


def tensors_of(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of any shape, and what is no tensor: of modules, optimisers and averages."""
    tensors = _modules(engine)
    numbers: dict[str, Any] = {}
    for objective, optimizer in zip(engine.objectives, engine.optimizers, strict=True):
        for name, state in _named(objective, optimizer).items():
            for entry, value in state.items():
                where = f"{_place(objective)}optimizer/{name}/{entry}"
                (tensors if isinstance(value, Tensor) else numbers)[where] = value
    return tensors, {"optimizers": numbers, "updates": [ema.updates for ema, _ in engine.averages]}


@torch.no_grad()
def load(engine: Engine, path: Path, plain: dict[str, Any], besides: str) -> dict[str, Tensor]:
    """Fill an engine from a checkpoint.

    Returns:
        The tensors whose names begin with `besides`, each of the shape it was written with.

    Raises:
        CheckpointError: If it does not fit.
    """
    if len(plain["updates"]) != len(engine.averages):
        raise CheckpointError(f"{path} has {len(plain['updates'])} averages, not {len(engine.averages)}")
    found = files.shapes(path)
    targets = _modules(engine)
    states = [_allocated(objective, found) for objective in engine.objectives]
    for objective, state in zip(engine.objectives, states, strict=True):
        targets |= {
            f"{_place(objective)}optimizer/{name}/{entry}": value
            for name, entries in state.items()
            for entry, value in entries.items()
        }
    others = {name: torch.zeros(size, dtype=torch.float64) for name, size in found.items() if name.startswith(besides)}
    files.read_into(path, targets | others)
    for objective, optimizer, state in zip(engine.objectives, engine.optimizers, states, strict=True):
        _fill(objective, optimizer, state, plain["optimizers"])
    for (ema, _), updates in zip(engine.averages, plain["updates"], strict=True):
        ema.updates = updates
    return others


def _modules(engine: Engine) -> dict[str, Tensor]:
    """Parameters and buffers, of any shape: of the objectives, and of the averages what is averaged or a buffer."""
    tensors: dict[str, Tensor] = {}
    for objective in engine.objectives:
        for name, value in objective.module.state_dict().items():
            tensors[f"{_place(objective)}module/{name}"] = value
    for i, (ema, _) in enumerate(engine.averages):
        frozen = {name for name, _ in ema.module.named_parameters()} - set(ema.averaged)
        for name, value in ema.module.state_dict().items():
            if name not in frozen:
                tensors[f"average/{i}/{name}"] = value
    return tensors


def _place(objective: Objective) -> str:
    return f"objective/{objective.name or 'loss'}/"


def _named(objective: Objective, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """The optimiser's state by name of parameter."""
    state = optimizer.state_dict()["state"]
    return {objective.parameter_names[i]: dict(entries) for i, entries in state.items()}


def _allocated(objective: Objective, found: dict[str, torch.Size]) -> dict[str, dict[str, Tensor]]:
    """Room for the optimiser's state that a checkpoint has, sharded as the parameters are, each of its shape there."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, weight in zip(objective.parameter_names, objective.parameters, strict=True):
        start = f"{_place(objective)}optimizer/{name}/"
        for place, size in found.items():
            if place.startswith(start) and "/" not in (entry := place.removeprefix(start)):
                room = torch.zeros_like(weight.detach()) if size == weight.shape and size else torch.zeros(size)
                state.setdefault(name, {})[entry] = room
    return state


def _fill(objective: Objective, optimizer: Optimizer, state: dict[str, dict[str, Any]], plain: dict[str, Any]) -> None:
    for place, value in plain.items():
        if place.startswith(start := f"{_place(objective)}optimizer/"):
            name, _, entry = place.removeprefix(start).rpartition("/")
            state.setdefault(name, {})[entry] = value
    content = optimizer.state_dict()
    numbers = {name: i for i, name in enumerate(objective.parameter_names)}
    content["state"] = {numbers[name]: entries for name, entries in state.items()}
    optimizer.load_state_dict(content)
