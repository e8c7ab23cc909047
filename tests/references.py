"""Solvers once more, written as their authors do: in x / alpha, as functions of a list of noise levels.

Independent of the library's own: no points, no weights by polynomials, no frames. `denoise(y, level)` estimates the
sample; `noise(i, k)` is draw k of step i. Levels fall, the last one may be 0; the first is finite.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

Estimate: TypeAlias = Callable[[Tensor, float], Tensor]
Noise: TypeAlias = Callable[[int, int], Tensor]


def log(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).log().item()


def expm1(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).expm1().item()


def exp(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).exp().item()


def up_and_down(level: float, to: float, eta: float) -> tuple[float, float]:
    """Levels of the fresh noise and of what is left, for a step from `level` to `to`."""
    up = min(to, eta * (to**2 * (level**2 - to**2) / level**2) ** 0.5)
    return up, (to**2 - up**2) ** 0.5


def euler(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, eta: float = 0.0) -> Tensor:
    for i, (level, to) in enumerate(pairwise(levels)):
        up, down = up_and_down(level, to, eta)
        slope = (y - denoise(y, level)) / level
        y = y + slope * (down - level)
        if up:
            y = y + up * noise(i, 0)
    return y


def ddpm(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, large: bool = False) -> Tensor:
    """Posterior mean and variance, by precisions of a step from `to` to `level` and of a sample known exactly."""
    for i, (level, to) in enumerate(pairwise(levels)):
        sample = denoise(y, level)
        if to == 0:
            return sample
        precision = 1 / to**2 + 1 / (level**2 - to**2)
        y = (sample / to**2 + y / (level**2 - to**2)) / precision
        alpha = (1 + level**2) ** -0.5, (1 + to**2) ** -0.5  # the large variance is one of the preserving frame
        beta = 1 - (alpha[0] / alpha[1]) ** 2
        y = y + (beta / alpha[1] ** 2 if large else 1 / precision) ** 0.5 * noise(i, 0)
    return y


def heun(
    denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, churn: float = 0.0, ceiling: float = 0.0
) -> Tensor:
    """Algorithm 2 of Karras et al. 2022, no noise added above a ceiling."""
    count = len(levels) - 1
    for i, (level, to) in enumerate(pairwise(levels)):
        raised = max(level, min(level * (1 + min(churn / count, 2**0.5 - 1)), ceiling))
        if raised > level:
            y = y + (raised**2 - level**2) ** 0.5 * noise(i, 0)
        slope = (y - denoise(y, raised)) / raised
        ahead = y + (to - raised) * slope
        if to:
            slope = (slope + (ahead - denoise(ahead, to)) / to) / 2
        y = y + (to - raised) * slope
    return y


def dpm_2(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, eta: float = 0.0) -> Tensor:
    for i, (level, to) in enumerate(pairwise(levels)):
        up, down = up_and_down(level, to, eta)
        slope = (y - denoise(y, level)) / level
        if down:
            middle = (level * down) ** 0.5
            half = y + slope * (middle - level)
            slope = (half - denoise(half, middle)) / middle
        y = y + slope * (down - level)
        if up:
            y = y + up * noise(i, 0)
    return y


def lms(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, order: int = 4) -> Tensor:
    """The integral of each Lagrange polynomial by Gauss-Legendre's rule of three points, exact for cubics."""
    slopes: list[Tensor] = []
    for i, (level, to) in enumerate(pairwise(levels)):
        slopes = [(y - denoise(y, level)) / level, *slopes][:order]
        knots = [levels[i - j] for j in range(len(slopes))]
        for j, slope in enumerate(slopes):
            total = 0.0
            for node, weight in ((-(0.6**0.5), 5 / 9), (0.0, 8 / 9), (0.6**0.5, 5 / 9)):
                at = (level + to) / 2 + node * (to - level) / 2
                basis = 1.0
                for k, knot in enumerate(knots):
                    basis *= (at - knot) / (knots[j] - knot) if k != j else 1.0
                total += weight * basis * (to - level) / 2
            y = y + total * slope
    return y


def dpmpp_2s(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, eta: float = 0.0) -> Tensor:
    for i, (level, to) in enumerate(pairwise(levels)):
        up, down = up_and_down(level, to, eta)
        sample = denoise(y, level)
        if down:
            h = log(level / down)
            half = exp(-h / 2) * y - expm1(-h / 2) * sample
            y = exp(-h) * y - expm1(-h) * denoise(half, level * exp(-h / 2))
        else:
            y = sample
        if up:
            y = y + up * noise(i, 0)
    return y


def dpmpp_sde(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, eta: float = 1.0) -> Tensor:
    for i, (level, to) in enumerate(pairwise(levels)):
        sample = denoise(y, level)
        if not to:
            y = sample
            continue
        middle = (level * to) ** 0.5
        first, second = (middle**-2 - level**-2) ** 0.5, (to**-2 - middle**-2) ** 0.5
        draws = noise(i, 0), noise(i, 1)
        whole = (first * draws[0] + second * draws[1]) / (first**2 + second**2) ** 0.5
        up, down = up_and_down(level, middle, eta)
        half = down / level * y + (1 - down / level) * sample + up * draws[0]
        up, down = up_and_down(level, to, eta)
        y = down / level * y + (1 - down / level) * denoise(half, middle) + up * whole
    return y


def dpmpp_2m(
    denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, eta: float = 0.0, kind: str = "midpoint"
) -> Tensor:
    old: Tensor | None = None
    last_h = 0.0
    for i, (level, to) in enumerate(pairwise(levels)):
        sample = denoise(y, level)
        if not to:
            return sample
        h = log(level / to)
        k = h * (1 + eta)
        y = to / level * exp(-eta * h) * y - expm1(-k) * sample
        if old is not None:
            slope = (sample - old) * h / last_h
            y = y + (-0.5 * expm1(-k) if kind == "midpoint" else expm1(-k) / k + 1) * slope
        if eta:
            y = y + to * (-expm1(-2 * eta * h)) ** 0.5 * noise(i, 0)
        old, last_h = sample, h
    return y


def dpmpp_3m(
    denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, eta: float = 0.0, second: float = 1.0
) -> Tensor:
    """As k-diffusion writes it, with `second` times the term of the second difference."""
    samples: list[Tensor] = []
    steps: list[float] = []
    for i, (level, to) in enumerate(pairwise(levels)):
        samples = [denoise(y, level), *samples][:3]
        if not to:
            return samples[0]
        h = log(level / to)
        k = h * (1 + eta)
        phi_2 = expm1(-k) / k + 1
        phi_3 = phi_2 / k - 0.5
        y = exp(-k) * y - expm1(-k) * samples[0]
        if len(samples) == 2:
            y = y + phi_2 * (samples[0] - samples[1]) * h / steps[0]
        if len(samples) == 3:
            r_0, r_1 = steps[0] / h, steps[1] / h
            near, far = (samples[0] - samples[1]) / r_0, (samples[1] - samples[2]) / r_1
            first = near + (near - far) * r_0 / (r_0 + r_1)
            y = y + phi_2 * first - second * phi_3 * (near - far) / (r_0 + r_1)
        if eta:
            y = y + to * (-expm1(-2 * eta * h)) ** 0.5 * noise(i, 0)
        steps = [h, *steps]
    return y


def deis(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, order: int = 3) -> Tensor:
    """Integrals of Lagrange polynomials in log(level) over the level, by adaptive quadrature."""
    from scipy.integrate import quad

    slopes: list[Tensor] = []
    for i, (level, to) in enumerate(pairwise(levels)):
        sample = denoise(y, level)
        if not to:
            return sample
        slopes = [(y - sample) / level, *slopes][:order]
        knots = [log(levels[i - j]) for j in range(len(slopes))]
        for j, slope in enumerate(slopes):

            def basis(value: float, j: int = j, knots: list[float] = knots) -> float:
                product = exp(value)  # d level = level d log(level)
                for k, knot in enumerate(knots):
                    product *= (value - knot) / (knots[j] - knot) if k != j else 1.0
                return product

            y = y + quad(basis, log(level), log(to), epsabs=0, epsrel=1e-13)[0] * slope
    return y


def unipc(
    denoise: Estimate, y: Tensor, levels: list[float], noise: Noise, order: int = 2, variant: str = "bh2"
) -> Tensor:
    """With the linear system of the paper (alg. 5 to 8) solved as it stands there."""

    def coefficients(places: list[float], h: float, count: int) -> list[float]:
        b_h = expm1(-h) if variant == "bh2" else -h
        phi, factorial, right = expm1(-h) / -h - 1, 1.0, []
        for n in range(1, count + 1):
            right.append(phi * factorial / b_h)
            factorial *= n + 1
            phi = phi / -h - 1 / factorial
        left = torch.tensor([[place**n for place in places] for n in range(count)], dtype=torch.float64)
        solved = torch.linalg.solve(left, torch.tensor(right, dtype=torch.float64)).tolist() if count > 1 else [0.5]
        return [b_h * one for one in solved]

    def move(y: Tensor, sample: Tensor, level: float, to: float, others: list[tuple[float, Tensor]]) -> Tensor:
        h = log(level / to)
        places = [log(level / at) / h for at, _ in others]
        moved = to / level * y - expm1(-h) * sample
        for c, place, (_, other) in zip(coefficients(places, h, len(places)), places, others, strict=True):
            moved = moved - c * (other - sample) / place
        return moved

    past: list[tuple[float, Tensor]] = []
    start = y
    for level, to in pairwise(levels):
        sample = denoise(y, level)
        if past:
            (last, last_sample), *older = past
            y = move(start, last_sample, last, level, [*older, (level, sample)])
        if not to:
            return sample
        past = [(level, sample), *past][:order]
        start = y
        y = move(y, sample, level, to, past[1:]) if len(past) > 1 else to / level * y + (1 - to / level) * sample
    return y


def lcm(denoise: Estimate, y: Tensor, levels: list[float], noise: Noise) -> Tensor:
    for i, (level, to) in enumerate(pairwise(levels)):
        y = denoise(y, level)
        if to:
            y = y + to * noise(i, 0)
    return y
