"""Distance between two sets of features, taken as Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff._checks import check_shape
from latentdiff._value_range import check_values


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    r"""Squared Frechet distance between two sets of features, taken as Gaussians.

    Heusel et al. 2017, arXiv 1706.08500:

    \(\|\mu_1 - \mu_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})\)

    With the features of an Inception network this is the FID; its value means nothing without the name of the network.

    Args:
        features: `[samples, dim]`, two samples at least.
        reference: `[other_samples, dim]`.

    Returns:
        The squared distance, at least 0.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
    """
    check_shape("features", features, "samples dim")
    check_shape("reference", reference, "samples dim", dim=features.shape[1])
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"features must hold at least two samples, got {len(features)} and {len(reference)}")
    for name, tensor in (("features", features), ("reference", reference)):
        check_values(name, tensor.double(), None)
    a, b = features.double(), reference.double()
    cov_a, cov_b = (torch.cov(x.T).reshape(x.shape[1], x.shape[1]) for x in (a, b))
    root = _square_root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance: Tensor = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(float(distance), 0.0)


def _square_root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
