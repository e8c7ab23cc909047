"""The contract of a condition encoder."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import fields

import torch
from torch import Tensor

from latentdiff._condition import Condition, ConditionEncoder
from latentdiff.testing._checking import require, require_close

TOLERANCE = 1e-5
"""Rounding of float32 through a network."""


def check_condition_encoder(encoder: ConditionEncoder, y: object) -> None:
    """Require what every condition encoder promises.

    It answers with a `Condition` of the batch of `y`; the null has the same parts and shapes, fits any batch, and takes
    the place of whole samples: none at probability 0, all at 1. Only training marks the null as trained. Everything
    that makes conditions and nulls is in the state: a new encoder that loads it gives the same.

    The encoder itself is left as it is; copies are used.

    Args:
        encoder: An encoder, in any mode.
        y: What it encodes, two samples or more.

    Raises:
        AssertionError: If it does not, saying what.
    """
    name, tested = type(encoder).__name__, copy.deepcopy(encoder).eval()
    with torch.no_grad():
        condition = tested(y)
        require(
            isinstance(condition, Condition), f"{name} must answer with a Condition, got {type(condition).__name__}"
        )
        require(len(condition) >= 2, f"{name} must be checked with two samples or more, got {condition}")
        _same(tested(y), condition, f"{name} must give the same twice in evaluation mode")
        _check_null(tested, condition, name)
        _check_drop(tested, condition, name)
        _check_training(tested, condition, name)
        _check_state(encoder, y, name)


def _check_null(encoder: ConditionEncoder, condition: Condition, name: str) -> None:
    batch = len(condition)
    null = encoder.null(batch)
    require(len(null) == batch, f"{name}.null({batch}) must have a batch of {batch}, got {null}")
    try:
        condition.where(torch.zeros(batch, dtype=torch.bool, device=_device(condition)), null)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{name}.null must have the parts and shapes of a condition: {error}") from error
    _same(encoder.null(1), null[:1], f"{name}.null must not depend on the batch")
    _same(encoder.null(batch)[1:2], null[:1], f"{name}.null must be the same for every sample")


def _check_drop(encoder: ConditionEncoder, condition: Condition, name: str) -> None:
    null, batch = encoder.null(len(condition)), len(condition)
    device = _device(condition)
    none, every = (
        torch.ones(batch, dtype=torch.bool, device=device),
        torch.zeros(batch, dtype=torch.bool, device=device),
    )
    _same(encoder.drop(condition, 0.0), condition, f"{name}.drop at probability 0 must change nothing")
    _same(
        encoder.drop(condition, 1.0), condition.where(every, null), f"{name}.drop at probability 1 must leave the null"
    )
    kept = condition.where(none, null)
    for seed in range(8):
        dropped = encoder.drop(condition, 0.5, torch.Generator().manual_seed(seed))
        for row in range(batch):
            one = dropped[row : row + 1]
            whole = _equal(one, kept[row : row + 1]) or _equal(one, condition.where(every, null)[row : row + 1])
            require(whole, f"{name}.drop must replace whole samples")


def _check_training(encoder: ConditionEncoder, condition: Condition, name: str) -> None:
    encoder.null_trained.fill_(False)
    encoder.drop(condition, 1.0)
    require(not encoder.null_trained, f"{name}: dropping in evaluation mode must not mark the null as trained")
    encoder.train().drop(condition, 1.0)
    require(bool(encoder.null_trained), f"{name}: dropping in training must mark the null as trained")
    encoder.eval()


def _check_state(encoder: ConditionEncoder, y: object, name: str) -> None:
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    require("null_trained" in state, f"{name}: the state must hold null_trained")
    source, other = copy.deepcopy(encoder).eval(), _another(encoder).eval()
    for value in other.state_dict().values():
        value.copy_(torch.logical_not(value) if value.dtype == torch.bool else torch.full_like(value, 0.1))
    other.load_state_dict(state)
    message = f"{name}: everything that makes a condition must be in the state"
    _same(other(y), source(y), message)
    _same(other.null(2), source.null(2), message)
    require(bool(other.null_trained == source.null_trained), message)


def _another(encoder: ConditionEncoder) -> ConditionEncoder:
    """A new encoder of the same configuration; a copy where its parts are objects that JSON cannot describe."""
    with contextlib.suppress(TypeError, ValueError):
        return type(encoder)(**encoder.config)  # type: ignore[arg-type]  # of a subclass
    return copy.deepcopy(encoder)


def _device(condition: Condition) -> torch.device:
    return next(iter(_parts(condition).values())).device


def _parts(condition: Condition) -> dict[str, Tensor]:
    named = ((one.name, getattr(condition, one.name)) for one in fields(condition))
    return {name: part for name, part in named if part is not None}


def _same(found: Condition, wanted: Condition, message: str) -> None:
    one, two = _parts(found), _parts(wanted)
    require(one.keys() == two.keys(), f"{message}: parts {sorted(one)} and {sorted(two)}")
    for key in one:
        require_close(one[key], two[key], TOLERANCE, f"{message}, {key}")


def _equal(found: Condition, wanted: Condition) -> bool:
    one, two = _parts(found), _parts(wanted)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
