"""Log SNR between the whole times of a table, and back.

Between two whole times log SNR is linear in time; before the first one sigma / alpha falls linearly to 0 at t = -1, and
towards a last time of pure noise alpha / sigma does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(table: Tensor, t: Tensor) -> Tensor:
    """Log SNR at times in -1 ... T - 1.

    Args:
        table: Log SNR of the whole times, float64 `[T]`, falling; the last may be minus infinity.
        t: float64, any shape.
    """
    low = t.floor().clamp(min=0).to(torch.int64)
    # take, since an index of no axes would be read on the host
    start, end = torch.take(table, low), torch.take(table, (low + 1).clamp(max=len(table) - 1))
    weight = (t - low).clamp(min=0)
    inside = start + torch.where(weight == 0, 0.0, weight * (end - start))
    inside = torch.where(torch.isinf(end) & torch.isfinite(start), start + 2 * torch.log1p(-weight), inside)
    before_first = table[0].nan_to_num(neginf=0.0) - 2 * torch.log(t + 1)
    if len(table) == 1:  # from clean to pure noise in one step: both rules at once
        before_first = before_first + torch.where(torch.isinf(table[0]), 2 * torch.log(-t), 0.0)
    return torch.where(t < 0, before_first, inside)


def invert(table: Tensor, log_snr: Tensor) -> Tensor:
    """The time of a log SNR, in -1 ... T - 1: inverse of `interpolate`.

    Args:
        table: As for `interpolate`.
        log_snr: float64, any shape; below the least one the last time is returned.
    """
    last = len(table) - 1
    low = (torch.searchsorted(-table, -log_snr.contiguous(), right=True) - 1).clamp(0, max(last - 1, 0))
    start, end = torch.take(table, low), torch.take(table, (low + 1).clamp(max=last))
    weight = torch.where(torch.isinf(end), -torch.expm1((log_snr - start) / 2), (log_snr - start) / (end - start))
    before_first = torch.exp((table[0] - log_snr) / 2) - 1
    if last == 0:
        before_first = torch.where(torch.isinf(table[0]), 1 / (1 + torch.exp(log_snr / 2)) - 1, before_first)
    inside = low + weight.nan_to_num(0.0).clamp(0, 1) if last else torch.zeros_like(log_snr)
    return torch.where(log_snr > table[0], before_first, inside)
