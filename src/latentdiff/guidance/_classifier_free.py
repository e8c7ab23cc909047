"""Guidance by a model's own opinion without the condition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from latentdiff._denoised import Denoise, Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance, Scale, check_scale, extrapolate, scale_at, share_of, with_sample


@runtime_checkable
class _Joinable(Protocol):
    def cat(self, other: object, /) -> object: ...


@dataclass(frozen=True, eq=False)
class ClassifierFree(Guidance):
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional) (Ho and Salimans 2022).

    Sample and noise are combined alike, so the result does not depend on the prediction type (arXiv 2207.12598, eq.
    6 with scale = 1 + w). Rescaling is done on the sample. The variance of the reverse step is the conditional one.

    Attributes:
        denoiser: What is guided.
        scale: 1 is the conditional denoiser itself, 0 the unconditional one (one call of the network each, to the bit);
            or a function of the share (t + 1) / T of the time, such as `lambda share: 1 + 6 * share`.
        negative: The condition of the unconditional call, such as `encoder.null(batch)` or what to lead away from;
            None is passed on as None.
        rescale: In [0, 1]: how far the sample's standard deviation (each sample's, over all its values) is drawn
            back to that of the conditional one (Lin et al. 2024, arXiv 2305.08891, eq. 15 and 16).
        interval: Part (low, high] of the way, in shares (t + 1) / T of the time, where guidance acts; elsewhere the
            scale is 1 (Kynkäänniemi et al. 2024, arXiv 2404.07724) and one call is enough. Times given as a tensor are
            not looked at, which would wait for a device: they cost both calls.
        batched: Whether both calls are made as one of twice the batch, where conditions can be joined.

    Raises:
        ValueError: If `scale` is not finite, or `rescale` or `interval` is out of [0, 1].
        TypeError: If `scale` is neither a number nor a function.
    """

    scale: Scale
    negative: object = None
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    batched: bool = True

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval must be (low, high) with 0 <= low <= high <= 1, got {self.interval}")

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        scale = self._scale_at(t)
        if not isinstance(scale, Tensor):
            if scale == 1:
                return self.denoiser(x_t, t, condition)
            if scale == 0:
                return self.denoiser(x_t, t, self.negative)
        conditional, unconditional = both(self.denoiser, x_t, t, condition, self.negative, batched=self.batched)
        guided = extrapolate(unconditional, conditional, scale)
        if not self.rescale:
            return guided
        return with_sample(guided, self._rescaled(guided.sample, conditional.sample), t, self.schedule)

    def _scale_at(self, t: Times) -> float | Tensor:
        low, high = self.interval
        if (low, high) == (0.0, 1.0):
            return scale_at(self.scale, t, self.schedule)
        share = share_of(t, self.schedule)
        if not isinstance(share, Tensor):
            return scale_at(self.scale, t, self.schedule) if low < share <= high else 1.0
        scale = scale_at(self.scale, t, self.schedule)
        scale = scale if isinstance(scale, Tensor) else torch.full_like(share, scale)
        return scale.masked_fill(share.le(low).logical_or(share.gt(high)), 1.0)

    def _rescaled(self, guided: Tensor, conditional: Tensor) -> Tensor:
        axes = tuple(range(1, guided.ndim))
        # their ratio does not depend on the correction, and samples of one value have no unbiased one
        wanted, found = (sample.std(axes, correction=0, keepdim=True) for sample in (conditional, guided))
        ratio = torch.where(found == 0, 1.0, wanted / torch.where(found == 0, 1.0, found))
        return guided * (1 + self.rescale * (ratio - 1))


def both(
    denoiser: Denoise, x_t: Latents, t: Times, condition: object, negative: object, *, batched: bool
) -> tuple[Denoised, Denoised]:
    """The answers under both conditions, in one call of twice the batch where they can be joined."""
    joined = _join(condition, negative) if batched and not _holds_condition(denoiser) else None
    if joined is None:
        return denoiser(x_t, t, condition), denoiser(x_t, t, negative)
    twice_t = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
    return _halves(denoiser(torch.cat([x_t, x_t]), twice_t, joined))


def _holds_condition(denoiser: Denoise) -> bool:
    """Whether guidance on the way to the network has a condition for the batch as it is."""
    return isinstance(denoiser, Guidance) and (denoiser.holds_condition or _holds_condition(denoiser.denoiser))


def _halves(answer: Denoised) -> tuple[Denoised, Denoised]:
    (sample, other_sample), (noise, other_noise) = answer.sample.chunk(2), answer.noise.chunk(2)
    first, second = Denoised(sample, noise, answer.log_variance), Denoised(other_sample, other_noise)
    if answer.log_variance is None or not answer.log_variance.ndim:
        return first, replace(second, log_variance=answer.log_variance)
    log_variance, other_log_variance = answer.log_variance.chunk(2)
    return replace(first, log_variance=log_variance), replace(second, log_variance=other_log_variance)


def _join(condition: object, negative: object) -> object:
    """Both conditions as one of twice the batch; None where they have no way to be joined."""
    if isinstance(condition, Tensor) and isinstance(negative, Tensor):
        return torch.cat([condition, negative]) if condition.shape == negative.shape else None
    if isinstance(condition, _Joinable) and type(condition) is type(negative):
        return condition.cat(negative)
    return None
