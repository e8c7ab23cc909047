r"""What training minimises.

With \(y\) the network's target and \(\hat y\) its answer, the loss of one sample is a weight times the mean of
\((\hat y - y)^2\) over its values. Answers are recovered from the denoiser's estimates by the prediction's own
formula, so that any denoiser, a closed form too, has a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff._checks import check_choice, check_floating, check_positive, check_shape, working_dtype
from latentdiff._denoised import Denoise
from latentdiff._noise import draw_noise, draw_uniform
from latentdiff._prediction import prediction_target, target_weights
from latentdiff._typing import Generator, Latents, Prediction

__all__ = ["DiffusionLoss", "DiffusionLossOutput"]

Weighting: TypeAlias = Literal["uniform", "snr", "min_snr"]
Kind: TypeAlias = Literal["mse", "l1", "huber"]
WEIGHTINGS: Final[tuple[Weighting, ...]] = get_args(Weighting)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True, eq=False)
class DiffusionLossOutput:
    """A loss and where it came from.

    Attributes:
        loss: Mean over the batch, `[]`.
        per_sample: Weighted loss of each sample, `[batch]`.
        t: The times, `[batch]`.
    """

    loss: Tensor
    per_sample: Tensor
    t: Tensor


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """The denoising loss (Ho et al. 2020, arXiv 2006.11239, eq. 14).

    Attributes:
        weighting: `"uniform"`: 1 for the error of the network's own target (L_simple). `"snr"`: 1 for the error of
            the noise,
            whatever the target. `"min_snr"`: min(SNR, gamma) for the error of the sample (Hang et al. 2023, arXiv
            2303.09556), which is min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v.
        kind: `"mse"`, `"l1"` or `"huber"` (of width 1).
        gamma: Bound of min-SNR.

    Raises:
        ValueError: If a name is unknown or gamma is not positive.
    """

    weighting: Weighting = "uniform"
    kind: Kind = "mse"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("kind", self.kind, KINDS)
        check_positive("gamma", self.gamma)

    def __call__(
        self,
        denoiser: Denoise,
        sample: Latents,
        condition: object = None,
        *,
        t: Tensor | None = None,
        noise: Latents | None = None,
        generator: Generator = None,
    ) -> DiffusionLossOutput:
        """Noise the sample, have it denoised, weigh the error.

        Args:
            denoiser: What is trained.
            sample: `[batch, channels, *spatial]`, clean.
            condition: Passed on to the denoiser.
            t: `[batch]`; drawn if not given: whole times evenly, for flow all of (-1, T - 1].
            noise: Like `sample`; drawn if not given.
            generator: Where times and noise come from.

        Returns:
            The loss, in float32 at least.

        Raises:
            ValueError: If a shape does not fit or `sample` holds values that are not numbers (looked at on the CPU
                only).
            TypeError: If `sample` is not floating.
        """
        check_floating("sample", sample)
        check_shape("sample", sample, "batch channels ...")
        sample = sample.to(working_dtype(sample.dtype))
        schedule, prediction, sigma_data = denoiser.schedule, prediction_of(denoiser), sigma_data_of(denoiser)
        if t is None:
            t = self._draw_times(denoiser, sample, generator)
        check_shape("t", t, "batch", batch=len(sample))
        if noise is None:
            noise = draw_noise(sample.shape, generator, step=1, device=sample.device, dtype=sample.dtype)
        alpha, sigma = schedule.scales(t)
        denoised = denoiser(schedule.add_noise(sample, noise, t), t, condition)
        target = prediction_target(prediction, sample, noise, alpha, sigma, sigma_data)
        answer = prediction_target(prediction, denoised.sample, denoised.noise, alpha, sigma, sigma_data)
        error = self._error(answer, target).flatten(1).mean(1)
        per_sample = error * self._weight(prediction, alpha, sigma, sigma_data).to(error.dtype)
        return DiffusionLossOutput(per_sample.mean(), per_sample, t)

    def _draw_times(self, denoiser: Denoise, sample: Latents, generator: Generator) -> Tensor:
        u = draw_uniform(len(sample), generator, step=0, device=sample.device)
        scaled = u * denoiser.schedule.num_timesteps
        return denoiser.schedule.num_timesteps - 1 - scaled if denoiser.schedule.frame == "flow" else scaled.floor()

    def _error(self, answer: Tensor, target: Tensor) -> Tensor:
        match self.kind:
            case "mse":
                return F.mse_loss(answer, target, reduction="none")
            case "l1":
                return F.l1_loss(answer, target, reduction="none")
            case "huber":
                return F.huber_loss(answer, target, reduction="none")

    def _weight(self, prediction: Prediction, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
        """Weight of the target's squared error; with D of `_prediction`, error(target) = D / sigma * error(sample)."""
        if self.weighting == "uniform":
            return torch.ones_like(alpha)
        p, q = target_weights(prediction, alpha, sigma, sigma_data)
        determinant = (alpha * q - sigma * p).square()
        snr_times_variance = alpha.square()  # SNR * sigma^2, finite everywhere
        if self.weighting == "min_snr":
            snr_times_variance = torch.minimum(snr_times_variance, self.gamma * sigma.square())
        return snr_times_variance / determinant


def prediction_of(denoiser: Denoise) -> Prediction:
    """What a denoiser's network predicts; epsilon for one without a network."""
    prediction: Prediction = getattr(denoiser, "prediction", "epsilon")
    return prediction


def sigma_data_of(denoiser: Denoise) -> float:
    """The standard deviation of the data that a denoiser was made for."""
    sigma_data: float = getattr(denoiser, "sigma_data", 1.0)
    return sigma_data
