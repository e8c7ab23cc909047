"""Averages of weights whose memory grows with the training."""

from __future__ import annotations

import math

import torch

from latentdiff.training._average import Average, M

WIDEST = 1 / math.sqrt(12)
"""Relative standard deviation of the flat profile, gamma = 0: the plain mean of all weights so far."""


class PowerEMA(Average[M]):
    r"""Average of a module's weights by a power of the step (Karras et al. 2024, arXiv:2312.02696, section 3.1).

    The weights of step \(\tau\) count in proportion to \(\tau^\gamma\): the memory is always the same share of the
    training so far, and the random start is forgotten. \(\gamma\) is told by the relative width of this profile,

    \[ \sigma_\mathrm{rel} = \sqrt{\gamma + 1}\, (\gamma + 2)^{-1} (\gamma + 3)^{-1/2}, \]

    its standard deviation as a share of the training. Update number t is
    \(\bar w \leftarrow d\,\bar w + (1 - d)\,w\) with \(d = (1 - 1/t)^{\gamma + 1}\).

    Two of these, of .05 and .1, kept every so many steps by `EMASnapshots`, tell any other width afterwards.

    Attributes:
        module: The averaged copy: in evaluation mode, without gradients.
        sigma_rel: Relative width of the profile.
        gamma: Its exponent.
        updates: Number of updates made.
    """

    def __init__(self, module: M, sigma_rel: float = 0.05) -> None:
        """Start; the first update forgets the module's present weights.

        Args:
            module: What is trained, on the device where it is trained.
            sigma_rel: In (0, 0.288], the width of the plain mean.

        Raises:
            ValueError: If `sigma_rel` is out of range.
        """
        self.gamma: float = gamma_of(sigma_rel)
        super().__init__(module)
        self.sigma_rel = sigma_rel

    def decay_of(self, updates: int) -> float:
        """The decay of the update that has `updates` others before it."""
        decay: float = (1 - 1 / (updates + 1)) ** (self.gamma + 1)
        return decay


def gamma_of(sigma_rel: float) -> float:
    r"""The exponent of a profile of relative width `sigma_rel`, in (0, 0.288].

    The largest root of \((\gamma + 2)^2 (\gamma + 3) = (\gamma + 1)\, \sigma_\mathrm{rel}^{-2}\).

    Raises:
        ValueError: If `sigma_rel` is out of range.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must be in (0, {WIDEST:.6f}], got {sigma_rel}")
    s = sigma_rel**-2
    companion = torch.tensor([[-7.0, s - 16, s - 12], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    roots = torch.linalg.eigvals(companion)
    largest: float = roots.real[roots.imag.abs() < 1e-6 * roots.abs()].max().item()
    return max(0.0, largest)
