"""Boxes and classes as tokens through a transformer of one's own."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_count, check_floating, check_order, check_range, check_shape
from latentdiff._condition._condition import Condition
from latentdiff._condition._encoder import ConditionEncoder, check_integers, check_mask, named_parts
from latentdiff._condition._token_transformer import TokenTransformer


class LayoutEncoder(ConditionEncoder):
    """Objects in boxes to tokens for cross-attention.

    An object is three tokens: its class, and its box's first and last corner, each a cell of a grid of
    `sections` x `sections` points, numbered row by row. Missing objects are filled up with the last id of the
    vocabulary; two tokens for the corners of the crop that the image is may follow. Classes and cells share their ids,
    as in the paper, and are told apart by their places.

    The published model (layout2img-openimages256) is `num_classes=8191`, `vocabulary_size=8192`, `sections=90`,
    `dim=512`, `depth=16`, `max_objects=30`, `encode_crop=True`, `mask_padding=False`, `vocabulary_head=True`: 92
    tokens. Its keys are found as those of `TextEncoder`.

    References:
        Rombach et al. 2022, arXiv:2112.10752, section 4.3.1; Jahn et al. 2021, arXiv:2105.06458, section 3 (tokens).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: int,
        max_objects: int = 30,
        sections: int = 90,
        vocabulary_size: int | None = None,
        encode_crop: bool = False,
        num_heads: int = 8,
        head_dim: int = 64,
        mask_padding: bool = True,
        null_kind: Literal["empty", "learned"] = "empty",
        vocabulary_head: bool = False,
        dropout: float = 0.1,
    ) -> None:
        """Build the transformer.

        Args:
            num_classes: Classes are 0 ... num_classes - 1.
            dim: Size of the context's tokens.
            depth: Number of transformer blocks.
            max_objects: Most objects.
            sections: Points of the grid on each axis, 2 or more.
            vocabulary_size: Number of token ids; None is as many as are needed.
            encode_crop: Whether two tokens say which part of a larger image this is.
            num_heads: Heads of each block.
            head_dim: Channels of a head; `num_heads * head_dim` may differ from `dim`.
            mask_padding: Whether attention, here and in the denoising network, leaves missing objects out. The
                published model looks at them.
            null_kind: What stands for no layout: one without objects, or a learned token.
            vocabulary_head: Whether there is an unused linear layer to scores of all ids, as in published checkpoints.
            dropout: Share of the samples whose layout training drops, in [0, 1].

        Raises:
            ValueError: If a number is out of range, or `null_kind` is unknown.
        """
        super().__init__(dropout=dropout)
        check_choice("null_kind", null_kind, ("empty", "learned"))
        for name, value in (("num_classes", num_classes), ("max_objects", max_objects)):
            check_count(name, value)
        check_count("sections", sections, least=2)
        needed = max(num_classes, sections**2) + 1
        if vocabulary_size is not None and vocabulary_size < needed:
            raise ValueError(
                f"vocabulary_size must be at least {needed}, so that none has an id, got {vocabulary_size}"
            )
        self.num_classes = num_classes
        self.dim = dim
        self.depth = depth
        self.max_objects = max_objects
        self.sections = sections
        self.vocabulary_size: int = needed if vocabulary_size is None else vocabulary_size
        self.encode_crop = encode_crop
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.mask_padding = mask_padding
        self.null_kind: Literal["empty", "learned"] = null_kind
        self.vocabulary_head = vocabulary_head
        self.transformer: TokenTransformer = TokenTransformer(
            vocabulary_size=self.vocabulary_size,
            max_length=self.length,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            head_dim=head_dim,
            vocabulary_head=vocabulary_head,
        )
        self.null_token: nn.Parameter | None = None
        if null_kind == "learned":
            self.null_token = nn.Parameter(0.02 * torch.randn(dim))

    @property
    def length(self) -> int:
        """Number of tokens."""
        return 3 * self.max_objects + 2 * self.encode_crop

    def forward(self, y: object) -> Condition:
        """Encode layouts.

        Args:
            y: A mapping with `boxes` `[batch, objects, 4]`, floats in [0, 1]: left, top, right, bottom; `classes`
                `[batch, objects]`, integer; and, where wanted, `mask` `[batch, objects]`, bool, True where there is an
                object, and with `encode_crop` a `crop` `[batch, 4]`, likewise a box (the whole image if left out). Or
                token ids `[batch, length]`, integer, as `tokenize` makes them.

        Returns:
            A condition with context `[batch, length, dim]`, and with `mask_padding` its mask.

        Raises:
            TypeError: If `y` or a part of it is something else.
            ValueError: If a shape does not fit, or a value is out of range.
        """
        ids = check_integers("y", y, "token ids") if isinstance(y, Tensor) else self._tokenize(y)
        check_shape("y", ids, "batch length", length=self.length)
        ids = ids.to(self.transformer.token_embedding.weight.device)
        mask = ids != self.vocabulary_size - 1 if self.mask_padding else None
        return Condition(context=self.transformer(ids, mask), context_mask=mask)

    def null(self, batch: int) -> Condition:
        """No layout, `batch` times: context `[batch, length, dim]`, or `[batch, 1, dim]` where it is learned."""
        if self.null_token is not None:
            return Condition(context=self.null_token.expand(batch, 1, -1))
        device = self.transformer.token_embedding.weight.device
        boxes = torch.zeros(1, 1, 4, device=device)
        nobody = torch.zeros(1, 1, dtype=torch.bool, device=device)
        one: Condition = self(self.tokenize(boxes, nobody.long(), nobody))
        mask = one.context_mask
        context = cast("Tensor", one.context)
        return Condition(
            context=context.expand(batch, -1, -1), context_mask=None if mask is None else mask.expand(batch, -1)
        )

    def tokenize(
        self, boxes: Tensor, classes: Tensor, mask: Tensor | None = None, crop: Tensor | None = None
    ) -> Tensor:
        """Token ids of layouts.

        Args:
            boxes: `[batch, objects, 4]`, floats in [0, 1]: left, top, right, bottom.
            classes: `[batch, objects]`, integer.
            mask: `[batch, objects]`, bool, True where there is an object; None where all are.
            crop: `[batch, 4]`, the box of the image in a larger one; None is the whole.

        Returns:
            `[batch, length]`, int64: class, first corner, last corner of each object, then the crop's two corners.

        Raises:
            TypeError: If a part has another dtype.
            ValueError: If a shape does not fit, a value is out of range, a box ends before it begins, or a crop is
                given and has no place.
        """
        check_floating("boxes", boxes)
        check_shape("boxes", boxes, "batch objects corners", corners=4)
        batch, objects, _ = boxes.shape
        if objects > self.max_objects:
            raise ValueError(f"boxes must hold at most {self.max_objects} objects (max_objects), got {objects}")
        check_range("boxes", boxes, 0.0, 1.0)
        classes = check_integers("classes", classes, "classes")
        check_shape("classes", classes, "batch objects", batch=batch, objects=objects)
        tokens = torch.cat([classes.to(boxes.device, torch.int64)[..., None], self._corners(boxes)], dim=-1)
        none = self.vocabulary_size - 1
        if mask is None:
            check_range("classes", classes, 0, self.num_classes - 1)
        else:
            mask = check_mask(mask, classes, "an object")
            check_range("classes", classes.where(mask.to(classes.device), 0), 0, self.num_classes - 1)
            tokens = tokens.masked_fill(~mask.to(tokens.device)[..., None], none)
            boxes = boxes.where(mask.to(boxes.device)[..., None], 0.0)
        _check_corners("boxes", boxes)
        tokens = F.pad(rearrange(tokens, "b n three -> b (n three)"), (0, 3 * (self.max_objects - objects)), value=none)
        return tokens if not self.encode_crop and crop is None else torch.cat([tokens, self._crop(crop, boxes)], dim=1)

    def _crop(self, crop: Tensor | None, boxes: Tensor) -> Tensor:
        """The two tokens `[batch, 2]` of the crop."""
        if not self.encode_crop:
            raise ValueError("crop must be None for an encoder without encode_crop")
        if crop is None:
            crop = boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(boxes.shape[0], -1)
        check_floating("crop", crop)
        check_shape("crop", crop, "batch corners", batch=boxes.shape[0], corners=4)
        check_range("crop", crop, 0.0, 1.0)
        _check_corners("crop", crop)
        return self._corners(crop.to(boxes.device))

    def _corners(self, boxes: Tensor) -> Tensor:
        """The cells of two corners: `[..., 4]` to `[..., 2]`."""
        x, y = (boxes.double() * (self.sections - 1)).round().long().unflatten(-1, (2, 2)).unbind(-1)
        cells: Tensor = y * self.sections + x
        return cells

    def _tokenize(self, y: object) -> Tensor:
        """Token ids of the mapping `y`."""
        parts = named_parts(y, {"boxes", "classes"}, {"mask", "crop"})
        for name, part in parts.items():
            if not isinstance(part, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(part).__name__}")
        return self.tokenize(**cast("dict[str, Tensor]", parts))


def _check_corners(name: str, boxes: Tensor) -> None:
    """Require left <= right and top <= bottom of `boxes` `[..., 4]`; looked at as in `check_range`."""
    for i, (low, high) in enumerate((("left", "right"), ("top", "bottom"))):
        check_order(f"{low} of {name}", boxes[..., i], f"{high} of {name}", boxes[..., i + 2])
