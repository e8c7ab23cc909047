"""Exponential moving average of weights."""

from __future__ import annotations

from latentdiff.training._average import Average, M


class EMA(Average[M]):
    r"""Exponential moving average of a module's weights, \(\bar w \leftarrow d\,\bar w + (1 - d)\,w\).

    In its first steps the decay is \(\min(d, (1 + n) / (10 + n))\), n updates having been made, so that the random
    start is soon forgotten; the decay itself is left as it was given. Buffers are copied. Weights go by their names.
    Those without gradient (`requires_grad_(False)`, such as a frozen autoencoder's) are not copied: both modules have
    the same ones.

    Attributes:
        module: The averaged copy: in evaluation mode, without gradients.
        decay: d, in [0, 1).
        updates: Number of updates made.
    """

    def __init__(self, module: M, decay: float = 0.999) -> None:
        """Start at the module's present weights.

        Args:
            module: What is trained, on the device where it is trained.
            decay: d, in [0, 1).

        Raises:
            ValueError: If `decay` is out of range.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        super().__init__(module)
        self.decay = decay

    def decay_of(self, updates: int) -> float:
        """The decay of the update that has `updates` others before it."""
        return min(self.decay, (1 + updates) / (10 + updates))
