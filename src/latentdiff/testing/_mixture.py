"""Mixtures of normals, and data in points: several modes, and still everything known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._noise import draw_noise, draw_uniform
from latentdiff._ode import State, integrate
from latentdiff._typing import Generator, Latents, Times
from latentdiff.testing._oracle import Oracle

TINY = 1e-200
"""Stands for a variance of 0, so that the nearest component wins instead of 0 / 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MixtureDenoiser(Oracle):
    r"""Data from a mixture, \(x_0 \sim \sum_k w_k N(m_k, s_k^2)\), denoised exactly.

    With \(r_k\) the probability of component k given \(x_t\), estimates are those of the components, weighed by it. A
    condition of labels `[batch]` (integers 0 ... K - 1; -1 for none) makes it the component itself: a class-conditional
    model whose classifier, `log_posterior`, is known too.

    Attributes:
        weights: `[K]`, positive; normalised here.
        means: `[K, *event]`, or `[K]`, the same for every value of a sample.
        stds: `[K]`, or like `means`; at least 0. With 0 the data lie in points.
        schedule: What `t` means.

    Raises:
        ValueError: If the numbers of components differ, a weight is not positive, or a standard deviation is negative.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        for name in ("weights", "means", "stds"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        counts = {name: len(getattr(self, name)) for name in ("weights", "means", "stds")}
        if self.weights.ndim != 1 or len(set(counts.values())) != 1:
            raise ValueError(f"weights, means and stds must have one entry for each component, got {counts}")
        if not (self.weights > 0).all():
            raise ValueError(f"weights must be positive, got {self.weights.tolist()}")
        if (self.stds < 0).any():
            raise ValueError("stds must not be negative")

    def draw(self, shape: tuple[int, ...], generator: Generator = None) -> Tensor:
        """Data, float64 of `shape` `[batch, *event]`."""
        share = (self.weights / self.weights.sum()).cumsum(0)
        labels = torch.searchsorted(share, draw_uniform(shape[0], generator)).clamp(max=len(share) - 1)
        noise = draw_noise(shape, generator, step=1, dtype=torch.float64)
        means, stds = (self._components(one, noise)[0][labels] for one in (self.means, self.stds))
        return means + stds * noise

    def log_posterior(self, x_t: Latents, t: Times) -> Tensor:
        """The exact classifier of noisy samples: log probability of each component, `[batch, K]`.

        Args:
            x_t: `[batch, *event]`.
            t: `[batch]`, `[]` or a number.
        """
        alpha, sigma = self._scales(x_t, t)
        return self._log_joint(x_t.double(), alpha, sigma)[0].log_softmax(1).to(x_t.dtype)

    def _estimate(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: object) -> tuple[Tensor, Tensor, Tensor]:
        log_joint, distance, variance = self._log_joint(x, alpha, sigma)
        if condition is not None:
            log_joint = self._given(condition, log_joint)
        shape = (*log_joint.shape, *(1,) * (x.ndim - 1))
        responsibility = log_joint.softmax(1).reshape(shape)
        means, stds = self._components(self.means, x), self._components(self.stds, x)
        sample = means + alpha.unsqueeze(1) * stds.square() / variance * distance
        score = -distance / variance
        log_density = log_joint.logsumexp(1)
        return (responsibility * sample).sum(1), (responsibility * score).sum(1), log_density

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; alpha m_k, variance_k) `[batch, K]`, x - alpha m_k and variance_k `[batch, K, *event]`."""
        alpha, sigma = alpha.unsqueeze(1), sigma.unsqueeze(1)
        stds = self._components(self.stds, x)
        variance = ((alpha * stds).square() + sigma.square()).clamp(min=TINY)
        distance = x.unsqueeze(1) - alpha * self._components(self.means, x)
        log_density = -0.5 * (distance.square() / variance + torch.log(2 * math.pi * variance))
        weights = (self.weights / self.weights.sum()).log().to(x.device)
        return weights + log_density.flatten(2).sum(2), distance, variance

    def _given(self, condition: object, log_joint: Tensor) -> Tensor:
        """Leave only the component of each label, without its weight."""
        batch, count = log_joint.shape
        if not isinstance(condition, Tensor) or condition.shape != (batch,) or condition.is_floating_point():
            raise ValueError(f"condition must be integer labels [{batch}], got {condition!r}")
        if condition.min() < -1 or condition.max() >= count:
            raise ValueError(f"condition must be in [0, {count - 1}], or -1 for none, got {condition.tolist()}")
        log_weights = (self.weights / self.weights.sum()).log().to(log_joint.device)
        numbers = torch.arange(log_joint.shape[1], device=log_joint.device)
        is_it, is_free = numbers == condition.unsqueeze(1), (condition < 0).unsqueeze(1)
        alone = torch.where(is_it, log_joint - log_weights, -torch.inf)
        return torch.where(is_free, log_joint, alone)

    def _transport(self, x: Tensor, now: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        if x[0].numel() == 1 and self.means[0].numel() == 1:
            return self._keep_mass(x, now, to)
        if not (self.stds > 0).all():
            raise NotImplementedError(f"the flow of points is known for one value a sample, got {list(x.shape)}")
        with torch.no_grad():
            return self._integrate(x, now, to)

    def _integrate(self, x: Tensor, now: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        r"""By the exact estimates, held to 1e-12 a step: in \(z = x / \sqrt{\alpha^2 + \sigma^2}\), along the angle."""
        start, end = (torch.atan2(sigma, alpha) for alpha, sigma in (now, to))
        norm, next_norm = (torch.hypot(alpha, sigma) for alpha, sigma in (now, to))

        def derivative(share: float, state: State) -> State:
            (z,), angle = state, torch.lerp(start, end, share)
            cos, sin = angle.cos().clamp(min=0), angle.sin()
            sample, score, _ = self._estimate(z, cos, sin, None)
            return ((end - start) * (-cos * sin * score - sin * sample),)  # v, with noise = -sin * score

        (z,) = integrate(derivative, 0.0, 1.0, (x / norm,), rtol=1e-12, atol=1e-12)
        return z * next_norm

    def _keep_mass(self, x: Tensor, now: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        """In one dimension the flow is monotone and keeps the mass on either side: F_s(x_s) = F_t(x_t)."""
        wanted = self._log_masses(x, *now)
        alpha, sigma = (scale.expand_as(x) for scale in to)
        width = 40 * (alpha * self.stds.max().item() + sigma)
        low, high = alpha * self.means.min().item() - width, alpha * self.means.max().item() + width
        for _ in range(128):
            middle = (low + high) / 2
            below, above = self._log_masses(middle, *to)
            # each side is precise where it is the smaller one
            is_low = torch.where(wanted[0] < wanted[1], below < wanted[0], above > wanted[1])
            low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
        return (low + high) / 2

    def _log_masses(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the probability below and above `x`, one value a sample."""
        means, stds = self._components(self.means, x), self._components(self.stds, x)
        spread = ((alpha.unsqueeze(1) * stds).square() + sigma.unsqueeze(1).square()).clamp(min=TINY).sqrt()
        z = (x.unsqueeze(1) - alpha.unsqueeze(1) * means) / spread
        weights = self._components((self.weights / self.weights.sum()).log(), x)
        below, above = ((weights + torch.special.log_ndtr(side)).logsumexp(1) for side in (z, -z))
        return below, above

    def _components(self, values: Tensor, x: Tensor) -> Tensor:
        """`[1, K, *event]`, of `[K, *event]` or `[K]`."""
        event = values.shape[1:] if values.ndim > 1 else (1,) * (x.ndim - 1)
        return values.to(x.device).reshape(1, len(values), *event)


@dataclass(frozen=True, eq=False, kw_only=True)
class DiscretizedGaussianDenoiser(Oracle):
    r"""Grey levels: normal values rounded to `levels` even steps from -1 to 1, each independent, denoised exactly.

    The mass of a level is that of its bin, the outer two reaching to infinity, as in the decoder of DDPM (Ho et al.
    2020, arXiv 2006.11239, eq. 13). `log_prob` at t = -1 is the log *probability* of the levels; at other times a
    density.

    Attributes:
        mean: Of the normal distribution, a number.
        std: Of the normal distribution, positive.
        levels: How many values there are, at least 2; 256 for images of 8 bits.
        schedule: What `t` means.
    """

    mean: float = 0.0
    std: float = 0.5
    levels: int = 256

    def __post_init__(self) -> None:
        if self.levels < 2 or self.std <= 0:
            raise ValueError(f"levels must be at least 2 and std positive, got {self.levels} and {self.std}")

    @property
    def values(self) -> Tensor:
        """The levels, float64 `[levels]` from -1 to 1."""
        return torch.linspace(-1, 1, self.levels, dtype=torch.float64, device="cpu")

    @property
    def log_masses(self) -> Tensor:
        """Log probability of each level, float64 `[levels]`."""
        inner = (self.values[:-1] + self.values[1:]) / 2
        edges = torch.cat([torch.tensor([-torch.inf]), inner, torch.tensor([torch.inf])]).double()
        z = (edges - self.mean) / self.std
        is_above = z[:-1] > 0  # there the mass is a difference of two numbers near 1: take the other side
        low, high = torch.where(is_above, -z[1:], z[:-1]), torch.where(is_above, -z[:-1], z[1:])
        low, high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
        log_mass: Tensor = high + torch.log(-torch.expm1(low - high))
        return log_mass

    def draw(self, shape: tuple[int, ...], generator: Generator = None) -> Tensor:
        """Data, float64 of `shape` `[batch, *event]`."""
        normal = self.mean + self.std * draw_noise(shape, generator, dtype=torch.float64)
        return ((normal.clamp(-1, 1) + 1) * (self.levels - 1) / 2).round() * 2 / (self.levels - 1) - 1

    def _estimate(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: object) -> tuple[Tensor, Tensor, Tensor]:
        points = self.values.to(x.device)
        distance = x.unsqueeze(-1) - alpha.unsqueeze(-1) * points
        variance = sigma.square().clamp(min=TINY).unsqueeze(-1)
        log_density = -0.5 * (distance.square() / variance + torch.log(2 * math.pi * variance))
        log_density = torch.where(sigma.unsqueeze(-1) == 0, -distance.square() * 1e12, log_density)  # a probability
        log_joint = self.log_masses.to(x.device) + log_density
        responsibility = log_joint.softmax(-1)
        sample, score = (responsibility * points).sum(-1), (responsibility * -distance / variance).sum(-1)
        return sample, score, log_joint.logsumexp(-1).flatten(1).sum(1)

    def _transport(self, x: Tensor, now: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
        raise NotImplementedError("the flow of discretised data is not known in closed form")
