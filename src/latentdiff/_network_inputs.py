"""What every denoising network does with its inputs: time and condition checked against what it was built for."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor, nn

from latentdiff._checks import SPATIAL, check_range, check_shape
from latentdiff._condition import Condition
from latentdiff._typing import Latents, Times


def check_latents(network: nn.Module, latent_channels: int, spatial_dims: int) -> None:
    """Require that a network, where it says what it takes, takes the latents of a first stage.

    Raises:
        ValueError: If it has other channels, or another number of spatial axes.
    """
    for name, wanted in {"in_channels": latent_channels, "spatial_dims": spatial_dims}.items():
        taken = getattr(network, name, wanted)
        if taken != wanted:
            raise ValueError(f"unet must have {name}={wanted}, as the autoencoder's latents, got {name}={taken}")


def batch_times(t: Times, x: Latents) -> Tensor:
    """`t`, a number, `[]` or `[batch]`, for each sample of `x` `[batch, ...]`: `[batch]`, on its device.

    Raises:
        TypeError: If it holds anything but real numbers; booleans count as none.
        ValueError: If it has another shape.
    """
    if isinstance(t, bool) or not isinstance(t, Tensor | Real):
        raise TypeError(f"t must be a number or a tensor, got {type(t).__name__}")
    if not isinstance(t, Tensor):
        return torch.full(x.shape[:1], float(t), device=x.device)
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"t must hold real numbers, got {t.dtype}")
    if t.ndim:
        check_shape("t", t, "batch", batch=x.shape[0])
    return t.to(x.device).expand(x.shape[0])


def class_vectors(table: nn.Embedding, labels: Tensor) -> Tensor:
    """The vectors `[batch, dim]` of labels `[batch]`; zero for -1, which is none.

    A label out of range, which on an accelerator nobody waits for to see, becomes NaN, never another class.
    """
    vectors: Tensor = table(labels.clamp(0, table.num_embeddings - 1))
    known = (labels >= -1) & (labels < table.num_embeddings)
    weight = torch.where(known, (labels >= 0).to(vectors.dtype), torch.nan)
    return vectors * weight[:, None]


def fitting_condition(
    condition: Condition | Tensor | None,
    x: Latents,
    *,
    network: str,
    context_dim: int | None,
    embedding_dim: int | None,
    num_classes: int | None,
    concat_channels: int,
) -> Condition:
    """The condition, each part of it there where the network has a use for it and only there.

    Args:
        condition: What the network was given; a tensor `[batch, length, context_dim]` is the context.
        x: `[batch, channels, *spatial]`.
        network: The network's name, for messages.
        context_dim: As the network was built.
        embedding_dim: Likewise.
        num_classes: Likewise; labels may be left out.
        concat_channels: Likewise; a `concat` of size 1 on each axis is repeated to the size of `x`.

    Raises:
        TypeError: If it is something else, or labels are not integers.
        ValueError: If a part is missing, has no use, or a shape does not fit.
    """
    if condition is None:
        condition = Condition()
    elif isinstance(condition, Tensor):
        condition = Condition(context=condition)
    elif not isinstance(condition, Condition):
        raise TypeError(f"condition must be a Condition, a tensor or None, got {type(condition).__name__}")
    _check_use(network, "context", condition.context, "context_dim", context_dim)
    _check_use(network, "concat", condition.concat, "concat_channels", concat_channels or None)
    if num_classes is None:
        _check_use(network, "embedding", condition.embedding, "embedding_dim or num_classes", embedding_dim)
    if condition.concat is not None and all(n == 1 for n in condition.concat.shape[2:]):
        condition = condition.expand(x.shape[2:])  # the null of a map is one point, for any size
    batch = x.shape[0]
    if condition.context is not None and context_dim is not None:
        check_shape("context", condition.context, "batch length dim", batch=batch, dim=context_dim)
    if condition.concat is not None:
        _check_concat(condition.concat, x, concat_channels)
    if condition.embedding is not None:
        _check_embedding(condition.embedding, batch, embedding_dim, num_classes)
    return condition


def _check_concat(concat: Tensor, x: Latents, channels: int) -> None:
    """Require `concat` to have the size of `x` and the channels that the network was built with."""
    axes = SPATIAL[x.ndim - 2]
    sizes = dict(zip(axes.split(), x.shape[2:], strict=True))
    check_shape("concat", concat, f"batch channels {axes}", batch=x.shape[0], channels=channels, **sizes)


def _check_embedding(embedding: Tensor, batch: int, dim: int | None, num_classes: int | None) -> None:
    """Require vectors of size `dim`, or labels."""
    if dim is not None:
        check_shape("embedding", embedding, "batch dim", batch=batch, dim=dim)
    if num_classes is not None:
        check_shape("embedding", embedding, "batch", batch=batch)
        if embedding.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"embedding must hold integer labels, as num_classes says, got {embedding.dtype}")
        check_range("embedding", embedding, -1, num_classes - 1)


def _check_use(network: str, name: str, part: Tensor | None, argument: str, size: int | None) -> None:
    """Require `part` where the network was built with `argument`, and its absence elsewhere."""
    if part is None and size is not None:
        raise ValueError(
            f"condition must have a part {name}: this {network} was built with {argument}={size}, got none"
        )
    if part is not None and size is None:
        raise ValueError(
            f"condition must have no part {name}: this {network} was built without {argument}, got {list(part.shape)}"
        )
