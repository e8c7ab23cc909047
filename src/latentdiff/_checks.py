"""Checks at every border, and the one way to scale a batch."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Final

import torch
from torch import Tensor

SPATIAL: Final = {1: "length", 2: "height width", 3: "depth height width"}
"""Names of the spatial axes, by their number."""


def check_shape(name: str, tensor: Tensor, pattern: str, **sizes: int) -> None:
    """Require that `tensor` has the axes of `pattern`, of the given `sizes`, and no empty axis.

    Args:
        name: What the caller calls the tensor.
        tensor: Any tensor.
        pattern: Axis names, such as `"batch length dim"`; a last `...` stands for any further axes.
        sizes: Required size of an axis, by its name.

    Raises:
        TypeError: If `tensor` is no tensor.
        ValueError: If the rank or a size does not fit, or an axis is empty.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    axes = pattern.split()
    is_open = axes[-1] == "..."
    named = axes[:-1] if is_open else axes
    shape = list(tensor.shape)
    if len(shape) < len(named) or (len(shape) > len(named) and not is_open):
        at_least = "at least " if is_open else ""
        raise ValueError(f"{name} must have {at_least}{len(named)} axes [{', '.join(axes)}], got {len(shape)}: {shape}")
    for axis, size in zip(named, shape, strict=False):
        if axis in sizes and size != sizes[axis]:
            raise ValueError(
                f"{name} must have {axis}={sizes[axis]}, got {axis}={size} in [{', '.join(axes)}] = {shape}"
            )
    if 0 in shape:
        raise ValueError(f"{name} must not be empty, got shape {shape}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Require a floating dtype.

    Raises:
        TypeError: If `tensor` is no tensor, or holds integers, booleans or complex numbers.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating, got {tensor.dtype}; convert it, e.g. with .float()")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Require that `value` is one of `choices`.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Require a finite number above zero.

    Raises:
        TypeError: If `value` is no number; a bool counts as none.
        ValueError: If it is not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_shown(value)}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive, got {value}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Require a whole number, of Python or numpy, of at least `least`.

    Raises:
        TypeError: If `value` is no int; a bool counts as none.
        ValueError: If it is less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {_shown(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_rate(name: str, value: float) -> None:
    """Require a share, a number in [0, 1].

    Raises:
        TypeError: If `value` is no number; a bool counts as none.
        ValueError: If it is outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {_shown(value)}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_times(name: str, t: Tensor, x: Tensor) -> None:
    """Require one time for the batch of `x` `[batch, ...]`, `[]`, or one for each sample, `[batch]`.

    Raises:
        ValueError: If `t` has another shape.
    """
    if t.ndim and t.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must have shape [] or [{x.shape[0]}], the batch of {list(x.shape)}, got {list(t.shape)}"
        )


def check_range(name: str, tensor: Tensor, low: float, high: float) -> None:
    """Require finite values in [low, high], bounds that may be infinite; only where looking costs no wait for a device.

    Tensors of an accelerator and of a compiled graph are not looked at.

    Raises:
        ValueError: If a value is outside or not a number.
    """
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return
    least, most = (bound.item() for bound in torch.aminmax(tensor.detach()))
    if math.isnan(least):  # then the other is too
        raise ValueError(f"{name} must be finite, got NaN")
    if math.isinf(least) or math.isinf(most):
        raise ValueError(f"{name} must be finite, got values in [{least:g}, {most:g}]")
    if least >= low and most <= high:
        return
    raise ValueError(f"{name} must be in [{low:g}, {high:g}], got values in [{least:g}, {most:g}]")


def check_order(low_name: str, low: Tensor, high_name: str, high: Tensor) -> None:
    """Require low <= high, both of the same shape; looked at as in `check_range`.

    Raises:
        ValueError: If a pair is in the wrong order.
    """
    if torch.compiler.is_compiling() or low.device.type != "cpu":
        return
    wrong = (low > high).nonzero()
    if len(wrong):
        first = tuple(wrong[0].tolist())
        raise ValueError(
            f"{low_name} must be at most {high_name}, got {low_name}={low[first].item():g} and "
            f"{high_name}={high[first].item():g}"
        )


def like(scale: Tensor | float, x: Tensor) -> Tensor | float:
    """`scale` of shape `[]` or `[batch]`, shaped and typed so that it multiplies `x` `[batch, ...]` by sample."""
    if not isinstance(scale, Tensor):
        return scale
    if scale.ndim == 0:
        return scale.to(x.dtype)
    if scale.shape != x.shape[:1]:
        raise ValueError(
            f"a scale must have shape [] or [{x.shape[0]}], the batch of {list(x.shape)}, got {list(scale.shape)}"
        )
    return by_sample(scale.to(x.dtype), x)


def by_sample(values: Tensor, x: Tensor) -> Tensor:
    """`values` `[batch]` with further axes of size 1, so that they meet the samples of `x` `[batch, ...]`."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def batch_times(name: str, t: Tensor | float, x: Tensor) -> Tensor:
    """`t`, `[]`, `[batch]` or a number, as float64 `[batch]` on the device of `x` `[batch, ...]`; checked.

    A number is not copied there: a device need not wait.
    """
    if not isinstance(t, Tensor):
        return torch.full((len(x),), t, dtype=torch.float64, device=x.device)
    check_times(name, t, x)
    return t.to(x.device, torch.float64).expand(len(x))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the arithmetic of diffusion is done: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _shown(value: object) -> str:
    """A short value as it is written, of others the type."""
    return repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__
