"""The first stage: images to latents of unit size and back (Rombach et al. 2022, arXiv:2112.10752, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from latentdiff._bottleneck import CODEBOOK_OPTIONS, Bottleneck, check_bottleneck
from latentdiff._checks import (
    SPATIAL,
    check_choice,
    check_count,
    check_floating,
    check_rate,
    check_shape,
    working_dtype,
)
from latentdiff._coders import Decoder, Encoder
from latentdiff._distributions import DiagonalGaussian, PointMass, Posterior
from latentdiff._latent_space import LatentSpace
from latentdiff._layers import Conv, conv
from latentdiff._quantized import Quantizer
from latentdiff._quantizer import VectorQuantizer
from latentdiff._tiling import Tiling, check_no_gradient, run_tiled
from latentdiff._typing import Generator, Images, Latents, SpatialDims
from latentdiff._value_range import check_values, checked_range, warn_of_unit_range


@dataclass(frozen=True, slots=True, eq=False)
class AutoencoderOutput:
    """What a pass through an autoencoder gives.

    Attributes:
        reconstruction: `[batch, out_channels, *spatial]`, about in the range of the data, not clamped.
        posterior: Of the latents; with a quantizer, the point before quantisation.
        regularization: `[]`. Bottleneck `"kl"`: nats per sample, summed over the latents, mean over the batch.
            A quantizer: its loss, a mean over all elements. `"none"`: 0.
        indices: With a quantizer: int64 `[batch, *spatial / f]`, or as it says.
    """

    reconstruction: Images
    posterior: Posterior
    regularization: Tensor
    indices: Tensor | None = None


class Autoencoder(LatentSpace):
    """An encoder and a decoder of the published first stages, and one latent space between them.

    The encoder's own latents z are scaled on their way out and back on their way in: everybody else sees
    `(z - shift_factor) * scaling_factor`, of unit size after `calibrate`. The two factors are float64 buffers,
    `latent_scaling` and `latent_shift` in the state dict, and keep that dtype in a half-precision module.

    Between encoder and decoder stands a bottleneck: a prior (`"kl"`), a codebook (`"vq"`), any `Quantizer`, or nothing.

    Inputs of any floating dtype are cast to that of the weights; posteriors are float32 at least.

    Example:
        >>> autoencoder = Autoencoder(base_channels=8, channel_multipliers=(1, 2, 2))
        >>> latents = autoencoder.encode(torch.zeros(1, 3, 16, 24)).sample()
        >>> latents.shape, autoencoder.decode(latents).shape
        (torch.Size([1, 4, 4, 6]), torch.Size([1, 3, 16, 24]))
    """

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
        linear_attention: bool = False,
        conv_resampling: bool = True,
        tanh_output: bool = False,
        bottleneck: Bottleneck | Quantizer = "kl",
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
            linear_attention: Whether attention costs the number of points and not its square: each channel of the keys
                weighs all points once; it has no norm before it and no shortcut.
            conv_resampling: Whether a convolution changes the resolution; without it the encoder averages pairs and the
                decoder repeats points.
            tanh_output: Whether the decoder ends in a tanh, for data in [-1, 1].
            bottleneck: `"kl"`: a Gaussian posterior; `"vq"`: a codebook, built from the arguments below; `"none"`:
                neither. Or a quantizer, such as `FiniteScalarQuantizer` or `ResidualQuantizer`.
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
        super().__init__(latent_channels)
        self.in_channels = in_channels
        self.out_channels: int = in_channels if out_channels is None else out_channels
        self.z_channels: int = latent_channels if z_channels is None else z_channels
        self.base_channels = base_channels
        self.channel_multipliers: tuple[int, ...] = tuple(channel_multipliers)
        self.blocks_per_level = blocks_per_level
        self.attention_levels: tuple[int, ...] = tuple(attention_levels)
        self.middle_attention = middle_attention
        self.linear_attention = linear_attention
        self.conv_resampling = conv_resampling
        self.tanh_output = tanh_output
        self._bottleneck: Bottleneck = "none" if isinstance(bottleneck, Quantizer) else bottleneck
        self.quantizer: Quantizer | None = bottleneck if isinstance(bottleneck, Quantizer) else None
        self.use_quant_conv = use_quant_conv
        self.codebook_size = codebook_size
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.codebook_decay = codebook_decay
        self.restart_below = restart_below
        self.cosine_codes = cosine_codes
        self.spatial_dims: SpatialDims = spatial_dims
        self.dropout = dropout
        self.value_range: tuple[float, float] | None = checked_range(value_range)
        self.gradient_checkpointing = gradient_checkpointing
        self._check_arguments()
        self._build()
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor
        self._warned_of_range = False

    def _check_arguments(self) -> None:
        check_choice("spatial_dims", self.spatial_dims, (1, 2, 3))
        for name in ("in", "out", "latent", "z", "base"):
            check_count(f"{name}_channels", getattr(self, f"{name}_channels"))
        check_count("blocks_per_level", self.blocks_per_level)
        check_rate("dropout", self.dropout)
        levels, multipliers = len(self.channel_multipliers), self.channel_multipliers
        if not levels:
            raise ValueError(f"channel_multipliers must hold one number for each level, got {multipliers}")
        for multiplier in multipliers:
            check_count("channel_multipliers", multiplier)
        if any(not 0 <= level < levels for level in self.attention_levels):
            raise ValueError(f"attention_levels must be in [0, {levels - 1}], got {self.attention_levels}")
        if self.linear_attention and not (self.attention_levels or self.middle_attention):
            raise ValueError("linear_attention must be False without attention, got True")
        if self.tanh_output and self.value_range not in {None, (-1.0, 1.0)}:
            raise ValueError(f"value_range must be (-1, 1) or None with tanh_output, got {self.value_range}")
        if not self.use_quant_conv and self.z_channels != self.latent_channels:
            raise ValueError(
                f"z_channels must be {self.latent_channels}, the latent_channels, without use_quant_conv, "
                f"got {self.z_channels}"
            )
        options = {name: getattr(self, name) for name in CODEBOOK_OPTIONS}
        check_bottleneck(self.bottleneck, options, self.latent_channels)

    def _build(self) -> None:
        """Both coders, the 1x1 convolutions and the codebook."""
        moments = 2 if self._bottleneck == "kl" else 1
        widths = tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)
        self.encoder: Encoder = Encoder(
            in_channels=self.in_channels,
            out_channels=moments * self.z_channels,
            base_channels=self.base_channels,
            widths=widths,
            blocks_per_level=self.blocks_per_level,
            attention_levels=self.attention_levels,
            middle_attention=self.middle_attention,
            linear_attention=self.linear_attention,
            conv_resampling=self.conv_resampling,
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
            linear_attention=self.linear_attention,
            conv_resampling=self.conv_resampling,
            spatial_dims=self.spatial_dims,
            dropout=self.dropout,
            tanh_output=self.tanh_output,
        )
        self.quant_conv: Conv | None = None
        self.post_quant_conv: Conv | None = None
        if self.use_quant_conv:
            dims, z_channels, latent_channels = self.spatial_dims, self.z_channels, self.latent_channels
            self.quant_conv = conv(dims, moments * z_channels, moments * latent_channels, 1)
            self.post_quant_conv = conv(dims, latent_channels, z_channels, 1)
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
    def bottleneck(self) -> Bottleneck | Quantizer:
        """What holds the latents together: its name, or the quantizer that was given."""
        if self._bottleneck == "none" and self.quantizer is not None:
            return self.quantizer
        return self._bottleneck

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

    # Encoding and decoding

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
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            self._calibrate(self._posterior(batch.to(self.last_layer.device)) for batch in batches)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return self

    def encode(self, x: Images, *, tile: Tiling | int | None = None, batch_size: int | None = None) -> Posterior:
        """The posterior of the latents of images.

        Args:
            x: `[batch, in_channels, *spatial]`, floating, in `value_range`; sizes divisible by `downsampling_factor`.
            tile: How to work through images that are too large for memory, without gradients: see `Tiling`, whose
                `size` may stand for it. None works on the whole.
            batch_size: How many images pass through at a time, to save memory in evaluation; None passes all.

        Returns:
            Of latents `[batch, latent_channels, *spatial / f]` of unit size, float32 at least: a `DiagonalGaussian`
            for `"kl"`, else a `PointMass`, which with a quantizer is the point *before* quantisation. Its `kl()` is
            that of the encoder's own moments and does not depend on the scaling.

        Raises:
            ValueError: If shape, size or values do not fit, a gradient is asked of tiles, or `batch_size` is given too.
            TypeError: If `x` is not floating.
        """
        if tile is not None and torch.is_grad_enabled():
            check_no_gradient("x", x)
            with torch.no_grad():
                return self.encode(x, tile=tile, batch_size=batch_size)
        posterior = self._posterior(x, tile, batch_size)
        return posterior.affine(*self._factors(posterior.mean))

    def decode(
        self,
        latents: Latents,
        *,
        quantize: bool = True,
        tile: Tiling | int | None = None,
        batch_size: int | None = None,
    ) -> Images:
        """Images of latents. The mode matters to dropout only: a codebook does not learn here.

        Args:
            latents: `[batch, latent_channels, *spatial]`, of unit size, any spatial size.
            quantize: With a quantizer: whether latents are quantised first, with a gradient that passes through.
            tile: As for `encode`; sizes are those of the images.
            batch_size: As for `encode`.

        Returns:
            `[batch, out_channels, *spatial * f]`, about in `value_range`; see `clamp`.

        Raises:
            ValueError: If the shape does not fit, a value is not finite, or a gradient is asked of tiles.
            TypeError: If `latents` are not floating.
        """
        if tile is not None and torch.is_grad_enabled():
            check_no_gradient("latents", latents)
            with torch.no_grad():
                return self.decode(latents, quantize=quantize, tile=tile, batch_size=batch_size)
        check_floating("latents", latents)
        check_shape("latents", latents, self._axes, channels=self.latent_channels)
        check_values("latents", latents, None)
        z = self._unscale(latents)
        if self.quantizer is not None and quantize:
            z = self.quantizer.quantize(z).latents
        return self._decode(z, tile, batch_size)

    def forward(self, x: Images, generator: Generator = None) -> AutoencoderOutput:
        """Encode and decode: from a sample of the posterior in training mode, from its mode in evaluation mode.

        Args:
            x: `[batch, in_channels, *spatial]`, as for `encode`.
            generator: Where the sample comes from; restarts of dead codes use it if it is a single `torch.Generator`.

        Returns:
            Reconstruction, posterior, regularisation, and with a quantizer the indices. In training mode a codebook
            with a decay has then learnt.

        Raises:
            ValueError: If shape, size or values do not fit.
            TypeError: If `x` is not floating.
        """
        posterior = self.encode(x)
        z = self._unscale(posterior.sample(generator) if self.training else posterior.mode())
        if self.quantizer is None:
            return AutoencoderOutput(self._decode(z), posterior, posterior.kl().mean())
        quantized = self.quantizer.quantize(z)
        if self.training:
            drawn = generator if isinstance(generator, torch.Generator) else None
            self.quantizer.learn(z, quantized.indices, drawn)
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

    def _posterior(self, x: Images, tile: Tiling | int | None = None, batch_size: int | None = None) -> Posterior:
        """The posterior of the encoder's own latents z."""
        self._check_images(x)
        h = self._run(self.encoder, x.to(self.last_layer.dtype), tile, batch_size)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        h = h.to(working_dtype(h.dtype))
        if self._bottleneck == "kl":
            mean, log_variance = h.chunk(2, dim=1)
            return DiagonalGaussian(mean, log_variance)
        return PointMass(h if self.quantizer is None else self.quantizer.bound(h))

    def _decode(self, z: Tensor, tile: Tiling | int | None = None, batch_size: int | None = None) -> Images:
        z = z.to(self.last_layer.dtype)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self._run(self.decoder, z, tile, batch_size)

    def _run(self, coder: Encoder | Decoder, x: Tensor, tile: Tiling | int | None, batch_size: int | None) -> Tensor:
        """`coder` of `x`, in tiles or slices of the batch if there are any."""
        if batch_size is not None:
            check_count("batch_size", batch_size)
            if tile is not None:
                raise ValueError(
                    f"batch_size must be None with tile, which takes one sample at a time, got {batch_size}"
                )
        if tile is None and batch_size is None:  # no split, which would fix the batch of an exported program
            y: Tensor = coder(x, self.gradient_checkpointing)
            return y
        if tile is None:
            made: list[Tensor] = [coder(part, self.gradient_checkpointing) for part in x.split(batch_size or 1)]
            return torch.cat(made)
        tiling = tile if isinstance(tile, Tiling) else Tiling(tile)
        return run_tiled(coder.layers(), x, tiling, upwards=isinstance(coder, Decoder))

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
        check_values("x", x, self.value_range)
        if self.value_range == (-1.0, 1.0) and not self._warned_of_range:
            self._warned_of_range = warn_of_unit_range(x, stacklevel=4)  # whoever called encode
