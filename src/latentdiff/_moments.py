"""Mean and variance of a stream, one pass, any chunking."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._distributed import gather


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMoments:
    r"""Number, mean and scatter of values by channel, in float64; those of two parts merge to those of the whole.

    With \(\delta = \bar b - \bar a\): \(\bar{ab} = \bar a + \delta\, n_b / n\) and
    \(M_{ab} = M_a + M_b + \delta^2 n_a n_b / n\) (Chan, Golub and LeVeque 1979, eq. 2.1), which loses no digits where
    sums of squares would.

    Attributes:
        count: Values seen in each channel, `[]`.
        mean: Their mean, `[channels]`.
        scatter: Sum of their squared distances from it, `[channels]`.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor) -> ChannelMoments:
        """Moments of random values, given the mean and the variance of each: the law of total variance.

        Args:
            mean: `[batch, channels, *spatial]`.
            variance: Same shape; 0 for values that are known.
        """
        means = mean.detach().movedim(1, 0).flatten(1).double()
        variances = variance.detach().movedim(1, 0).flatten(1).double()
        center = means.mean(1)
        scatter = (means - center[:, None]).square().sum(1) + variances.sum(1)
        return cls(torch.tensor(float(means.shape[1]), dtype=torch.float64, device=means.device), center, scatter)

    @property
    def variance(self) -> Tensor:
        """Mean squared distance from the mean, `[channels]`."""
        return self.scatter / self.count

    def merge(self, other: ChannelMoments) -> ChannelMoments:
        """Moments of both parts together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter + delta.square() * (self.count * other.count / count)
        return ChannelMoments(count, mean, scatter)

    def over_processes(self) -> ChannelMoments:
        """Moments of the parts of all processes, merged in the order of their ranks."""
        first, *rest = (
            ChannelMoments(count[0], mean, scatter)
            for count, mean, scatter in gather(torch.stack([self.count.expand_as(self.mean), self.mean, self.scatter]))
        )
        for other in rest:
            first = first.merge(other)
        return first
