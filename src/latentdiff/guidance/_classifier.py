"""Guidance by a classifier of noisy samples, or anything else that says how well x_t fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from latentdiff._checks import like, working_dtype
from latentdiff._denoised import Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance, Scale, check_scale, factor, scale_at, scales_at

LogProb: TypeAlias = Callable[[Latents, Times, object], Tensor]
"""`log_prob(x_t, t, condition)` answers log p(y | x_t), `[batch]`, differentiable in `x_t` (`[batch, ...]`)."""


@dataclass(frozen=True, eq=False)
class Classifier(Guidance):
    r"""Classifier guidance: follow p(x) p(y | x) ** scale (Dhariwal and Nichol 2021, arXiv 2105.05233, alg. 2).

    \(\hat\epsilon = \epsilon - s\,\sigma\,\nabla_{x_t} \log p(y \mid x_t)\), and the sample follows,
    \(\hat x_0 = x_0 + s\,(\sigma^2 / \alpha)\,\nabla_{x_t} \log p(y \mid x_t)\). Where alpha is 0 the input knows
    nothing of the sample, its gradient says nothing either, and the denoiser's answer stays; the next step is guided.

    Denoiser and classifier both get the condition. For an unconditional model that must not see it, guide
    `Given(denoiser)`.

    Attributes:
        denoiser: What is guided.
        log_prob: `log_prob(x_t, t, condition)`, log p(y | x_t) in nats, `[batch]`. Any differentiable measure of fit
            will do, such as `-squared_error / 2`. It is called with gradients on, also under `torch.no_grad`; its
            parameters collect none.
        scale: 1 is Bayes' rule, 0 the denoiser itself; or a function of the share (t + 1) / T of the time.

    Raises:
        ValueError: If `scale` is not finite, or `log_prob` answers in another shape or without a gradient.
        TypeError: If `scale` is neither a number nor a function.
    """

    holds_condition: ClassVar[bool] = False

    log_prob: LogProb
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        denoised = self.denoiser(x_t, t, condition)
        scale = scale_at(self.scale, t, self.schedule)
        if not isinstance(scale, Tensor) and scale == 0:
            return denoised
        alpha, sigma = scales_at(t, self.schedule, x_t)
        if not isinstance(alpha, Tensor) or not isinstance(sigma, Tensor):
            if alpha == 0:
                return denoised
            to_sample, to_noise = sigma * sigma / alpha, sigma
        else:
            to_noise = torch.where(alpha == 0, 0.0, sigma)
            to_sample = to_noise.square() / torch.where(alpha == 0, 1.0, alpha)
        gradient = self._gradient(x_t, t, condition).to(working_dtype(x_t.dtype))
        step = factor(scale, gradient) * gradient
        sample = (denoised.sample + like(to_sample, step) * step).to(x_t.dtype)
        noise = (denoised.noise - like(to_noise, step) * step).to(x_t.dtype)
        return replace(denoised, sample=sample, noise=noise)

    def _gradient(self, x_t: Latents, t: Times, condition: object) -> Tensor:
        """The gradient of `log_prob` in x_t; itself differentiable where the caller differentiates."""
        is_differentiated = torch.is_grad_enabled() and x_t.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t if is_differentiated else x_t.detach().clone().requires_grad_()
            log_prob = self.log_prob(x, t, condition)
            if log_prob.shape != x_t.shape[:1]:
                raise ValueError(f"log_prob must answer in shape [{len(x_t)}], got {list(log_prob.shape)}")
            if not log_prob.requires_grad:
                raise ValueError("log_prob must be differentiable in x_t, got an answer without a gradient")
            (gradient,) = torch.autograd.grad(log_prob.sum(), x, create_graph=is_differentiated)
        return gradient
