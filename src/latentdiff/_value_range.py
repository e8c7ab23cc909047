"""The range of values that data are declared to have."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from latentdiff._checks import check_range


def checked_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    """`value_range` as a pair.

    Raises:
        ValueError: If it is neither None nor a lower and a higher number.
    """
    if value_range is None:
        return None
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range must be None or (lowest, highest), got {value_range}")
    return value_range[0], value_range[1]


def check_values(name: str, tensor: Tensor, value_range: tuple[float, float] | None) -> None:
    """Require finite values, in `value_range` if there is one; only where looking costs no wait for a device.

    Args:
        name: What the caller calls the tensor.
        tensor: Any shape, floating.
        value_range: Lowest and highest value.

    Raises:
        ValueError: If a value is outside or not a number.
    """
    check_range(name, tensor, *((-math.inf, math.inf) if value_range is None else value_range))


def warn_of_unit_range(x: Tensor, stacklevel: int) -> bool:
    """Say so if data for [-1, 1] look as if they were in [0, 1]; a constant proves nothing.

    Args:
        x: Any shape, floating.
        stacklevel: Which caller the warning is for: 1 is whoever called this.

    Returns:
        Whether they do.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    least, most = (bound.item() for bound in torch.aminmax(x.detach()))
    if not 0 <= least < most:
        return False
    warnings.warn(
        f"all values of x are in [{least:g}, {most:g}], but this autoencoder's are in [-1, 1]; data in [0, 1] need "
        "2 * x - 1, or an autoencoder with value_range=(0, 1)",
        stacklevel=stacklevel + 1,
    )
    return True
