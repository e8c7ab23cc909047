r"""What every distribution with a closed-form denoiser offers.

With \(p_t\) the density of \(x_t = \alpha x_0 + \sigma\epsilon\), the best estimates in mean square are
(Luo 2022, arXiv 2208.11970, eq. 133 and 151)

\[ E[\epsilon \mid x_t] = -\sigma\,\nabla\log p_t(x_t), \quad
   E[x_0 \mid x_t] = (x_t + \sigma^2 \nabla\log p_t(x_t)) / \alpha, \]

so one that knows its density knows its denoiser, its score and every prediction. All arithmetic is float64; answers
have the dtype of what was given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._checks import check_floating, check_shape
from latentdiff._denoised import Denoised
from latentdiff._denoiser import Network
from latentdiff._prediction import edm_input_scale, prediction_target
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Generator, Latents, Prediction, Times


@dataclass(frozen=True, eq=False, kw_only=True)
class Oracle(ABC):
    """A data distribution that answers as a perfectly trained denoiser would.

    Attributes:
        schedule: What `t` means.
    """

    schedule: NoiseSchedule

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: Generator = None) -> Tensor:
        """Data.

        Args:
            shape: `[batch, *event]`.
            generator: Where chance comes from.

        Returns:
            float64 `[batch, *event]`.
        """

    @abstractmethod
    def _estimate(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: object) -> tuple[Tensor, Tensor, Tensor]:
        """E[x_0 | x], the score and log p of `x` (float64), `alpha` and `sigma` shaped to multiply it."""

    @abstractmethod
    def _transport(self, x: Tensor, now: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        """Where the probability flow leads `x` (float64) from `now` to `to`, pairs (alpha, sigma)."""

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """The exact estimates, good at alpha = 0 and at sigma = 0.

        Args:
            x_t: `[batch, *event]`, floating.
            t: `[batch]`, `[]` or a number, in -1 ... T - 1.
            condition: What the distribution can be conditioned on, if anything.

        Returns:
            E[x_0 | x_t] and E[noise | x_t], shaped and typed like `x_t`.
        """
        alpha, sigma = self._scales(x_t, t)
        sample, score, _ = self._estimate(x_t.double(), alpha, sigma, condition)
        # where there is no noise its expectation is 0, also of data in points, whose score is infinite there
        noise = torch.where(sigma == 0, 0.0, -sigma * score.nan_to_num())
        return Denoised(sample.to(x_t.dtype), noise.to(x_t.dtype), self._log_variance(x_t, t))

    def log_prob(self, x: Latents, t: Times = -1.0, condition: object = None) -> Tensor:
        """Log density of `x_t`, in nats.

        Args:
            x: `[batch, *event]`.
            t: `[batch]`, `[]` or a number; the data themselves if not given.
            condition: As for a call.

        Returns:
            `[batch]`.
        """
        return self._estimate(x.double(), *self._scales(x, t), condition)[2].to(x.dtype)

    def score(self, x: Latents, t: Times, condition: object = None) -> Tensor:
        """The gradient of `log_prob` in `x`, same shape; arguments as for a call."""
        return self._estimate(x.double(), *self._scales(x, t), condition)[1].to(x.dtype)

    def predict(
        self, prediction: Prediction, x_t: Latents, t: Times, condition: object = None, *, sigma_data: float = 1.0
    ) -> Latents:
        """What the best network answers.

        Args:
            prediction: What its output means.
            x_t: `[batch, *event]`.
            t: `[batch]`, `[]` or a number.
            condition: As for a call.
            sigma_data: For `"edm"`.

        Returns:
            Shaped and typed like `x_t`.
        """
        alpha, sigma = self.schedule.scales(torch.as_tensor(t, dtype=torch.float64, device=x_t.device))
        denoised = self(x_t.double(), t, condition)
        return prediction_target(prediction, denoised.sample, denoised.noise, alpha, sigma, sigma_data).to(x_t.dtype)

    def network(self, prediction: Prediction, *, sigma_data: float = 1.0) -> Network:
        """A perfectly trained network: `Denoiser(oracle.network(p), oracle.schedule, p)` is the oracle again.

        Args:
            prediction: What its output means. That of `"edm"` takes what `Denoiser` gives it: scaled input, c_noise.
            sigma_data: For `"edm"`.
        """

        def answer(x: Tensor, t: Tensor, condition: object = None) -> Tensor:
            if prediction == "edm":
                t = self.schedule.timestep(-8 * t.double())
                alpha, sigma = self._scales(x, t)
                scale = edm_input_scale(alpha, sigma, sigma_data)
                x = (x.double() / scale).to(x.dtype)
            return self.predict(prediction, x, t, condition, sigma_data=sigma_data)

        return answer

    def flow_map(self, x: Latents, t: Times, next_t: Times) -> Latents:
        """Where the probability-flow equation leads, without error.

        Args:
            x: `[batch, *event]` at `t`.
            t: `[batch]`, `[]` or a number.
            next_t: Likewise, before or after `t`.

        Returns:
            Shaped and typed like `x`.

        Raises:
            NotImplementedError: If it is not known, as of grey levels.
        """
        return self._transport(x.double(), self._scales(x, t), self._scales(x, next_t)).to(x.dtype)

    def _log_variance(self, x_t: Tensor, t: Times) -> Tensor | None:
        return None

    def _scales(self, x: Tensor, t: Times) -> tuple[Tensor, Tensor]:
        """alpha and sigma, float64, shaped to multiply `x`."""
        check_floating("x", x)
        check_shape("x", x, "batch ...")
        time = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        shape = (-1, *(1,) * (x.ndim - 1))
        alpha, sigma = self.schedule.scales(time)
        return alpha.reshape(shape), sigma.reshape(shape)
