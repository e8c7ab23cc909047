r"""Epsilon, sample, v, flow, EDM's F: one linear change of variables, in the only copy.

A network's target is a combination \(y = p\,x_0 + q\,\epsilon\) of sample and noise, and its input is
\(x_t = \alpha x_0 + \sigma \epsilon\). The pair (p, q) says all there is to a prediction type. Solving the two
equations for another combination \(y' = p' x_0 + q' \epsilon\) gives every conversion:

\[ y' = \frac{D'\,y + (q p' - p q')\,x_t}{D}, \quad D = \alpha q - \sigma p, \quad D' = \alpha q' - \sigma p', \]

among them sample, (p', q') = (1, 0), and noise, (0, 1):

\[ x_0 = (q\,x_t - \sigma y) / D, \quad \epsilon = (\alpha y - p\,x_t) / D. \]

| prediction | p | q | D |
| --- | --- | --- | --- |
| epsilon (Ho et al. 2020, arXiv 2006.11239) | 0 | 1 | \(\alpha\) |
| sample | 1 | 0 | \(-\sigma\) |
| v_prediction (Salimans and Ho 2022, arXiv 2202.00512, app. D) | \(-\sigma\) | \(\alpha\) | \(\alpha^2 + \sigma^2\) |
| flow (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023) | -1 | 1 | \(\alpha + \sigma\) |
| edm (Karras et al. 2022, arXiv 2206.00364, table 1) | \(\sigma / (n s)\) | \(-\alpha s / n\) | \(-n / s\) |

with s the standard deviation of the data and \(n^2 = \sigma^2 + \alpha^2 s^2\). v, flow and edm are regular at both
ends; epsilon says nothing about the sample where alpha = 0 (what follows from it is not finite), and sample nothing
about the noise where sigma = 0 (there its expectation, 0, is returned).

How well a conversion is conditioned stands in the formula: a relative error u of output and input, such as the rounding
of their dtype, becomes \(u\,(|D'|\,|y| + |q p' - p q'|\,|x_t|) / |D|\). From epsilon to the sample that is
\(u\,(\sigma |\epsilon| + |x_t|) / \alpha\), 157 times the noise's at the last time of DDPM's schedule; among v, flow
and edm nothing grows by more than a factor of order 1.

In the score's words epsilon is \(-\sigma \nabla \log p_t(x_t)\), and the sample follows from it by Tweedie's formula,
\(x_0 = (x_t + \sigma^2 \nabla \log p_t(x_t)) / \alpha\) (Luo 2022, arXiv 2208.11970, eq. 133 and 151).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, TypeVar, get_args

import torch
from torch import Tensor

from latentdiff._checks import check_choice, like, working_dtype
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
        `[batch, channels, *spatial]`, of the wider dtype of `sample` and `noise`; computed in float32 at least.
    """
    p, q = _weights(prediction, alpha, sigma, sigma_data)
    return _combined(p, sample, q, noise)


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
    return Denoised(
        convert_prediction(output, x_t, alpha, sigma, source=prediction, target="sample", sigma_data=sigma_data),
        convert_prediction(output, x_t, alpha, sigma, source=prediction, target="epsilon", sigma_data=sigma_data),
    )


def convert_prediction(
    output: Latents,
    x_t: Latents,
    alpha: Tensor | float,
    sigma: Tensor | float,
    *,
    source: Prediction,
    target: Prediction,
    sigma_data: float = 1.0,
) -> Latents:
    """What a network that predicts `target` would have answered where one that predicts `source` answered `output`.

    Directly, not by way of sample and noise, so that nothing is lost where one of them is ill-conditioned: v becomes
    flow as precisely at both ends as between. Half precision is computed in float32 and rounded once.

    Args:
        output: `[batch, channels, *spatial]`.
        x_t: Same shape, what the network looked at.
        alpha: `[batch]`, `[]` or a number.
        sigma: Likewise.
        source: What `output` means.
        target: What is wanted.
        sigma_data: Standard deviation of the data, for `"edm"`.

    Returns:
        Shaped like `output`; of the wider dtype of `output` and `x_t`. Not finite from `"epsilon"` where alpha is 0;
        from `"sample"` where sigma is 0 the noise counts as 0.

    Raises:
        ValueError: If there is no such prediction.
    """
    check_choice("source", source, PREDICTIONS)
    check_choice("target", target, PREDICTIONS)
    if source == target:
        return output
    if isinstance(alpha, Tensor) or isinstance(sigma, Tensor) or torch.compiler.is_compiling():
        of_output, of_input = _factors(source, target, *_alike(alpha, sigma), sigma_data)
    else:
        of_output, of_input = _known_factors(source, target, float(alpha), float(sigma), sigma_data)
    return _combined(of_output, output, of_input, x_t)


def _factors(
    source: Prediction, target: Prediction, alpha: Tensor | float, sigma: Tensor | float, sigma_data: float
) -> tuple[Tensor | float, Tensor | float]:
    """What output and input count in a conversion."""
    p, q = _weights(source, alpha, sigma, sigma_data)
    to_p, to_q = _weights(target, alpha, sigma, sigma_data)
    match source:  # p and q are 0 and 1: divided out, so that the limits at both ends are right
        case "epsilon":
            inverse = _inverse(alpha, at_zero=math.inf)
            of_output, of_input = to_q - sigma * to_p * inverse, to_p * inverse
        case "sample":
            inverse = _inverse(sigma, at_zero=0.0)
            of_output, of_input = to_p - alpha * to_q * inverse, to_q * inverse
        case _:
            determinant = alpha * q - sigma * p
            of_output, of_input = (alpha * to_q - sigma * to_p) / determinant, (q * to_p - p * to_q) / determinant
    return of_output, of_input


_known_factors = lru_cache(maxsize=4096)(_factors)
"""Remembered for numbers: the points of a walk are few."""


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
    alpha, sigma = _alike(alpha, sigma)
    if isinstance(alpha, Tensor) and isinstance(sigma, Tensor):
        return target_weights(prediction, alpha, sigma, sigma_data)
    return target_weights(prediction, float(alpha), float(sigma), sigma_data)


def _alike(alpha: Tensor | float, sigma: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """Both tensors or both numbers."""
    if isinstance(alpha, Tensor) and not isinstance(sigma, Tensor):
        return alpha, torch.full_like(alpha, sigma)
    if isinstance(sigma, Tensor) and not isinstance(alpha, Tensor):
        return torch.full_like(sigma, alpha), sigma
    return alpha, sigma


def _inverse(scale: Tensor | float, at_zero: float) -> Tensor | float:
    """1 / scale, and `at_zero` where it is 0."""
    if not isinstance(scale, Tensor):
        return 1 / scale if scale else at_zero
    return torch.where(scale == 0, at_zero, 1 / torch.where(scale == 0, 1.0, scale))


def _combined(a: Tensor | float, x: Tensor, b: Tensor | float, y: Tensor) -> Tensor:
    """a * x + b * y, by sample; computed in float32 at least."""
    if x.dtype == y.dtype == torch.float32 and not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return (x * a).add_(y, alpha=b)
    dtype = torch.promote_types(x.dtype, y.dtype)
    x, y = x.to(working_dtype(dtype)), y.to(working_dtype(dtype))
    if isinstance(b, Tensor):
        return (like(a, x) * x + like(b, y) * y).to(dtype)
    return (like(a, x) * x).add_(y, alpha=b).to(dtype)
