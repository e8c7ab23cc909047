"""A group norm of a map that is never whole: statistics of its parts come first, then the normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._checks import working_dtype
from latentdiff._convolution import is_chosen_here
from latentdiff._moments import ChannelMoments
from latentdiff._normalization import group_moments


class NormReachedError(Exception):
    """A pass has come to a norm whose statistics are still being gathered; `x` is its input."""

    def __init__(self, norm: GatheredNorm, x: Tensor) -> None:
        """Keep both."""
        super().__init__()
        self.norm = norm
        self.x = x


class GatheredNorm(nn.Module):
    """A group norm whose statistics are first gathered, then given."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Start without statistics; weight and bias are those of `norm`."""
        super().__init__()
        self.norm = norm
        self.moments: ChannelMoments | None = None
        self.is_gathered = False

    def gather(self, x: Tensor) -> None:
        """Add the values of `x` `[1, channels, *spatial]`."""
        part = None
        if x.ndim == 4 and x.stride(1) == 1 and is_chosen_here(x):  # without another order in memory
            part = group_moments(x, self.norm.num_groups, self.norm.eps)
        if part is None:
            groups = x.to(working_dtype(x.dtype)).reshape(self.norm.num_groups, -1)
            mean = groups.mean(1)
            scatter = (groups - mean[:, None]).square_().sum(1)
            count = torch.tensor(float(groups.shape[1]), dtype=torch.float64, device=x.device)
            part = ChannelMoments(count, mean.double(), scatter.double())
        self.moments = part if self.moments is None else self.moments.merge(part)

    def silu(self, x: Tensor) -> Tensor:
        """The SiLU of what `forward` returns."""
        return F.silu(self(x), inplace=not torch.is_grad_enabled())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `[1, channels, *spatial]`, once the statistics are there.

        Raises:
            NormReachedError: If they are not.
        """
        if not self.is_gathered or self.moments is None:
            raise NormReachedError(self, x)
        norm, dtype = self.norm, working_dtype(x.dtype)
        repeats = norm.num_channels // norm.num_groups
        mean, variance = (m.to(dtype).repeat_interleave(repeats) for m in (self.moments.mean, self.moments.variance))
        # A batch norm in evaluation mode is the affine map of given statistics.
        return F.batch_norm(x.to(dtype), mean, variance, *_affine(norm, dtype), eps=norm.eps).to(x.dtype)


def _affine(norm: nn.GroupNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return norm.weight.to(dtype), norm.bias.to(dtype)
