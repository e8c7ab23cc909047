"""One latent space: the shift and the scale between an encoder's own latents and those that everybody else sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

from latentdiff._checks import check_positive, working_dtype
from latentdiff._distributions import DiagonalGaussian, PointMass
from latentdiff._module import Module
from latentdiff._moments import ChannelMoments
from latentdiff._typing import Latents


class LatentSpace(Module):
    """What keeps `scaling_factor` and `shift_factor`: latents are `(z - shift_factor) * scaling_factor`.

    The two are float64 buffers, `latent_scaling` and `latent_shift` in the state dict, and keep that dtype in a
    half-precision module.
    """

    latent_scaling: Tensor
    latent_shift: Tensor

    def __init__(self, latent_channels: int) -> None:
        """Start with latents as they are."""
        super().__init__()
        self.latent_channels = latent_channels
        # On the CPU whatever the default device: the configuration can be read from a module without memory (meta).
        self.register_buffer("latent_scaling", torch.ones(latent_channels, dtype=torch.float64, device="cpu"))
        self.register_buffer("latent_shift", torch.zeros(latent_channels, dtype=torch.float64, device="cpu"))

    @property
    def scaling_factor(self) -> float | list[float]:
        """What the shifted latents are multiplied with: one number, or one for each channel."""
        return _number_or_list(self.latent_scaling)

    @scaling_factor.setter
    def scaling_factor(self, value: float | Sequence[float]) -> None:
        factors = _by_channel("scaling_factor", value, self.latent_channels)
        check_positive("scaling_factor", factors.min().item())
        check_positive("scaling_factor", factors.max().item())
        self.latent_scaling.copy_(factors)

    @property
    def shift_factor(self) -> float | list[float]:
        """What is subtracted from the encoder's latents: one number, or one for each channel."""
        return _number_or_list(self.latent_shift)

    @shift_factor.setter
    def shift_factor(self, value: float | Sequence[float]) -> None:
        factors = _by_channel("shift_factor", value, self.latent_channels)
        if not factors.isfinite().all():
            raise ValueError(f"shift_factor must be finite, got {value}")
        self.latent_shift.copy_(factors)

    def _calibrate(self, posteriors: Iterable[DiagonalGaussian | PointMass]) -> None:
        """Set both factors so that samples of `posteriors`, of the encoder's own z, get mean 0 and variance 1."""
        moments: ChannelMoments | None = None
        for posterior in posteriors:
            part = ChannelMoments.of(posterior.mean, posterior.variance)
            moments = part if moments is None else moments.merge(part)
        if moments is None:
            raise ValueError("batches must hold at least one batch, got none")
        moments = moments.over_processes()
        if not (moments.variance > 0).all():
            raise ValueError(f"latents must vary in every channel, got variances {moments.variance.tolist()}")
        self.latent_scaling.copy_(moments.variance.rsqrt())
        self.latent_shift.copy_(moments.mean)

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scaling, shaped to work on `x` `[batch, latent_channels, *spatial]` in its dtype."""
        shape = (1, -1, *(1,) * (x.ndim - 2))
        shift, scaling = self.latent_shift, self.latent_scaling
        return shift.to(x.device, x.dtype).reshape(shape), scaling.to(x.device, x.dtype).reshape(shape)

    def _unscale(self, latents: Latents) -> Tensor:
        """The encoder's own z of latents `[batch, latent_channels, *spatial]`, float32 at least."""
        latents = latents.to(working_dtype(latents.dtype))
        shift, scaling = self._factors(latents)
        return latents / scaling + shift

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the two factors with the module, and keep their dtype: half precision would shift the latent space."""
        exact = {name: self._buffers.pop(name) for name in ("latent_scaling", "latent_shift")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, factors in exact.items():
            if factors is not None and not factors.is_meta:
                device = fn(torch.empty(0, device=factors.device)).device
                factors = factors.to(device, torch.float32 if device.type == "mps" else torch.float64)
            self._buffers[name] = factors
        return self


def _by_channel(name: str, value: float | Sequence[float], channels: int) -> Tensor:
    """`value` as float64 `[channels]`, or `[1]` for one number."""
    values: list[float] = [value] if isinstance(value, int | float) else list(value)
    if not isinstance(value, int | float) and len(values) != channels:
        raise ValueError(f"{name} must be a number or one for each of {channels} latent channels, got {len(values)}")
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _number_or_list(factors: Tensor) -> float | list[float]:
    values = [float(factor) for factor in factors.cpu()]
    return values[0] if len(set(values)) == 1 else values
