"""Precision and recall of samples by nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff._checks import check_shape


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1].

    Attributes:
        precision: Share of the generated samples that lie among the real ones.
        recall: Share of the real samples that lie among the generated ones.
    """

    precision: float
    recall: float


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2).

    A point lies among a set if it is within the distance of one of its points to that point's k-th nearest neighbour in
    the set.

    Args:
        generated: Features `[samples, dim]`.
        real: Features `[other_samples, dim]`.
        neighbours: k, at least 1 and below the size of both sets.

    Raises:
        ValueError: If the shapes do not fit or k is out of range.
    """
    check_shape("generated", generated, "samples dim")
    check_shape("real", real, "samples dim", dim=generated.shape[1])
    if not 1 <= neighbours < min(len(generated), len(real)):
        raise ValueError(f"neighbours must be in [1, {min(len(generated), len(real)) - 1}], got {neighbours}")
    a, b = generated.double(), real.double()
    return PrecisionRecall(_covered(a, b, neighbours), _covered(b, a, neighbours))


def _covered(points: Tensor, among: Tensor, neighbours: int) -> float:
    """Share of `points` within the radius of a point of `among`."""
    radius = torch.cdist(among, among).kthvalue(neighbours + 1, dim=1).values  # the nearest one is the point itself
    return (torch.cdist(points, among) <= radius).any(1).double().mean().item()
