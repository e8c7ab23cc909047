"""What a network's output means: network + schedule + prediction type -> denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_positive, like
from latentdiff._denoised import Denoised
from latentdiff._prediction import PREDICTIONS, denoised_from_prediction, edm_input_scale, edm_input_time
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Prediction, Times

Network: TypeAlias = Callable[[Tensor, Tensor, object], Tensor]
"""`network(x, t, condition)`, with `x` `[batch, channels, *spatial]` and `t` `[batch]`, answers in the shape of `x`."""


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network seen as an estimate of sample and noise.

    The network gets its own dtype; everything else is computed in the dtype of `x_t`.

    Attributes:
        network: `network(x, t, condition)`; an `nn.Module` such as `UNet`, or any callable.
        schedule: What `t` means.
        prediction: What the network's output means: `"epsilon"`, `"sample"`, `"v_prediction"`, `"flow"` or `"edm"`
            (Karras et al. 2022, table 1: input, output and time of the network are preconditioned).
        sigma_data: Standard deviation of the data, for `"edm"`.

    Raises:
        ValueError: If there is no such prediction, or epsilon is to be predicted from pure noise (alpha = 0 at the last
            time: the noise then says nothing about the sample).
    """

    network: Network
    schedule: NoiseSchedule
    prediction: Prediction = "epsilon"
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_positive("sigma_data", self.sigma_data)
        if self.prediction == "epsilon" and self.schedule.alpha(self.schedule.num_timesteps - 1.0) == 0:
            raise ValueError(
                "prediction must not be 'epsilon' for a schedule that ends in pure noise (alpha = 0), which epsilon "
                "cannot denoise; use 'v_prediction', 'sample' or 'flow'"
            )

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise.

        Args:
            x_t: `[batch, channels, *spatial]`, noisy; float32 or float64.
            t: `[batch]`, `[]` or a number, in -1 ... T - 1.
            condition: Passed on to the network.

        Returns:
            Both estimates, shaped and typed like `x_t`.

        Raises:
            ValueError: If the network answers in another shape.
        """
        alpha, sigma = self.schedule.scales(t) if isinstance(t, Tensor) else self.schedule.point(float(t))[1:]
        output = self._predict(x_t, t, alpha, sigma, condition)
        return denoised_from_prediction(self.prediction, output, x_t, alpha, sigma, self.sigma_data)

    def _predict(
        self, x_t: Latents, t: Times, alpha: Tensor | float, sigma: Tensor | float, condition: object
    ) -> Latents:
        x, time = x_t, t
        if self.prediction == "edm":
            x = x * like(edm_input_scale(alpha, sigma, self.sigma_data), x)
            time = edm_input_time(self.schedule.log_snr(t))
        if not isinstance(time, Tensor):
            time = torch.full((len(x),), float(time), device=x.device)
        output = self.network(x.to(_dtype_of(self.network, x.dtype)), time.expand(len(x)), condition)
        if output.shape != x.shape:
            raise ValueError(f"network must answer in the shape of its input {list(x.shape)}, got {list(output.shape)}")
        return output.to(x_t.dtype)


def _dtype_of(network: Network, default: torch.dtype) -> torch.dtype:
    """The dtype of a module's weights."""
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            return parameter.dtype
    return default
