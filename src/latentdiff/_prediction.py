r"""Epsilon, sample, v, flow, EDM's F: one linear change of variables, in the only copy.

A network's target is a combination \(y = p\,x_0 + q\,\epsilon\) of sample and noise, and its input is
\(x_t = \alpha x_0 + \sigma \epsilon\). The pair (p, q) says all there is to a prediction type; solving the two
equations for \(x_0\) and \(\epsilon\) gives every conversion:

\[ x_0 = (q\,x_t - \sigma y) / D, \quad \epsilon = (\alpha y - p\,x_t) / D, \quad D = \alpha q - \sigma p. \]

| prediction | p | q | D |
| --- | --- | --- | --- |
| epsilon (Ho et al. 2020, arXiv 2006.11239) | 0 | 1 | \(\alpha\) |
| sample | 1 | 0 | \(-\sigma\) |
| v_prediction (Salimans and Ho 2022, arXiv 2202.00512) | \(-\sigma\) | \(\alpha\) | \(\alpha^2 + \sigma^2\) |
| flow (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023) | -1 | 1 | \(\alpha + \sigma\) |
| edm (Karras et al. 2022, arXiv 2206.00364, table 1) | \(\sigma / (n s)\) | \(-\alpha s / n\) | \(-n / s\) |

with s the standard deviation of the data and \(n^2 = \sigma^2 + \alpha^2 s^2\). v, flow and edm are regular at both
ends; epsilon says nothing about the sample where alpha = 0, and sample nothing about the noise where sigma = 0 (there
its expectation, 0, is returned).
"""

from __future__ import annotations

from typing import Final, TypeVar, get_args

import torch
from torch import Tensor

from latentdiff._checks import check_choice, like
from latentdiff._denoised import Denoised
from latentdiff._typing import Latents, Prediction

PREDICTIONS: Final[tuple[Prediction, ...]] = get_args(Prediction)

Scale = TypeVar("Scale", float, Tensor)


def target_weights(prediction: Prediction, alpha: Scale, sigma: Scale, sigma_data: float = 1.0) -> tuple[Scale, Scale]:
    """The pair (p, q) with target = p * sample + q * noise.

    Args:
        prediction: What the network's output means.
        alpha: Scale of the sample, `[batch]` or a number.
        sigma: Scale of the noise, likewise.
        sigma_data: Standard deviation of the data, for `"edm"`.

    Raises:
        ValueError: If there is no such prediction.
    """
    zero, one = 0 * alpha, 0 * alpha + 1
    match prediction:
        case "epsilon":
            return zero, one
        case "sample":
            return one, zero
        case "v_prediction":
            return -sigma, alpha
        case "flow":
            return -one, one
        case "edm":
            n = (sigma * sigma + alpha * alpha * sigma_data**2) ** 0.5
            return sigma / (n * sigma_data), -alpha * sigma_data / n  # pyright: ignore[reportReturnType]
    check_choice("prediction", prediction, PREDICTIONS)
    raise AssertionError  # pragma: no cover


def prediction_target(
    prediction: Prediction,
    sample: Latents,
    noise: Latents,
    alpha: Tensor | float,
    sigma: Tensor | float,
    sigma_data: float = 1.0,
) -> Latents:
    """What a perfect network answers to `alpha * sample + sigma * noise`.

    Args:
        prediction: What the network's output means.
        sample: `[batch, channels, *spatial]`.
        noise: Same shape.
        alpha: `[batch]`, `[]` or a number.
        sigma: Likewise.
        sigma_data: Standard deviation of the data, for `"edm"`.

    Returns:
        `[batch, channels, *spatial]`.
    """
    p, q = _weights(prediction, alpha, sigma, sigma_data)
    return like(p, sample) * sample + like(q, noise) * noise


def denoised_from_prediction(
    prediction: Prediction,
    output: Latents,
    x_t: Latents,
    alpha: Tensor | float,
    sigma: Tensor | float,
    sigma_data: float = 1.0,
) -> Denoised:
    """Sample and noise from a network's output.

    Args:
        prediction: What the network's output means.
        output: `[batch, channels, *spatial]`, the network's.
        x_t: Same shape, what the network looked at.
        alpha: `[batch]`, `[]` or a number.
        sigma: Likewise.
        sigma_data: Standard deviation of the data, for `"edm"`.

    Returns:
        Both estimates, consistent: `alpha * sample + sigma * noise == x_t`.
    """
    match prediction:
        case "epsilon":
            return Denoised((x_t - like(sigma, x_t) * output) / like(alpha, x_t), output)
        case "sample":
            return Denoised(output, _safe_divide(x_t - like(alpha, x_t) * output, sigma))
        case _:
            p, q = _weights(prediction, alpha, sigma, sigma_data)
            determinant = alpha * q - sigma * p
            sample = like(q / determinant, x_t) * x_t - like(sigma / determinant, x_t) * output
            noise = like(alpha / determinant, x_t) * output - like(p / determinant, x_t) * x_t
            return Denoised(sample, noise)


def edm_input_scale(alpha: Tensor | float, sigma: Tensor | float, sigma_data: float) -> Tensor | float:
    """EDM's c_in, for x_t (not x_t / alpha): the network's input has unit variance where the data have sigma_data."""
    return (sigma * sigma + alpha * alpha * sigma_data**2) ** -0.5


def edm_input_time(log_snr: Tensor | float) -> Tensor | float:
    """EDM's c_noise = log(sigma / alpha) / 4, bounded so that both ends are finite."""
    if isinstance(log_snr, Tensor):
        return log_snr.clamp(-1e4, 1e4) / -8
    return max(-1e4, min(1e4, log_snr)) / -8


def _weights(
    prediction: Prediction, alpha: Tensor | float, sigma: Tensor | float, sigma_data: float
) -> tuple[Tensor | float, Tensor | float]:
    if isinstance(alpha, Tensor) and isinstance(sigma, Tensor):
        return target_weights(prediction, alpha, sigma, sigma_data)
    return target_weights(prediction, float(alpha), float(sigma), sigma_data)


def _safe_divide(x: Tensor, sigma: Tensor | float) -> Tensor:
    """x / sigma, and 0 where sigma is 0."""
    if not isinstance(sigma, Tensor):
        return x / sigma if sigma != 0 else torch.zeros_like(x)
    inverse = torch.where(sigma == 0, 0.0, 1 / torch.where(sigma == 0, 1.0, sigma))
    return x * like(inverse, x)
