"""How much an error counts at each time: weights of the sample's squared error, whatever the network predicts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from latentdiff._checks import check_positive
from latentdiff._prediction import target_weights
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Prediction

LEAST_SCALE: Final = 1e-12
"""Weights are evaluated as if no scale were smaller, so that each is finite, and right in the limit, at both ends."""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseScales:
    """What a weight may depend on.

    Attributes:
        schedule: What `t` means.
        t: The times, `[batch]`.
        alpha: Scale of the sample, float64 `[batch]`, at least 1e-12.
        sigma: Scale of the noise, float64 `[batch]`, at least 1e-12.
        prediction: What the network's output means.
        sigma_data: Standard deviation of the data.
    """

    schedule: NoiseSchedule
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    prediction: Prediction = "epsilon"
    sigma_data: float = 1.0

    @classmethod
    def at(
        cls, schedule: NoiseSchedule, t: Tensor, prediction: Prediction = "epsilon", sigma_data: float = 1.0
    ) -> NoiseScales:
        """Those of the times `t` `[batch]`; the rest as for the class."""
        alpha, sigma = (scale.clamp(min=LEAST_SCALE) for scale in schedule.scales(t))
        return cls(schedule, t, alpha, sigma, prediction, sigma_data)

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2, float64 `[batch]`, from 1e-24 to 1e24 at most."""
        return (self.alpha / self.sigma).square()

    @property
    def target_error(self) -> Tensor:
        """Size of D / sigma, float64 `[batch]`: the error of the network's target over that of the sample."""
        p, q = target_weights(self.prediction, self.alpha, self.sigma, self.sigma_data)
        return (self.alpha * q - self.sigma * p).abs() / self.sigma


@dataclass(frozen=True, kw_only=True)
class Weighting(ABC):
    """How much an error counts at each time."""

    @abstractmethod
    def weight(self, scales: NoiseScales) -> Tensor:
        """The weight of the squared error of the sample.

        Args:
            scales: The times and what is known of them.

        Returns:
            float64 `[batch]`, at least 0.
        """


@dataclass(frozen=True, kw_only=True)
class UniformWeight(Weighting):
    """1 for the squared error of the network's own target: L_simple (Ho et al. 2020, arXiv 2006.11239, eq. 14).

    The only weight that depends on what the network predicts.
    """

    def weight(self, scales: NoiseScales) -> Tensor:
        """(D / sigma)^2, float64 `[batch]`."""
        return scales.target_error.square()


@dataclass(frozen=True, kw_only=True)
class SnrWeight(Weighting):
    """1 for the squared error of the noise: L_simple of a network that predicts epsilon, for every network."""

    def weight(self, scales: NoiseScales) -> Tensor:
        """SNR, float64 `[batch]`."""
        return scales.snr


@dataclass(frozen=True, kw_only=True)
class MinSnrWeight(Weighting):
    """min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, sec. 3.4).

    For the squared error of epsilon that is min(SNR, gamma) / SNR, for that of v min(SNR, gamma) / (SNR + 1).

    Attributes:
        gamma: The bound, positive.

    Raises:
        ValueError: If it is not.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def weight(self, scales: NoiseScales) -> Tensor:
        """min(SNR, gamma), float64 `[batch]`."""
        return scales.snr.clamp(max=self.gamma)


@dataclass(frozen=True, kw_only=True)
class P2Weight(Weighting):
    """1 / (k + SNR)^gamma for the squared error of the noise (Choi et al. 2022, arXiv 2204.00227, eq. 8).

    Attributes:
        k: Bounds the weight of what is nearly noise, positive.
        gamma: How much less what is nearly clean counts, at least 0; 0 is `SnrWeight`.

    Raises:
        ValueError: If a number is out of range.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_positive("k", self.k)
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma must be at least 0 and finite, got {self.gamma}")

    def weight(self, scales: NoiseScales) -> Tensor:
        """SNR / (k + SNR)^gamma, float64 `[batch]`."""
        return scales.snr / (self.k + scales.snr) ** self.gamma


@dataclass(frozen=True, kw_only=True)
class EdmWeight(Weighting):
    r"""1 for the squared error of EDM's F (Karras et al. 2022, arXiv 2206.00364, table 1).

    With their noise level \(l = \sigma / \alpha\) and the denoiser's `sigma_data` s,
    \(\lambda(l) = (l^2 + s^2) / (l s)^2 = \mathrm{SNR} + 1 / s^2\). Where the frame is variance preserving and s is 1,
    it is 1 for the squared error of v.
    """

    def weight(self, scales: NoiseScales) -> Tensor:
        """SNR + 1 / sigma_data^2, float64 `[batch]`."""
        return scales.snr + scales.sigma_data**-2


@dataclass(frozen=True, kw_only=True)
class SigmoidWeight(Weighting):
    r"""sigmoid(bias - log SNR) for the squared error of the noise (Kingma and Gao 2023, arXiv 2303.00848, sec. 4).

    For that of the sample it is \(e^b \mathrm{sigmoid}(\log \mathrm{SNR} - b)\), at most \(e^b\) (Hoogeboom et al.
    2024, arXiv 2410.19324, sec. 4). Both papers weigh *log SNR*, not time; with `times="log_snr"` their loss comes out,
    but for a factor, and does not depend on the schedule.

    Attributes:
        bias: b, the log SNR where the weight is one half. Hoogeboom et al. take -1 to -3, lower for larger images.

    Raises:
        ValueError: If it is not finite.
    """

    bias: float = -1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise ValueError(f"bias must be finite, got {self.bias}")

    def weight(self, scales: NoiseScales) -> Tensor:
        """SNR sigmoid(bias - log SNR), float64 `[batch]`."""
        return math.exp(self.bias) * torch.sigmoid(scales.snr.log() - self.bias)


@dataclass(frozen=True, kw_only=True)
class VlbWeight(Weighting):
    r"""T times the divergence of the step from t to t - 1, in nats per component of the sample.

    \(\frac{T}{2} (\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)\), the divergence where the reverse step has the small variance
    (Kingma et al. 2021, arXiv 2107.00630, eq. 14; Luo 2022, arXiv 2208.11970, eq. 108). So the mean over whole times is
    the *sum* over all steps: L_vlb without the prior, which no training changes. At t = 0, whose step leads to the
    sample and would weigh infinitely, the decoder \(N(\hat x_0, \sigma_0^2 I)\) stands in, \(T / (2 \sigma_0^2)\): its
    negative log-likelihood but for a constant. From there to t = -1 the weight rises without bound as
    \(1 / \sigma_t^2\).
    """

    def weight(self, scales: NoiseScales) -> Tensor:
        """T / 2 (SNR(t - 1) - SNR(t)), float64 `[batch]`; (d mean / d x_0)^2 over twice the variance of the step."""
        schedule, t = scales.schedule, scales.t
        one = torch.ones_like(t, dtype=torch.float64)
        step = schedule.posterior(one, 0 * one, t)
        decoder_variance = schedule.reverse_log_variances(t)[1].exp()
        variance = torch.where(t <= 0, decoder_variance, step.variance)
        return schedule.num_timesteps * step.mean.square() / (2 * variance)
