"""The first stage: images to latents of unit size and back (Rombach et al. 2022, arXiv:2112.10752, sec. 3.1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor

from latentdiff._checks import (
    SPATIAL,
    check_choice,
    check_floating,
    check_positive,
    check_range,
    check_shape,
    working_dtype,
)
from latentdiff._coders import Decoder, Encoder
from latentdiff._distributions import DiagonalGaussian, PointMass, Posterior
from latentdiff._layers import Conv, conv
from latentdiff._module import Module
from latentdiff._moments import ChannelMoments
from latentdiff._quantizer import Quantized, VectorQuantizer
from latentdiff._typing import Generator, Images, Latents, SpatialDims

Bottleneck: TypeAlias = Literal["kl", "vq", "none"]
"""What holds the latents together: a prior, a codebook, nothing."""

CODEBOOK_OPTIONS: Final = {
    "codebook_size": None,
    "commitment_weight": 0.25,
    "codebook_weight": 1.0,
    "codebook_decay": None,
    "restart_below": 0.0,
    "cosine_codes": False,
}
"""The arguments that only a codebook has a use for, and their defaults."""


@dataclass(frozen=True, slots=True, eq=False)
class AutoencoderOutput:
    """What a pass through an autoencoder gives.

    Attributes:
        reconstruction: `[batch, out_channels, *spatial]`, about in the range of the data, not clamped.
        posterior: Of the latents; with a codebook, the point before quantisation.
        regularization: `[]`. Bottleneck `"kl"`: nats per sample, summed over the latents, mean over the batch.
            `"vq"`: the codebook's loss, a mean over all elements. `"none"`: 0.
        indices: With a codebook: int64 `[batch, *spatial / f]`.
    """

    reconstruction: Images
    posterior: Posterior
    regularization: Tensor
    indices: Tensor | None = None


class Autoencoder(Module):
    """An encoder and a decoder of the published first stages, and one latent space between them.

    The encoder's own latents z are scaled on their way out and back on their way in: everybody else sees
    `(z - shift_factor) * scaling_factor`, of unit size after `calibrate`. The two factors are float64 buffers,
    `latent_scaling` and `latent_shift` in the state dict, and keep that dtype in a half-precision module.

    Inputs of any floating dtype are cast to that of the weights; posteriors are float32 at least.

    Example:
        >>> autoencoder = Autoencoder(base_channels=8, channel_multipliers=(1, 2, 2))
        >>> latents = autoencoder.encode(torch.zeros(1, 3, 16, 24)).sample()
        >>> latents.shape, autoencoder.decode(latents).shape
        (torch.Size([1, 4, 4, 6]), torch.Size([1, 3, 16, 24]))
    """

    latent_scaling: Tensor
    latent_shift: Tensor

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int | None = None,
        latent_channels: int = 4,
        z_channels: int | None = None,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        bottleneck: Bottleneck = "kl",
        use_quant_conv: bool = True,
        codebook_size: int | None = None,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        codebook_decay: float | None = None,
        restart_below: float = 0.0,
        cosine_codes: bool = False,
        scaling_factor: float | Sequence[float] = 1.0,
        shift_factor: float | Sequence[float] = 0.0,
        spatial_dims: SpatialDims = 2,
        dropout: float = 0.0,
        value_range: Sequence[float] | None = (-1.0, 1.0),
        gradient_checkpointing: bool = False,
    ) -> None:
        """Build the encoder, the bottleneck and the decoder.

        Args:
            in_channels: Channels of the images.
            out_channels: Channels of the reconstruction; None is `in_channels`.
            latent_channels: Channels of the latents (`embed_dim` of the published configurations).
            z_channels: Channels between encoder or decoder and their 1x1 convolutions; None is `latent_channels`.
            base_channels: Channels at full size, before the multiplier.
            channel_multipliers: Channels of each level over `base_channels`; level 0 has full size, each further level
                half of the one before.
            blocks_per_level: Residual blocks of each level of the encoder; the decoder has one more.
            attention_levels: Levels with attention after each block.
            middle_attention: Whether there is attention between the two blocks at the lowest resolution.
            bottleneck: `"kl"`: a Gaussian posterior; `"vq"`: a codebook; `"none"`: neither.
            use_quant_conv: Whether 1x1 convolutions stand on both sides of the bottleneck.
            codebook_size: Number of codes; for `"vq"` only, as are the next five.
            commitment_weight: See `VectorQuantizer`; the published models have 1.
            codebook_weight: See `VectorQuantizer`; the published models have 0.25.
            codebook_decay: Its `decay`: None learns the codebook by gradient.
            restart_below: See `VectorQuantizer`.
            cosine_codes: Its `cosine`.
            scaling_factor: What the shifted latents are multiplied with: one number, or one for each channel.
            shift_factor: What is subtracted from the encoder's latents: likewise.
            spatial_dims: 1, 2 or 3.
            dropout: Rate in the residual blocks.
            value_range: Lowest and highest value of the data, which `encode` requires; None for any finite data.
            gradient_checkpointing: Whether blocks are computed again in the backward pass to save memory.

        Raises:
            ValueError: If sizes are not positive or do not fit together, or an argument has no use.
        """
        super().__init__()
        self.in_channels = in_channels
        self.out_channels: int = in_channels if out_channels is None else out_channels
        self.latent_channels = latent_channels
        self.z_channels: int = latent_channels if z_channels is None else z_channels
        self.base_channels = base_channels
        self.channel_multipliers: tuple[int, ...] = tuple(channel_multipliers)
        self.blocks_per_level = blocks_per_level
        self.attention_levels: tuple[int, ...] = tuple(attention_levels)
        self.middle_attention = middle_attention
        self.bottleneck: Bottleneck = bottleneck
        self.use_quant_conv = use_quant_conv
        self.codebook_size = codebook_size
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.codebook_decay = codebook_decay
        self.restart_below = restart_below
        self.cosine_codes = cosine_codes
        self.spatial_dims: SpatialDims = spatial_dims
        self.dropout = dropout
        self.value_range: tuple[float, float] | None = _checked_range(value_range)
        self.gradient_checkpointing = gradient_checkpointing
        self._check_arguments()
        self._build()
        # On the CPU whatever the default device: the configuration can be read from a module without memory (meta).
        self.register_buffer("latent_scaling", torch.ones(latent_channels, dtype=torch.float64, device="cpu"))
        self.register_buffer("latent_shift", torch.zeros(latent_channels, dtype=torch.float64, device="cpu"))
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor
        self._warned_of_range = False

    def _check_arguments(self) -> None:
        check_choice("spatial_dims", self.spatial_dims, (1, 2, 3))
        check_choice("bottleneck", self.bottleneck, get_args(Bottleneck))
        for name in ("in", "out", "latent", "z", "base"):
            check_positive(f"{name}_channels", getattr(self, f"{name}_channels"))
        check_positive("blocks_per_level", self.blocks_per_level)
        levels, multipliers = len(self.channel_multipliers), self.channel_multipliers
        if not levels or min(multipliers) < 1:
            raise ValueError(f"channel_multipliers must be positive, one for each level, got {multipliers}")
        if any(not 0 <= level < levels for level in self.attention_levels):
            raise ValueError(f"attention_levels must be in [0, {levels - 1}], got {self.attention_levels}")
        if not self.use_quant_conv and self.z_channels != self.latent_channels:
            raise ValueError(
                f"z_channels must be {self.latent_channels}, the latent_channels, without use_quant_conv, "
                f"got {self.z_channels}"
            )
        if self.bottleneck == "vq" and self.codebook_size is None:
            raise ValueError("codebook_size must be given with bottleneck='vq', got None")
        if self.bottleneck != "vq":
            for name, default in CODEBOOK_OPTIONS.items():
                if (value := getattr(self, name)) != default:
                    raise ValueError(f"{name} must be {default} with bottleneck={self.bottleneck!r}, got {value}")

    def _build(self) -> None:
        """Both coders, the 1x1 convolutions and the codebook."""
        moments = 2 if self.bottleneck == "kl" else 1
        widths = tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)
        self.encoder: Encoder = Encoder(
            in_channels=self.in_channels,
            out_channels=moments * self.z_channels,
            base_channels=self.base_channels,
            widths=widths,
            blocks_per_level=self.blocks_per_level,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            spatial_dims=self.spatial_dims,
            dropout=self.dropout,
        )
        self.decoder: Decoder = Decoder(
            in_channels=self.z_channels,
            out_channels=self.out_channels,
            widths=widths,
            blocks_per_level=self.blocks_per_level,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            spatial_dims=self.spatial_dims,
            dropout=self.dropout,
        )
        self.quant_conv: Conv | None = None
        self.post_quant_conv: Conv | None = None
        if self.use_quant_conv:
            dims, z_channels, latent_channels = self.spatial_dims, self.z_channels, self.latent_channels
            self.quant_conv = conv(dims, moments * z_channels, moments * latent_channels, 1)
            self.post_quant_conv = conv(dims, latent_channels, z_channels, 1)
        self.quantizer: VectorQuantizer | None = None
        if self.codebook_size is not None:
            self.quantizer = VectorQuantizer(
                codebook_size=self.codebook_size,
                dim=self.latent_channels,
                commitment_weight=self.commitment_weight,
                codebook_weight=self.codebook_weight,
                decay=self.codebook_decay,
                restart_below=self.restart_below,
                cosine=self.cosine_codes,
            )

    @property
    def downsampling_factor(self) -> int:
        """Size of images over size of latents, on each axis: 2 ** (levels - 1)."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    @property
    def last_layer(self) -> Tensor:
        """The weight of the output convolution, `[out_channels, base_channels * m, *kernel]`.

        Its gradients balance the terms of a loss (Esser et al. 2021, arXiv:2012.09841, eq. 7).
        """
        return self.decoder.conv_out.weight

    # One latent space

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

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Images]) -> Self:
        """Set `scaling_factor` and `shift_factor` so that latents have mean 0 and variance 1 in each channel.

        The moments of `posterior.sample()` over the whole stream and all processes of `torch.distributed`: the mean of
        the posterior's means, and their variance plus the mean of the posterior's variances. They are merged in
        float64, and do not depend on how the data are cut into batches, nor on the factors set before. The mode of the
        module does not matter and is left as it was.

        Args:
            batches: Batches of images `[batch, in_channels, *spatial]`; they are moved to the device of the weights.

        Returns:
            The module itself.

        Raises:
            ValueError: If there are no batches, or a channel of the latents is constant.
        """
        moments: ChannelMoments | None = None
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            for batch in batches:
                posterior = self._posterior(batch.to(self.last_layer.device))
                part = ChannelMoments.of(posterior.mean, posterior.variance)
                moments = part if moments is None else moments.merge(part)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if moments is None:
            raise ValueError("batches must hold at least one batch, got none")
        moments = moments.over_processes()
        if not (moments.variance > 0).all():
            raise ValueError(f"latents must vary in every channel, got variances {moments.variance.tolist()}")
        self.latent_scaling.copy_(moments.variance.rsqrt())
        self.latent_shift.copy_(moments.mean)
        return self

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

    def _latent_factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scaling, shaped to work on `x` `[batch, latent_channels, *spatial]` in its dtype."""
        shape = (1, -1, *(1,) * self.spatial_dims)
        shift, scaling = self.latent_shift, self.latent_scaling
        return shift.to(x.device, x.dtype).reshape(shape), scaling.to(x.device, x.dtype).reshape(shape)

    # Encoding and decoding

    def encode(self, x: Images) -> Posterior:
        """The posterior of the latents of images.

        Args:
            x: `[batch, in_channels, *spatial]`, floating, in `value_range`; sizes divisible by `downsampling_factor`.

        Returns:
            Of latents `[batch, latent_channels, *spatial / f]` of unit size, float32 at least: a `DiagonalGaussian`
            for `"kl"`, else a `PointMass`, which with a codebook is the point *before* quantisation. Its `kl()` is that
            of the encoder's own moments and does not depend on the scaling.

        Raises:
            ValueError: If shape, size or values do not fit.
            TypeError: If `x` is not floating.
        """
        posterior = self._posterior(x)
        return posterior.affine(*self._latent_factors(posterior.mean))

    def decode(self, latents: Latents, *, quantize: bool = True) -> Images:
        """Images of latents. The mode matters to dropout only: a codebook does not learn here.

        Args:
            latents: `[batch, latent_channels, *spatial]`, of unit size, any spatial size.
            quantize: With a codebook: whether latents are quantised first, with a straight-through gradient.

        Returns:
            `[batch, out_channels, *spatial * f]`, about in `value_range`; see `clamp`.

        Raises:
            ValueError: If the shape does not fit, or a value is not finite.
            TypeError: If `latents` are not floating.
        """
        check_floating("latents", latents)
        check_shape("latents", latents, self._axes, channels=self.latent_channels)
        _check_finite("latents", latents)
        z = self._unscale(latents)
        if self.quantizer is not None and quantize:
            z = self.quantizer.quantize(z).latents
        return self._decode(z)

    def forward(self, x: Images, generator: Generator = None) -> AutoencoderOutput:
        """Encode and decode: from a sample of the posterior in training mode, from its mode in evaluation mode.

        Args:
            x: `[batch, in_channels, *spatial]`, as for `encode`.
            generator: Where the sample comes from; restarts of dead codes use it if it is a single `torch.Generator`.

        Returns:
            Reconstruction, posterior, regularisation, and with a codebook the indices. In training mode a codebook with
            `codebook_decay` has then learnt.

        Raises:
            ValueError: If shape, size or values do not fit.
            TypeError: If `x` is not floating.
        """
        posterior = self.encode(x)
        z = self._unscale(posterior.sample(generator) if self.training else posterior.mode())
        if self.quantizer is None:
            return AutoencoderOutput(self._decode(z), posterior, posterior.kl().mean())
        quantized: Quantized = self.quantizer(z, generator if isinstance(generator, torch.Generator) else None)
        return AutoencoderOutput(self._decode(quantized.latents), posterior, quantized.loss, quantized.indices)

    def clamp(self, images: Images) -> Images:
        """`images` `[batch, channels, *spatial]` with values limited to `value_range`, if there is one."""
        return images if self.value_range is None else images.clamp(*self.value_range)

    def initialize_codebook(self, x: Images, *, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """Place the codes at the k-means of the encoder's outputs; see `VectorQuantizer.initialize`.

        Args:
            x: `[batch, in_channels, *spatial]`, as for `encode`: enough for more latent points than codes.
            iterations: Of Lloyd's algorithm.
            generator: For the draw of the first centres.

        Raises:
            ValueError: If there is no codebook, or `x` does not fit.
        """
        if self.quantizer is None:
            raise ValueError(f"bottleneck must be 'vq' to have a codebook, got {self.bottleneck!r}")
        with torch.no_grad():
            self.quantizer.initialize(self._posterior(x).mean, iterations=iterations, generator=generator)

    @property
    def _axes(self) -> str:
        return f"batch channels {SPATIAL[self.spatial_dims]}"

    def _posterior(self, x: Images) -> Posterior:
        """The posterior of the encoder's own latents z."""
        self._check_images(x)
        h = self.encoder(x.to(self.last_layer.dtype), self.gradient_checkpointing)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        h = h.to(working_dtype(h.dtype))
        if self.bottleneck == "kl":
            return DiagonalGaussian(*h.chunk(2, dim=1))
        return PointMass(h)

    def _unscale(self, latents: Latents) -> Tensor:
        """The encoder's own z of latents `[batch, latent_channels, *spatial]`, float32 at least."""
        latents = latents.to(working_dtype(latents.dtype))
        shift, scaling = self._latent_factors(latents)
        return latents / scaling + shift

    def _decode(self, z: Tensor) -> Images:
        z = z.to(self.last_layer.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        images: Images = self.decoder(z, self.gradient_checkpointing)
        return images

    def _check_images(self, x: Images) -> None:
        check_floating("x", x)
        check_shape("x", x, self._axes, channels=self.in_channels)
        f, sizes = self.downsampling_factor, list(x.shape[2:])
        if any(size % f for size in sizes):
            following = [-(-size // f) * f for size in sizes]
            raise ValueError(
                f"x must have spatial sizes divisible by {f}, the downsampling factor, got {sizes}; pad it to the next "
                f"sizes that work, {following}, and crop the reconstruction back"
            )
        if self.value_range is None:
            _check_finite("x", x)
            return
        check_range("x", x, *self.value_range)
        self._warn_of_range(x)

    def _warn_of_range(self, x: Images) -> None:
        """Say once if data for [-1, 1] look as if they were in [0, 1]; constant batches prove nothing."""
        if self._warned_of_range or self.value_range != (-1.0, 1.0):
            return
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return
        least, most = (bound.item() for bound in torch.aminmax(x.detach()))
        if 0 <= least < most:
            self._warned_of_range = True
            warnings.warn(
                f"all values of x are in [{least:g}, {most:g}], but this autoencoder's are in [-1, 1]; data in [0, 1] "
                "need 2 * x - 1, or an autoencoder with value_range=(0, 1)",
                stacklevel=5,  # whoever called encode
            )


def _checked_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range must be None or (lowest, highest), got {value_range}")
    return value_range[0], value_range[1]


def _by_channel(name: str, value: float | Sequence[float], channels: int) -> Tensor:
    """`value` as float64 `[channels]`, or `[1]` for one number."""
    values: list[float] = [value] if isinstance(value, int | float) else list(value)
    if not isinstance(value, int | float) and len(values) != channels:
        raise ValueError(f"{name} must be a number or one for each of {channels} latent channels, got {len(values)}")
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _number_or_list(factors: Tensor) -> float | list[float]:
    values = [float(factor) for factor in factors.cpu()]
    return values[0] if len(set(values)) == 1 else values


def _check_finite(name: str, tensor: Tensor) -> None:
    limits = torch.finfo(tensor.dtype)
    check_range(name, tensor, limits.min, limits.max)
