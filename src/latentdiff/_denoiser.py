"""What a network's output means: network + schedule + prediction type -> denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from latentdiff._checks import (
    batch_times,
    by_sample,
    check_choice,
    check_floating,
    check_positive,
    check_times,
    like,
)
from latentdiff._denoised import Denoised
from latentdiff._prediction import PREDICTIONS, denoised_from_prediction, edm_input_scale, edm_input_time
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Prediction, Times

Network: TypeAlias = Callable[[Tensor, Tensor, object], Tensor]
"""`network(x, t, condition)`, with `x` `[batch, channels, *spatial]` and `t` `[batch]`, answers in the shape of `x`;
where variances are learned, with twice its channels."""

Variance: TypeAlias = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
"""What is known of the variance of the reverse step."""

VARIANCES: Final[tuple[Variance, ...]] = get_args(Variance)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network seen as an estimate of sample and noise.

    The network gets its own dtype; everything else is computed in the dtype of `x_t`.

    Attributes:
        network: `network(x, t, condition)`; an `nn.Module` such as `UNet`, or any callable.
        schedule: What `t` means.
        prediction: What the network's output means: `"epsilon"`, `"sample"`, `"v_prediction"`, `"flow"` or `"edm"`
            (Karras et al. 2022, table 1: input, output and time of the network are preconditioned).
        variance: What is known of the variance of the reverse step from t to t - 1. None: nothing. `"fixed_small"` and
            `"fixed_large"`: the two of `NoiseSchedule.reverse_log_variances`. `"learned"`: the network answers with
            twice the channels of its input, and the second half is the log variance. `"learned_range"`: the second
            half v, in [-1, 1], says where between the two fixed ones the *log* variance lies, -1 at the small one
            (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15 with v mapped from [-1, 1] to [0, 1]).
        sigma_data: Standard deviation of the data, for `"edm"`.

    Raises:
        ValueError: If there is no such prediction or variance, or epsilon is to be predicted from pure noise (alpha = 0
            at the last time: the noise then says nothing about the sample).
        TypeError: If the network is not callable, or the schedule none of this library.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: Prediction = "epsilon"
    variance: Variance | None = None
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise TypeError(f"network must be callable, got {type(self.network).__name__}")
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(f"schedule must be a NoiseSchedule, got {type(self.schedule).__name__}")
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("variance", self.variance, (None, *VARIANCES))
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
            t: `[batch]`, `[]` or a number, in -1 ... T - 1. A number reaches the network as float64. Before t = 0 the
                network of a schedule with a table, which is not trained there, is asked at 0; that of a flow at t.
            condition: Passed on to the network.

        Returns:
            Both estimates, shaped and typed like `x_t`. The log variance is float64: `[batch, 1, ...]` if it is fixed,
            shaped like `x_t` if it is learned.

        Raises:
            ValueError: If the network answers in another shape, or `t` does not fit the batch or is out of range.
            TypeError: If `x_t` is not floating, or the network answers with something else than a tensor.
        """
        check_floating("x_t", x_t)
        if isinstance(t, Tensor):
            check_times("t", t, x_t)
        alpha, sigma = self.schedule.scales(t) if isinstance(t, Tensor) else self.schedule.point(float(t))[1:]
        output, log_variance = self._split(self._ask(x_t, t, alpha, sigma, condition), x_t, t)
        denoised = denoised_from_prediction(self.prediction, output.to(x_t.dtype), x_t, alpha, sigma, self.sigma_data)
        return denoised if log_variance is None else replace(denoised, log_variance=log_variance)

    def _ask(self, x_t: Latents, t: Times, alpha: Tensor | float, sigma: Tensor | float, condition: object) -> Tensor:
        """The network's answer, in its own dtype."""
        x, time = x_t, t
        if self.schedule.frame != "flow":
            time = t.clamp(min=0) if isinstance(t, Tensor) else max(t, 0.0)
        if self.prediction == "edm":
            x = x * like(edm_input_scale(alpha, sigma, self.sigma_data), x)
            time = edm_input_time(self.schedule.log_snr(time))
        if not isinstance(time, Tensor):
            time = torch.full((len(x),), float(time), dtype=torch.float64, device=x.device)
        output = self.network(x.to(_dtype_of(self.network, x.dtype)), time.expand(len(x)), condition)
        self._check_output(x, output)
        return output

    def _check_output(self, x: Latents, output: Tensor) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"network must answer with a tensor, got {type(output).__name__}; wrap it, "
                "e.g. lambda x, t, c: net(x, t).sample"
            )
        if output.shape == x.shape and self.variance not in ("learned", "learned_range"):
            return
        given, got = list(x.shape), list(output.shape)
        twice = [*given[:1], *(2 * channels for channels in given[1:2]), *given[2:]]
        if self.variance in ("learned", "learned_range"):
            if got != twice:
                raise ValueError(
                    f"network must answer with twice the channels of its input {given}, {twice}, where the variance is "
                    f"{self.variance!r}, got {got}"
                )
        elif got != given:
            hint = "; give variance='learned' or 'learned_range' if half of it is one" if got == twice else ""
            raise ValueError(f"network must answer in the shape of its input {given}, got {got}{hint}")

    def _split(self, output: Tensor, x_t: Latents, t: Times) -> tuple[Tensor, Tensor | None]:
        """The prediction and the log variance of the reverse step."""
        if self.variance is None:
            return output, None
        if self.variance == "learned":
            prediction, log_variance = output.chunk(2, dim=1)
            return prediction, log_variance.double()
        time = batch_times("t", t, x_t)
        low, high = (by_sample(one, x_t) for one in self.schedule.reverse_log_variances(time))
        if self.variance == "learned_range":
            prediction, v = output.chunk(2, dim=1)
            share = (v.double() + 1) / 2
            return prediction, share * high + (1 - share) * low
        return output, low if self.variance == "fixed_small" else high


def _dtype_of(network: Network, default: torch.dtype) -> torch.dtype:
    """The dtype of a module's weights."""
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            return parameter.dtype
    return default
