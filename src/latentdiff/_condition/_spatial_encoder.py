"""Maps: semantic labels, low-resolution images, masked images and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Final, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._checks import (
    SPATIAL,
    check_choice,
    check_count,
    check_floating,
    check_positive,
    check_range,
    check_shape,
    like,
)
from latentdiff._condition._condition import Condition
from latentdiff._condition._encoder import ConditionEncoder, named_parts
from latentdiff._layers import CONVOLUTIONS, Conv, timestep_embedding
from latentdiff._noise import draw_noise, draw_uniform
from latentdiff._typing import SpatialDims

Resize: TypeAlias = Literal["linear", "nearest", "area", "cubic"]
"""How a map changes its size; `"cubic"` for images only."""

LINEAR: Final[dict[int, str]] = {1: "linear", 2: "bilinear", 3: "trilinear"}


class SpatialEncoder(ConditionEncoder):
    """A map to channels beside the latents, where it must have their size.

    The map is resized in `num_stages` steps by `factor`, then, with `out_channels`, each point is mapped to that many
    channels. What the map is, is up to the user:

    - semantic labels, `in_channels` classes. The published models (semantic_synthesis256 and 512) are
      `in_channels=182`, `out_channels=3`, `num_stages=2`; their key `channel_mapper.weight` is `to_channels.weight`;
    - a low-resolution image, with `max_noise_level` noised in training by a level that the network is told, so that it
      may later be given images that are not quite like those of training (bsr_sr: `in_channels=3`, nothing else);
    - a masked image, in pixels or as latents, with `has_mask` and its mask as the last channel (inpainting_big:
      `in_channels=3`, `has_mask=True`, `mask_range=(-1.0, 1.0)`, given the latents of the masked image).

    References:
        Rombach et al. 2022, arXiv:2112.10752, sections 4.3.2, 4.4 and 4.5; Ho et al. 2022, arXiv:2106.15282, section
        4.2 (noise on conditions).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        num_stages: int = 0,
        factor: float = 0.5,
        resize: Resize = "linear",
        bias: bool = False,
        has_mask: bool = False,
        mask_range: tuple[float, float] = (0.0, 1.0),
        max_noise_level: float = 0.0,
        embedding_dim: int | None = None,
        spatial_dims: SpatialDims = 2,
        null_kind: Literal["zeros", "learned"] = "zeros",
        dropout: float = 0.1,
    ) -> None:
        """Build the mapping.

        Args:
            in_channels: Channels of the map, or number of its classes.
            out_channels: Channels that each point is mapped to; None leaves them as they are.
            num_stages: How many times the map is resized.
            factor: Size after a stage over the size before it.
            resize: How; none of the ways averages before it takes points (no antialiasing).
            bias: Whether the mapping of the channels has a bias.
            has_mask: Whether a mask comes along, resized by nearest points, and goes last.
            mask_range: What the network sees where the mask is 0 and where it is 1; masks are given as 0 and 1 all the
                same.
            max_noise_level: Standard deviation of the strongest noise of training, in [0, 1]; 0 is none.
            embedding_dim: Size of the embedding of the noise level, which the network must take as `embedding_dim`
                too; None without noise.
            spatial_dims: 1, 2 or 3.
            null_kind: What stands for no map: zeros, or a learned vector at every point. The mask of no map is 1:
                everything is to be generated.
            dropout: Share of the samples whose map training drops, in [0, 1].

        Raises:
            ValueError: If a number is out of range, a choice is unknown, or two arguments do not fit together.
        """
        super().__init__(dropout=dropout)
        check_count("in_channels", in_channels)
        if out_channels is not None:
            check_count("out_channels", out_channels)
        check_count("num_stages", num_stages, least=0)
        check_positive("factor", factor)
        check_choice("resize", resize, get_args(Resize))
        check_choice("spatial_dims", spatial_dims, (1, 2, 3))
        check_choice("null_kind", null_kind, ("zeros", "learned"))
        if resize == "cubic" and spatial_dims != 2:
            raise ValueError(f"resize must not be 'cubic', which is for images, for spatial_dims={spatial_dims}")
        if bias and out_channels is None:
            raise ValueError("bias must be False without out_channels, got True")
        if not 0 <= max_noise_level <= 1:
            raise ValueError(f"max_noise_level must be in [0, 1], got {max_noise_level}")
        if (max_noise_level > 0) != (embedding_dim is not None):
            raise ValueError(
                "embedding_dim must be given with max_noise_level > 0 and only then, "
                f"got {embedding_dim} and {max_noise_level}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_stages = num_stages
        self.factor = factor
        self.resize: Resize = resize
        self.bias = bias
        self.has_mask = has_mask
        self.mask_range: tuple[float, float] = _pair(mask_range)
        self.max_noise_level = max_noise_level
        self.embedding_dim = embedding_dim
        self.spatial_dims: SpatialDims = spatial_dims
        self.null_kind: Literal["zeros", "learned"] = null_kind
        self.to_channels: Conv | None = None
        if out_channels is not None:
            self.to_channels = CONVOLUTIONS[spatial_dims](in_channels, out_channels, 1, bias=bias)
        self.null_point: nn.Parameter | None = None
        if null_kind == "learned":
            self.null_point = nn.Parameter(torch.zeros(out_channels or in_channels))

    @property
    def concat_channels(self) -> int:
        """Channels beside the latents, mask included: what the network must be built with."""
        return (self.out_channels or self.in_channels) + self.has_mask

    def forward(self, y: object) -> Condition:
        """Encode maps.

        Args:
            y: A map: floats `[batch, in_channels, *spatial]`, or labels `[batch, *spatial]`, integer, in 0 ...
                in_channels - 1, or -1 for unlabelled points. Or a mapping with such an `image`; with `has_mask` its
                `mask` `[batch, 1, *any]`, 1 where to generate; and, with `max_noise_level` and where wanted, a `level`
                `[batch]` or a number in [0, 1] with the `noise` of the image's shape (drawn from torch's global state
                if left out).

        Returns:
            A condition with concat `[batch, concat_channels, *resized]`, and with `embedding_dim` an embedding of the
            level `[batch, embedding_dim]`; without a level it is 0 and the image clean.

        Raises:
            TypeError: If `y` or a part of it is something else.
            ValueError: If a shape does not fit, or a value is out of range.
        """
        parts = self._parts(y)
        x = self._image(parts["image"])
        embedding: Tensor | None = None
        if self.embedding_dim is not None:
            level = self._level(parts.get("level", 0.0), x)
            embedding = timestep_embedding(1000.0 * level, self.embedding_dim)
            if "level" in parts:
                x = self._noisy(x, level, parts.get("noise"))
        size = list(x.shape[2:])
        for _ in range(self.num_stages):
            if min(x.shape[2:]) * self.factor < 1:
                raise ValueError(
                    f"image must keep a point on each axis through num_stages={self.num_stages} by factor="
                    f"{self.factor:g}, got size {size}"
                )
            mode = {"linear": LINEAR[self.spatial_dims], "cubic": "bicubic"}.get(self.resize, self.resize)
            x = F.interpolate(x, scale_factor=self.factor, mode=mode)
        if self.to_channels is not None:
            x = self.to_channels(x.to(self.to_channels.weight.dtype))
        if self.has_mask:
            x = torch.cat([x, self._mask(parts["mask"], x)], dim=1)
        return Condition(concat=x, embedding=embedding)

    def null(self, batch: int) -> Condition:
        """No map, `batch` times: concat `[batch, concat_channels, 1, ...]`, for any size."""
        device = self.null_trained.device
        point = torch.zeros(self.out_channels or self.in_channels, device=device)
        if self.null_point is not None:
            point = self.null_point
        if self.has_mask:
            point = torch.cat([point, point.new_full((1,), self.mask_range[1])])
        concat = point.reshape(1, -1, *(1,) * self.spatial_dims).expand(batch, *(-1,) * (self.spatial_dims + 1))
        embedding = None
        if self.embedding_dim is not None:
            embedding = torch.zeros(batch, self.embedding_dim, device=device)
        return Condition(concat=concat, embedding=embedding)

    def for_training(self, y: object, generator: torch.Generator | None = None) -> Condition:
        """What a training step conditions on: `y` noised, each sample to a level of its own in [0, max_noise_level).

        A `level` that `y` brings is kept.

        Args:
            y: What `forward` takes.
            generator: Where levels, noise and drop-out come from.

        Returns:
            The condition, dropped at the rate `dropout`.
        """
        parts = self._parts(y)
        if self.max_noise_level > 0 and "level" not in parts:
            image = self._image(parts["image"])
            level = self.max_noise_level * draw_uniform(len(image), generator, step=4, device=image.device)
            noise = draw_noise(tuple(image.shape), generator, step=5, device=image.device, dtype=image.dtype)
            parts |= {"level": level.to(torch.float32), "noise": noise}
        return super().for_training(parts, generator)

    def _parts(self, y: object) -> dict[str, object]:
        """The map and what comes along, by name."""
        if isinstance(y, Tensor):
            y = {"image": y}
        required = {"image", "mask"} if self.has_mask else {"image"}
        return named_parts(y, required, {"level", "noise"} if self.max_noise_level > 0 else frozenset())

    def _image(self, image: object) -> Tensor:
        """A map `[batch, in_channels, *spatial]` of floats, on the encoder's device."""
        axes = SPATIAL[self.spatial_dims]
        if not isinstance(image, Tensor) or image.is_floating_point():
            if not isinstance(image, Tensor):
                raise TypeError(f"image must be a torch.Tensor, got {type(image).__name__}")
            check_shape("image", image, f"batch in_channels {axes}", in_channels=self.in_channels)
            return image.to(self.null_trained.device)
        check_shape("image", image, f"batch {axes}")
        check_range("image", image, -1, self.in_channels - 1)
        labels = image.to(self.null_trained.device)
        classes = torch.arange(self.in_channels, device=labels.device).reshape(-1, *(1,) * self.spatial_dims)
        return (labels[:, None] == classes).to(torch.get_default_dtype())

    def _level(self, level: object, x: Tensor) -> Tensor:
        """The noise level of each sample of `x`, `[batch]`."""
        if isinstance(level, bool) or not isinstance(level, Tensor | Real):
            raise TypeError(f"level must be a number or a tensor, got {type(level).__name__}")
        levels = torch.as_tensor(level, dtype=torch.float32, device=x.device)
        if levels.ndim:
            check_shape("level", levels, "batch", batch=x.shape[0])
        check_range("level", levels, 0.0, 1.0)
        return levels.expand(x.shape[0])

    def _noisy(self, x: Tensor, level: Tensor, noise: object) -> Tensor:
        r"""\(\sqrt{1 - s^2}\, x + s\, \epsilon\), so that level \(s = 0\) is the image itself."""
        if noise is None:
            noise = torch.randn_like(x)
        if not isinstance(noise, Tensor) or noise.shape != x.shape:
            raise ValueError(f"noise must have the shape of the image, {list(x.shape)}")
        return like((1 - level**2).sqrt(), x) * x + like(level, x) * noise.to(x)

    def _mask(self, mask: object, x: Tensor) -> Tensor:
        """The mask at the size of `x`, in its range, `[batch, 1, *spatial]`."""
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            mask = mask.to(x.dtype)
        axes = SPATIAL[self.spatial_dims]
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
        check_floating("mask", mask)
        check_shape("mask", mask, f"batch channels {axes}", batch=x.shape[0], channels=1)
        check_range("mask", mask, 0.0, 1.0)
        low, high = self.mask_range
        return low + (high - low) * F.interpolate(mask.to(x), size=tuple(x.shape[2:]), mode="nearest")


def _pair(numbers: object) -> tuple[float, float]:
    """Two numbers, as a tuple."""
    if not isinstance(numbers, Sequence) or len(numbers) != 2:
        raise ValueError(f"mask_range must be what 0 and 1 of a mask become, two numbers, got {numbers!r}")
    return (numbers[0], numbers[1])
