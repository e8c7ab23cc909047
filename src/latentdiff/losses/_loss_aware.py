"""Times drawn by the size of their recent losses."""

from __future__ import annotations

import torch
from torch import Tensor

from latentdiff._checks import check_positive
from latentdiff._distributed import gather
from latentdiff._module import Module
from latentdiff._schedule import NoiseSchedule
from latentdiff.losses._output import DiffusionLossOutput
from latentdiff.losses._times import DrawnTimes, TimeSampling, draw_by_importance, part_of


class LossAwareTimes(Module, TimeSampling):
    r"""Times by the size of recent losses, \(\sqrt{E[L_t^2]}\) (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 18).

    Of all probabilities these give the estimate of \(\frac1T \sum_t L_t\) the least variance; it is unbiased with any.
    It remembers the last losses of each of T even parts of time (whole times of a table) and draws evenly until all
    have enough of them. What it remembers is its state, so a checkpoint with it resumes as if nothing had happened.

    After each step of training, on every process, `times.update(output)`.
    """

    losses: Tensor
    """Recent losses, float64 `[T, history]`."""

    counts: Tensor
    """How many losses were seen, int64 `[T]`."""

    def __init__(self, *, schedule: NoiseSchedule, history: int = 10, uniform_share: float = 0.001) -> None:
        """Remember nothing yet.

        Args:
            schedule: What times mean.
            history: How many losses are remembered of each time, at least 1.
            uniform_share: Share of the draws that are made evenly, in (0, 1], so that no time is ever forgotten.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        check_positive("history", history)
        if not 0 < uniform_share <= 1:
            raise ValueError(f"uniform_share must be in (0, 1], got {uniform_share}")
        self.schedule = schedule
        self.history = history
        self.uniform_share = uniform_share
        self.register_buffer("losses", torch.zeros(schedule.num_timesteps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(schedule.num_timesteps, dtype=torch.int64))

    @property
    def probabilities(self) -> Tensor:
        """Of each time, float64 `[T]`; sum to 1."""
        size = self.losses.double().square().mean(1).sqrt()
        total = size.sum()
        even = torch.full_like(size, 1 / len(size))
        share = size / torch.where(total > 0, total, 1.0)
        mixed = (1 - self.uniform_share) * share + self.uniform_share * even
        return torch.where((self.counts >= self.history).all() & (total > 0), mixed, even)

    def draw(self, schedule: NoiseSchedule, u: Tensor) -> DrawnTimes:
        """Times at the quantiles `u` from clean to noisy, and 1 / (T p), `[batch]`.

        Raises:
            ValueError: If the schedule has another number of timesteps or another frame.
        """
        if (schedule.num_timesteps, schedule.frame) != (self.schedule.num_timesteps, self.schedule.frame):
            raise ValueError(f"schedule must be that of these times, {self.schedule}, got {schedule}")
        return draw_by_importance(schedule, self.probabilities.to(u.device), u)

    @torch.no_grad()
    def update(self, output: DiffusionLossOutput) -> None:
        """Remember the losses of a batch, those of all processes: they must have batches of the same size.

        Args:
            output: What the loss returned.

        Raises:
            ValueError: If a loss is not finite.
        """
        device = self.losses.device
        t = torch.cat(gather(output.t.to(torch.float64))).to(device)
        losses = torch.cat(gather(output.per_sample.detach().to(torch.float64))).to(device)
        if not losses.isfinite().all():
            raise ValueError("losses must be finite, got one that is not")
        part, order = part_of(self.schedule, t).sort(stable=True)
        rank = torch.arange(len(part), device=device) - torch.searchsorted(part, part)  # among those of the same part
        self.losses[part, (self.counts[part] + rank) % self.history] = losses[order].to(self.losses.dtype)
        self.counts.index_add_(0, part, torch.ones_like(part))
