"""Look at a model and a batch, and say what is not as it should be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from latentdiff._condition import Condition
from latentdiff._doctor._diffusion import of_compiling, of_gradients, of_losses, of_null, of_schedule
from latentdiff._doctor._first_stage import of_data, of_latents, of_reconstruction
from latentdiff._doctor._report import Finding, Report
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._noise import CounterNoise
from latentdiff._typing import Images, Latents

ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError)
"""What a step may end with on data that do not fit; the report then says so and goes no further."""


def doctor(model: LatentDiffusion, batch: Images, y: object = None, *, compiling: bool = True, seed: int = 0) -> Report:
    """Look at a model and a batch before the first hour of training is wasted.

    Nothing is trained, and the model stays as it is. Looked at, in this order: devices and dtypes, the range of the
    data, mean and spread of latents by channel, how much of them is noise, the reconstruction, the use of a codebook,
    the schedule's ends, condition and null, the loss of a network that answers zero (1 for `"epsilon"`) and of the
    model at several times, gradients, and whether the network compiles to one graph.

    Args:
        model: Before, during or after training.
        batch: Images as training gets them, `[batch, channels, *spatial]`; 16 or more, as figures of few are coarse.
        y: What the condition encoder takes.
        compiling: Whether to try `torch.compile`, which takes some seconds.
        seed: Of the noise.

    Returns:
        Findings, each with what to do; `print(report)`.

    Examples:
        >>> import latentdiff as ld
        >>> model = ld.LatentDiffusion(
        ...     autoencoder=ld.Autoencoder(base_channels=8, channel_multipliers=(1, 2)),
        ...     unet=ld.UNet(in_channels=4, base_channels=8, channel_multipliers=(1, 2)),
        ...     schedule=ld.NoiseSchedule.cosine(),
        ... )
        >>> report = ld.doctor(model, torch.rand(4, 3, 16, 24), compiling=False)
        >>> report.is_ok
        False
        >>> print(report.problems[0])
        look at this  data             values in [..., ...] of [-1, 1]
                                       -> these look like data in [0, 1]: give 2 * x - 1
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong stands in the report
            return Report(tuple(_findings(model, batch, y, compiling, seed)))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _findings(model: LatentDiffusion, batch: Images, y: object, compiling: bool, seed: int) -> Iterator[Finding]:
    """In the order in which a sample goes through the model; what cannot go on is the last."""
    autoencoder, device = model.autoencoder, next(model.unet.parameters()).device
    yield _of_devices(model, batch)
    yield of_data(autoencoder, batch)
    try:
        with torch.no_grad():
            output = autoencoder(images := batch.to(device))
            latents: Latents = output.posterior.sample(CounterNoise(seed))
    except ERRORS as error:
        return (yield Finding("first stage", f"fails: {error}", False, "nothing after it was looked at"))
    yield from of_latents(output.posterior)
    yield from of_reconstruction(autoencoder, images, output)
    yield of_schedule(model.schedule)
    try:
        condition = _condition(model, y, len(batch))
    except ERRORS as error:
        return (yield Finding("condition", f"fails: {error}", False, "nothing after it was looked at"))
    yield Finding("condition", repr(condition) if condition is not None else "none", True)
    if model.condition_encoder is not None:
        yield of_null(model.condition_encoder, len(batch))
    try:
        yield from of_losses(model, latents, condition, seed)
        yield of_gradients(model, latents, condition, seed)
    except ERRORS as error:
        return (yield Finding("network", f"fails: {error}", False, "nothing after it was looked at"))
    if compiling:
        yield of_compiling(model, latents, condition)


def _of_devices(model: LatentDiffusion, batch: Images) -> Finding:
    """Whether everything is in one place, in a dtype that can be trained."""
    weights = list(model.parameters())
    devices = sorted({str(weight.device) for weight in weights})
    dtypes = sorted({str(weight.dtype) for weight in model.unet.parameters()})
    value = f"weights on {', '.join(devices)}, network in {', '.join(dtypes)}; batch on {batch.device}"
    if len(devices) > 1:
        return Finding("device", value, False, "bring the whole model to one device: model.to(device)")
    if str(batch.device) != devices[0]:
        return Finding("device", value, False, f"batch.to({devices[0]!r})")
    is_wide = all(weight.dtype.itemsize >= 4 for weight in model.unet.parameters())
    return Finding("device", value, is_wide, "keep the weights in float32 and train under torch.autocast")


def _condition(model: LatentDiffusion, y: object, batch: int) -> Condition | None:
    """The condition of `y`, not dropped.

    Raises:
        ValueError: If it does not fit the model or the batch.
    """
    if (encoder := model.condition_encoder) is None:
        if y is not None:
            raise ValueError("y must be None for a model without condition_encoder")
        return None
    if y is None:
        raise ValueError("y must be given to a model with a condition_encoder, got None")
    with torch.no_grad():
        condition: Condition = encoder(y)
    if len(condition) != batch:
        raise ValueError(f"y must have the {batch} samples of batch, got {len(condition)}")
    return condition
