r"""DPM-Solver-23 with steps of its own size (Lu et al. 2022, arXiv 2206.00927, app. C)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from latentdiff._checks import by_sample, check_positive, like
from latentdiff._denoised import Denoised
from latentdiff._schedule import Point
from latentdiff._typing import Latents
from latentdiff.solvers._base import (
    FOLLOWING_NOISE,
    Beginning,
    Evaluation,
    Solver,
    Spacing,
    Stepped,
    straight,
)


class _Embedded(NamedTuple):
    """The results of second and third order, and the estimate at the start."""

    low: Tensor
    high: Tensor
    denoised: Denoised


@dataclass(frozen=True, kw_only=True)
class DPMAdaptive(Solver):
    r"""Third order with an embedded second; each sample chooses its own steps.

    The walk's own times are where it reports. Between two of them each sample advances in
    \(\lambda = \log(\alpha / \sigma)\) as far as its error allows, so that a sample does not depend on its batch, and
    a step is made for the batch until all have arrived: how many calls that takes depends on the data. It is the one
    solver that waits for the device, once in each of its own steps. To sigma = 0 it goes to t = 0 first, and then
    straight. With a few reporting times only, begin where there is some sample: the step from alpha = 0 is Euler's.

    Attributes:
        rtol: Relative tolerance of a step; the error of y = x / alpha is measured in `max(atol, rtol * abs(y))`.
        atol: Absolute tolerance.
        first_step: Length of the first step in lambda.
        max_steps: How many of its own steps it may try between two times.
        safety: A step is accepted where its error asks for no shorter one than this share of it.
    """

    order: ClassVar[int] = 3
    default_spacing: ClassVar[Mapping[Beginning, Spacing]] = FOLLOWING_NOISE

    rtol: float = 0.05
    atol: float = 0.0078
    first_step: float = 0.05
    safety: float = 0.81
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "first_step", "safety", "max_steps"):
            check_positive(name, getattr(self, name))

    def step(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """Three calls of the network in each of its own steps."""
        if not now.alpha or not now.sigma or not to.alpha:
            denoised = denoise(x, now)
            return Stepped(straight(denoised, to), denoised)
        if to.sigma:
            return self._advance(denoise, x, now, to, state)
        last = denoise.denoiser.schedule.point(0.0)
        if now.t > 0:
            x, _, state = self._advance(denoise, x, now, last, state)
            now = last
        denoised = denoise(x, now)
        return Stepped(straight(denoised, to), denoised)

    def _advance(self, denoise: Evaluation, x: Latents, now: Point, to: Point, state: object) -> Stepped:
        """From `now` to `to` in as many steps as each sample needs; the state is each sample's step size."""
        direction = 1.0 if to.half_log_snr > now.half_log_snr else -1.0
        place = torch.full((len(x),), now.half_log_snr, dtype=torch.float64, device=x.device)
        end = torch.full_like(place, to.half_log_snr)
        size = state if isinstance(state, Tensor) else torch.full_like(place, self.first_step)
        y, denoised = x / now.alpha, None
        for _ in range(self.max_steps):
            remaining = (end - place).abs()
            if remaining.max() <= 1e-9:
                return Stepped(y * to.alpha, denoised or denoise(x, now), size)
            is_last = size >= remaining
            h = torch.where(is_last, remaining, size) * direction
            tried = self._embedded(denoise, y, place, h)
            denoised = denoised or tried.denoised
            factor = self._factor(tried, y)
            if not factor.isfinite().all():
                raise RuntimeError(f"denoiser must answer with finite numbers, got others on the way from t = {now.t}")
            is_accepted = (factor >= self.safety) & (remaining > 1e-9)
            y = torch.where(by_sample(is_accepted, y), tried.high, y)
            place = torch.where(is_accepted, torch.where(is_last, end, place + h), place)
            # a step cut short by the end says nothing about the next one's size
            size = torch.where((remaining > 1e-9) & ~(is_last & is_accepted), h.abs() * factor, size)
        raise RuntimeError(
            f"rtol and atol must be within reach of the denoiser, got {self.rtol:g} and {self.atol:g}: "
            f"{self.max_steps} steps did not lead from t = {now.t} to {to.t}"
        )

    def _factor(self, tried: _Embedded, y: Tensor) -> Tensor:
        """By what to multiply the step: (1 / error) ** (1 / 3), bent to 0.2 ... 2.6: float64 `[batch]`."""
        scale = (self.rtol * torch.maximum(tried.low.abs(), y.abs())).clamp(min=self.atol)
        error = ((tried.low - tried.high) / scale).double().square().flatten(1).mean(1).sqrt()
        return 1 + torch.atan((error + 1e-8) ** (-1 / self.order) - 1)

    def _embedded(self, denoise: Evaluation, y: Tensor, place: Tensor, h: Tensor) -> _Embedded:
        r"""DPM-Solver-2 and -3 with r_1 = 1/3, r_2 = 2/3 (alg. 2 and 5), in y and the noise level.

        The differences of \(\hat\epsilon\) are weighted by \(\varphi_2\)'s \((e^{r h} - 1) / (r h) - 1\).
        """
        third, two_thirds, full = (self._weights(place, h, share) for share in (1 / 3, 2 / 3, 1.0))
        start = self._evaluate(denoise, y, place)
        u_1 = y - like(third[0], y) * start.noise
        change_1 = self._evaluate(denoise, u_1, place + h / 3).noise - start.noise
        u_2 = y - like(two_thirds[0], y) * start.noise - like(2 * two_thirds[1], y) * change_1
        change_2 = self._evaluate(denoise, u_2, place + 2 * h / 3).noise - start.noise
        moved = y - like(full[0], y) * start.noise
        low = moved - like(1.5 * full[0], y) * change_1
        return _Embedded(low, moved - like(1.5 * full[1], y) * change_2, start)

    @staticmethod
    def _weights(place: Tensor, h: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """l (e^(r h) - 1) and l ((e^(r h) - 1) / (r h) - 1), with l the noise level at place + r h."""
        step = share * h
        level, grown = torch.exp(-(place + step)), torch.expm1(step)
        return level * grown, level * (grown / torch.where(step == 0, 1.0, step) - (step != 0).double())

    @staticmethod
    def _evaluate(denoise: Evaluation, y: Tensor, half_log_snr: Tensor) -> Denoised:
        """Ask at a place of each sample's own."""
        schedule = denoise.denoiser.schedule
        t = schedule.timestep(2 * half_log_snr)
        return denoise.denoiser(y * like(schedule.alpha(t), y), t, denoise.condition)
