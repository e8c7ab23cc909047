"""Help for the tests of conditions and their encoders."""

from __future__ import annotations

import torch
from torch import Tensor

import latentdiff as ld


def parts(condition: ld.Condition) -> dict[str, Tensor]:
    """What is there, by name."""
    named = {name: getattr(condition, name) for name in ("context", "context_mask", "embedding", "concat")}
    return {name: part for name, part in named.items() if part is not None}


def assert_same(one: ld.Condition, other: ld.Condition) -> None:
    """All parts equal, bit for bit."""
    assert parts(one).keys() == parts(other).keys()
    for name, part in parts(one).items():
        assert torch.equal(part, parts(other)[name]), name
