"""Labels to a vector each."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_count, check_shape
from latentdiff._condition._condition import Condition
from latentdiff._condition._encoder import ConditionEncoder, Routing, check_integers


class ClassEncoder(ConditionEncoder):
    """A learned vector for each class, and one for none.

    The last row of the table `embedding` `[num_classes + 1, dim]` is the null; with `null_kind="zeros"` the table has
    a row for each class only, as in models that were published without a null.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        routing: Routing = "context",
        null_kind: Literal["learned", "zeros"] = "learned",
        dropout: float = 0.1,
    ) -> None:
        """Build the table.

        Args:
            num_classes: Labels are 0 ... num_classes - 1.
            dim: Size of a vector.
            routing: `"context"`: one token for cross-attention; `"embedding"`: added to the time embedding.
            null_kind: `"learned"`: a row of the table stands for no label; `"zeros"`: a vector of zeros does.
            dropout: Share of the samples whose label training drops, in [0, 1].

        Raises:
            ValueError: If a number is out of range, or `routing` or `null_kind` is unknown.
        """
        super().__init__(dropout=dropout)
        check_count("num_classes", num_classes)
        check_count("dim", dim)
        check_choice("routing", routing, get_args(Routing))
        check_choice("null_kind", null_kind, ("learned", "zeros"))
        self.num_classes = num_classes
        self.dim = dim
        self.routing: Routing = routing
        self.null_kind: Literal["learned", "zeros"] = null_kind
        self.embedding: nn.Embedding = nn.Embedding(num_classes + (null_kind == "learned"), dim)

    def forward(self, y: object) -> Condition:
        """Look labels up.

        Labels on an accelerator are waited for, once a call, so that a wrong one raises here; labels on the CPU cost
        no wait, and are moved.

        Args:
            y: `[batch]`, integer, in 0 ... num_classes - 1, or -1 for none.

        Returns:
            A condition with context `[batch, 1, dim]` or embedding `[batch, dim]`.

        Raises:
            TypeError: If `y` is no tensor, or does not hold integers.
            ValueError: If it has another rank, or a label is out of range.
        """
        y = check_integers("y", y, "labels")
        check_shape("y", y, "batch")
        if not torch.compiler.is_compiling():
            low, high = torch.stack(torch.aminmax(y)).tolist()
            if low < -1 or high >= self.num_classes:
                raise ValueError(
                    f"y must be in [0, {self.num_classes - 1}], or -1 for none, got labels in [{low}, {high}]"
                )
        labels = y.to(self.embedding.weight.device, torch.int64)
        if self.training:
            self.null_trained.logical_or_((labels < 0).any())
        return self._condition(labels)

    def null(self, batch: int) -> Condition:
        """The vector for none, `batch` times: context `[batch, 1, dim]` or embedding `[batch, dim]`."""
        return self._condition(torch.full((batch,), -1, device=self.embedding.weight.device))

    def _condition(self, labels: Tensor) -> Condition:
        """The vectors of `labels` `[batch]`, of which -1 is none."""
        vectors: Tensor
        if self.null_kind == "learned":
            vectors = self.embedding(torch.where(labels < 0, self.num_classes, labels))
        else:
            vectors = self.embedding(labels.clamp(min=0)).masked_fill((labels < 0)[:, None], 0.0)
        return Condition(context=vectors[:, None]) if self.routing == "context" else Condition(embedding=vectors)
