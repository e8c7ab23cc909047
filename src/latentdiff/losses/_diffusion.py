"""The denoising loss: noise a sample, have it denoised, weigh the error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from latentdiff._checks import (
    by_sample,
    check_choice,
    check_count,
    check_floating,
    check_positive,
    check_range,
    check_shape,
    check_times,
    like,
    working_dtype,
)
from latentdiff._denoised import Denoise, Denoised
from latentdiff._noise import draw_noise, draw_uniform
from latentdiff._prediction import prediction_target
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Generator, Latents, Prediction, Times
from latentdiff._variational import decoder_nll, reverse_step, step_kl
from latentdiff.losses._output import DiffusionLossOutput
from latentdiff.losses._times import (
    DrawnTimes,
    LogitNormalTimes,
    LogNormalTimes,
    LogSnrTimes,
    TimeSampling,
    UniformTimes,
)
from latentdiff.losses._weighting import (
    EdmWeight,
    MinSnrWeight,
    NoiseScales,
    P2Weight,
    SigmoidWeight,
    SnrWeight,
    UniformWeight,
    VlbWeight,
    Weighting,
)

Kind: TypeAlias = Literal["mse", "l1", "huber"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

WeightingName: TypeAlias = Literal["uniform", "snr", "min_snr", "p2", "edm", "sigmoid", "vlb"]
WEIGHTINGS: Final[dict[WeightingName, type[Weighting]]] = {
    "uniform": UniformWeight,
    "snr": SnrWeight,
    "min_snr": MinSnrWeight,
    "p2": P2Weight,
    "edm": EdmWeight,
    "sigmoid": SigmoidWeight,
    "vlb": VlbWeight,
}

TimesName: TypeAlias = Literal["uniform", "log_snr", "log_normal", "logit_normal"]
TIMES: Final[dict[TimesName, type[TimeSampling]]] = {
    "uniform": UniformTimes,
    "log_snr": LogSnrTimes,
    "log_normal": LogNormalTimes,
    "logit_normal": LogitNormalTimes,
}


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    r"""The denoising loss (Ho et al. 2020, arXiv 2006.11239, eq. 14), with what was learned since.

    The tables of names are in `latentdiff.losses`.

    Attributes:
        weighting: How much an error e counts at each time: a name or a `Weighting`, such as `P2Weight(gamma=0.5)`.
        kind: `"mse"`: \(e^2\). `"l1"`: \(|e|\). `"huber"`: \(2\delta(\sqrt{e^2 + \delta^2} - \delta)\), which is
            \(e^2\) for small and \(2 \delta |e|\) for large errors, and smooth between: pseudo-Huber (Charbonnier et
            al. 1997; for diffusion Khrapov et al. 2024, arXiv 2403.16728). e is the weighted error, so each kind is
            the same loss whatever the network predicts, and `"snr"` is that of the noise's error.
        delta: Size of an error between small and large, for `"huber"`.
        times: Which times are drawn: a name or a `TimeSampling`, such as `LogNormalTimes(mean=-0.4)`.
        stratified: Whether the times of a batch spread evenly over the distribution, \(u_i = u_0 + i / n\) modulo 1,
            each by itself distributed as before (Kingma et al. 2021, arXiv 2107.00630, app. I.1).
        offset_noise: How much noise that is constant over space is added to that of each channel (Guttenberg 2023,
            "Diffusion with offset noise"), a factor; .1 is usual. It is a part of the noise, in x_t and in the target.
        uncertainty: u of log SNR: a loss L becomes \(L / e^u + u\); see `Uncertainty`. Its parameters must go to the
            optimiser.
        vlb_weight: How much the variational bound counts in which the denoiser's *variance* learns, the estimate being
            held (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 16, with .001). It is an estimate of L_vlb without its
            prior: T times the divergence of the step from t, in nats per component. Published code writes T / 1000 for
            the product of weight and T, and has bits: .001 / log 2 = .00144 here.
        levels: Grey levels, evenly from -1 to 1, whose probability the step from t = 0 is to give for `vlb_weight`;
            None: the density of continuous data, such as latents.

    Raises:
        ValueError: If a name is unknown or a number is out of range.
        TypeError: If `uncertainty` is not callable, or `levels` no int.
    """

    weighting: Weighting | WeightingName = "uniform"
    kind: Kind = "mse"
    delta: float = 1.0
    times: TimeSampling | TimesName = "uniform"
    stratified: bool = False
    offset_noise: float = 0.0
    uncertainty: Callable[[Tensor], Tensor] | None = None
    vlb_weight: float = 0.0
    levels: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.weighting, Weighting):
            check_choice("weighting", self.weighting, tuple(WEIGHTINGS))
        if not isinstance(self.times, TimeSampling):
            check_choice("times", self.times, tuple(TIMES))
        check_choice("kind", self.kind, KINDS)
        check_positive("delta", self.delta)
        for name in ("offset_noise", "vlb_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        if self.uncertainty is not None and not callable(self.uncertainty):
            raise TypeError(f"uncertainty must be callable, got {type(self.uncertainty).__name__}")
        if self.levels is not None:
            check_count("levels", self.levels, least=2)

    def __call__(
        self,
        denoiser: Denoise,
        sample: Latents,
        condition: object = None,
        *,
        t: Times | None = None,
        noise: Latents | None = None,
        mask: Tensor | None = None,
        generator: Generator = None,
    ) -> DiffusionLossOutput:
        """Noise the sample, have it denoised, weigh the error.

        Args:
            denoiser: What is trained. Its `prediction` and `sigma_data` are looked at; without them they count as
                epsilon and 1.
            sample: `[batch, channels, *spatial]`, clean, of any rank.
            condition: Passed on to the denoiser.
            t: `[batch]`, `[]` or a number, in -1 ... T - 1; drawn as `times` says if not given.
            noise: Like `sample`, taken as it is; drawn if not given.
            mask: Where errors count and how much, at least 0, bool or floating; of the rank of `sample`, broadcasts
                against it. Each sample's mean is over its mask; one whose mask is 0 everywhere has loss 0.
            generator: Where times and noise come from.

        Returns:
            The loss, in float32 at least, also under autocast.

        Raises:
            ValueError: If a shape does not fit, `sample` holds values that are not numbers or `mask` negative ones
                (looked at on the CPU only), or there is a `vlb_weight` but the denoiser knows no variance.
            TypeError: If `sample` is not floating, or `denoiser` has no schedule, as a bare network.
        """
        _check_denoiser(denoiser)
        check_floating("sample", sample)
        check_shape("sample", sample, "batch channels ...")
        check_range("sample", sample, -math.inf, math.inf)
        if mask is not None:
            _check_mask(mask, sample)
        sample, schedule = sample.to(working_dtype(sample.dtype)), denoiser.schedule
        t, importance = self._times(schedule, sample, t, generator)
        noise = self._noise(sample, generator) if noise is None else noise
        x_t = schedule.add_noise(sample, noise, t)
        denoised = denoiser(x_t, t, condition)
        error = _weighted_error(self._weighting, denoiser, denoised, sample, noise, t)
        per_sample = _mean(self._penalty(error), mask)
        if self.uncertainty is not None:
            u = self.uncertainty(schedule.log_snr(t)).to(per_sample.dtype)
            per_sample = per_sample * torch.exp(-u) + u
        if self.vlb_weight:
            nats = _mean(self._variance_nats(schedule, denoised, sample, x_t, t), mask) * schedule.num_timesteps
            per_sample = per_sample + (self.vlb_weight * nats).to(per_sample.dtype)
        return DiffusionLossOutput((per_sample * importance.to(per_sample.dtype)).mean(), per_sample, t, importance)

    @property
    def _weighting(self) -> Weighting:
        return self.weighting if isinstance(self.weighting, Weighting) else WEIGHTINGS[self.weighting]()

    def _times(self, schedule: NoiseSchedule, sample: Tensor, t: Times | None, generator: Generator) -> DrawnTimes:
        batch = len(sample)
        if t is not None:
            if not isinstance(t, Tensor):
                t = torch.full((batch,), t, device=sample.device)  # nothing is copied from the host
            check_times("t", t, sample)
            t = t.to(sample.device).expand(batch)
            return DrawnTimes(t, torch.ones(batch, dtype=torch.float64, device=sample.device))
        u = draw_uniform(batch, generator, step=0, device=sample.device)
        if self.stratified:
            u = (u[:1] + torch.arange(batch, dtype=u.dtype, device=u.device) / batch) % 1
        sampling = self.times if isinstance(self.times, TimeSampling) else TIMES[self.times]()
        return sampling.draw(schedule, u)

    def _noise(self, sample: Tensor, generator: Generator) -> Tensor:
        noise = draw_noise(sample.shape, generator, step=1, device=sample.device, dtype=sample.dtype)
        if not self.offset_noise:
            return noise
        shape = (*sample.shape[:2], *(1,) * (sample.ndim - 2))
        offset = draw_noise(shape, generator, step=2, device=sample.device, dtype=sample.dtype)
        return noise + self.offset_noise * offset

    def _penalty(self, error: Tensor) -> Tensor:
        match self.kind:
            case "mse":
                return error.square()
            case "l1":
                return error.abs()
            case "huber":  # 2 d (sqrt(e^2 + d^2) - d), without the difference of two numbers that are nearly the same
                square = error.square()
                return 2 * self.delta * square / (torch.sqrt(square + self.delta**2) + self.delta)

    def _variance_nats(
        self, schedule: NoiseSchedule, denoised: Denoised, sample: Tensor, x_t: Tensor, t: Tensor
    ) -> Tensor:
        """The divergence of the step from t, or the decoder's negative log-likelihood at t = 0; like `sample`."""
        if denoised.log_variance is None:
            raise ValueError(
                "denoiser must know the variance of its steps for vlb_weight > 0, got none; "
                "use Denoiser(variance='learned_range') and a network with twice the channels"
            )
        held = Denoised(denoised.sample.detach(), denoised.noise.detach(), denoised.log_variance)
        decoder = decoder_nll(reverse_step(schedule, held, x_t, t), sample, self.levels)
        if schedule.num_timesteps == 1:
            return decoder
        is_last = t <= 0
        # some other time in place of the last one, whose divergence is infinite and would spoil the gradient
        step = step_kl(schedule, sample, held, x_t, torch.where(is_last, schedule.num_timesteps - 1, t))
        return torch.where(by_sample(is_last, sample), decoder, step)


def _weighted_error(
    weighting: Weighting, denoiser: Denoise, denoised: Denoised, sample: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """sqrt(w) times the error of the sample, but for its sign, by way of the error of the network's own target."""
    prediction: Prediction = getattr(denoiser, "prediction", "epsilon")
    sigma_data: float = getattr(denoiser, "sigma_data", 1.0)
    at = NoiseScales.at(denoiser.schedule, t, prediction, sigma_data)
    target = prediction_target(prediction, sample, noise, at.alpha, at.sigma, sigma_data)
    answer = prediction_target(prediction, denoised.sample, denoised.noise, at.alpha, at.sigma, sigma_data)
    scale = weighting.weight(at).sqrt() / at.target_error
    return like(scale, target) * (answer - target)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of each sample over its mask, `[batch]`."""
    if mask is None:
        return values.flatten(1).mean(1)
    weight = mask.to(values.dtype).expand_as(values).flatten(1)
    total = weight.sum(1)
    return (values.flatten(1) * weight).sum(1) / torch.where(total > 0, total, 1.0)


def _check_denoiser(denoiser: Denoise) -> None:
    if not isinstance(getattr(denoiser, "schedule", None), NoiseSchedule):
        raise TypeError(
            "denoiser must be a denoiser such as ld.Denoiser(network, schedule), got "
            f"{type(denoiser).__name__} without a schedule"
        )


def _check_mask(mask: Tensor, sample: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.ndim != sample.ndim or any(a not in (1, b) for a, b in zip(mask.shape, sample.shape, strict=True)):
        raise ValueError(
            f"mask must have sample's rank and broadcast against {list(sample.shape)}, got {list(mask.shape)}"
        )
    check_range("mask", mask, 0, math.inf)
