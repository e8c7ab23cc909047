"""What there is to see of schedule, condition and network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from latentdiff._checks import batch_times
from latentdiff._condition import Condition, ConditionEncoder
from latentdiff._denoiser import Denoiser
from latentdiff._doctor._report import Finding
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._noise import CounterNoise
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Prediction
from latentdiff.losses import DiffusionLoss

MOST_SIGNAL, MOST_NOISE = 0.05, 0.2
"""Scale of the sample at the last time, and of the noise at the first, that do no harm."""

MOST_DROPPED = 0.5
"""Rate from which on a model hardly learns its condition."""

ZERO_LOSS: Final[dict[Prediction, float]] = {
    "epsilon": 1.0, "sample": 1.0, "v_prediction": 1.0, "flow": 2.0, "edm": 1.0,
}  # fmt: skip
"""Mean square of what a network is to answer, for unit latents: the loss of one that answers zero."""

LEVELS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Times at which losses are taken, over T - 1."""

WORST_RATIO = 1.5
"""Loss over that of a network that answers zero; a fresh one has 1."""


def of_schedule(schedule: NoiseSchedule) -> Finding:
    """Whether sampling starts where training ends, and ends where there is no noise."""
    last = schedule.num_timesteps - 1.0
    alpha, sigma = schedule.alpha(last), schedule.sigma(0.0)
    snr = (alpha / schedule.sigma(last)) ** 2
    value = f"SNR at the last time {snr:.2g} (scale of the sample {alpha:.3g}), noise at the first {sigma:.2g}"
    if alpha > MOST_SIGNAL:
        advice = "sampling starts from pure noise, training never sees it: use a schedule that ends there"
        return Finding("schedule", value, False, advice)
    return Finding("schedule", value, sigma <= MOST_NOISE, "samples keep this noise: begin with smaller betas")


def of_null(encoder: ConditionEncoder, batch: int) -> Finding:
    """Whether there will be a null to guide away from."""
    try:
        encoder.null(batch)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return Finding("null condition", f"null({batch}) fails: {error}", False, "guidance needs null(batch)")
    encoders = [part for part in encoder.modules() if isinstance(part, ConditionEncoder)]
    rates, is_trained = [part.dropout for part in encoders], any(bool(part.null_trained) for part in encoders)
    value = (
        f"dropped at rate {', '.join(f'{rate:g}' for rate in rates)}; trained so far: {'yes' if is_trained else 'no'}"
    )
    if max(rates) == 0 and not is_trained:
        advice = "guidance will be refused: set dropout=0.1 of the condition encoder, unless none is wanted"
        return Finding("null condition", value, False, advice)
    return Finding(
        "null condition", value, max(rates) <= MOST_DROPPED, "the condition is hardly seen: drop it less often"
    )


def of_losses(model: LatentDiffusion, latents: Latents, condition: Condition | None, seed: int) -> Iterator[Finding]:
    """The loss of a network that answers zero, and that of the model beside it, at some times."""
    zero = Denoiser(_zero, model.schedule, model.prediction)
    times = [(model.schedule.num_timesteps - 1) * level for level in LEVELS]
    noise = CounterNoise(seed)
    with torch.no_grad():
        of_zero, of_model = (
            torch.stack([DiffusionLoss()(one, latents, condition, t=t, generator=noise).loss.double() for t in times])
            for one in (zero, model.denoiser)
        )
    yield _of_zero(of_zero.mean().item(), model.prediction, latents.numel())
    ratios = of_model / of_zero
    pairs = zip(times, of_model.tolist(), of_zero.tolist(), strict=True)
    value = "; ".join(f"t={t:g}: {loss:.3g} (zero: {none:.3g})" for t, loss, none in pairs)
    if not of_model.isfinite().all():
        return (yield Finding("loss by time", value, False, "the network's answer is not finite: look at its weights"))
    advice = (
        "worse than answering zero: another prediction, schedule or latent scale than in training, or random weights"
    )
    yield Finding("loss by time", value, bool((ratios <= WORST_RATIO).all()), advice)


def _of_zero(loss: float, prediction: Prediction, numel: int) -> Finding:
    """Whether the loss of answering zero is the one it must be."""
    expected = ZERO_LOSS[prediction]
    is_of_noise_alone = prediction == "epsilon"
    tolerance = 6 * math.sqrt(2 / numel) if is_of_noise_alone else 0.5
    value = f"loss {loss:.3f}, {expected:g} for unit latents and {prediction!r}"
    advice = "noise is not of unit size" if is_of_noise_alone else "latents are not of unit size: calibrate"
    return Finding("zero predictor", value, abs(loss / expected - 1) <= tolerance, advice)


def of_gradients(model: LatentDiffusion, latents: Latents, condition: Condition | None, seed: int) -> Finding:
    """Whether the loss reaches every weight of the network."""
    named = [(name, weight) for name, weight in model.unet.named_parameters() if weight.requires_grad]
    if not named:
        return Finding("gradients", "no weight of the network is to be trained", False, "unet.requires_grad_(True)")
    with torch.enable_grad():
        loss = DiffusionLoss()(model.denoiser, latents, condition, generator=CounterNoise(seed)).loss
        found = torch.autograd.grad(loss, [weight for _, weight in named], allow_unused=True)
    gradients: dict[str, Tensor | None] = dict(zip((name for name, _ in named), found, strict=True))
    unused = [name for name, gradient in gradients.items() if gradient is None]
    wild = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
    if wild:
        value = f"not finite in {len(wild)} weights, the first is {wild[0]}"
        return Finding("gradients", value, False, "look at the scale of latents, and at half precision")
    value = f"{len(named) - len(unused)} of {len(named)} weights get one" + (f", not {unused[0]}" if unused else "")
    return Finding("gradients", value, not unused, "weights without use: is the condition one that the network takes?")


def of_compiling(model: LatentDiffusion, latents: Latents, condition: Condition | None) -> Finding:
    """Whether the network is one graph for `torch.compile`; the backend is one that generates no code."""
    compiled = torch.compile(model.unet, fullgraph=True, backend="eager")
    t = batch_times("t", 0.0, latents)
    try:
        with torch.no_grad():
            compiled(latents.to(next(model.unet.parameters()).dtype), t, condition)
    except Exception as error:  # whatever a network of anybody's raises while it is traced
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return Finding(
            "compile", f"breaks: {reason}", False, "torch._dynamo.explain(unet)(x_t, t, condition) says where"
        )
    return Finding("compile", "one graph", True)


def _zero(x_t: Tensor, t: Tensor, condition: object) -> Tensor:
    return torch.zeros_like(x_t)
