"""The flow of mixtures of several values a sample, integrated, against flows in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guided import BATCH, EVENT, SCHEDULES, labelled, noised
from latentdiff import NoiseSchedule
from latentdiff.testing import GaussianDenoiser, MixtureDenoiser

every_schedule = pytest.mark.parametrize("frame", SCHEDULES)
WAYS = [(999.0, -1.0), (20.0, 700.0)]


def spread(x: Tensor) -> float:
    """What an error is measured by: the size of the values."""
    return x.abs().max().item()


@every_schedule
@pytest.mark.parametrize(("t", "next_t"), WAYS)
def test_one_component_flows_like_normal_data(frame: str, t: float, next_t: float) -> None:
    mean, std = torch.randn(2, *EVENT, dtype=torch.float64)
    std = std.abs() + 0.2
    schedule = SCHEDULES[frame]
    one = MixtureDenoiser(weights=torch.ones(1), means=mean[None], stds=std[None], schedule=schedule)
    x = noised(one, t)
    want = GaussianDenoiser(mean=mean, std=std, schedule=schedule).flow_map(x, t, next_t)
    torch.testing.assert_close(one.flow_map(x, t, next_t), want, rtol=0, atol=1e-10 * spread(want))


@every_schedule
@pytest.mark.parametrize(("t", "next_t"), WAYS)
def test_means_on_a_line_flow_along_it_like_one_value_and_across_it_like_normal_data(
    frame: str, t: float, next_t: float
) -> None:
    """With round components a rotation parts the one from the other, and both are closed forms."""
    schedule = SCHEDULES[frame]
    centres = torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64)
    weights, stds = torch.tensor([0.5, 0.3, 0.2]), torch.full((3,), 0.3, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    data = MixtureDenoiser(weights=weights, means=centres[:, None] * turn[:, 0], stds=stds, schedule=schedule)
    along = MixtureDenoiser(weights=weights, means=centres, stds=stds, schedule=schedule)
    across = GaussianDenoiser(std=0.3, schedule=schedule)
    x = schedule.add_noise(data.draw((BATCH, 5)), torch.randn(BATCH, 5, dtype=torch.float64), t)
    turned = x @ turn
    parts = along.flow_map(turned[:, :1], t, next_t), across.flow_map(turned[:, 1:], t, next_t)
    want = torch.cat(parts, 1) @ turn.T
    torch.testing.assert_close(data.flow_map(x, t, next_t), want, rtol=0, atol=1e-10 * spread(want))


@pytest.mark.parametrize("frame", ["variance_exploding", "flow"])
def test_there_and_back_is_where_it_began(frame: str) -> None:
    data = labelled(SCHEDULES[frame])
    x = data.draw((BATCH, *EVENT), torch.Generator().manual_seed(0))
    there = data.flow_map(x, -1.0, 999.0)
    torch.testing.assert_close(data.flow_map(there, 999.0, -1.0), x, rtol=0, atol=1e-9)
    times, next_times = torch.tensor([-1.0, 0.0, 30.0, 999.0]), torch.tensor([500.0, -1.0, 999.0, 2.0])
    x = noised(data, times)
    moved = data.flow_map(x, times, next_times)
    for i in range(BATCH):  # each sample on its own way
        alone = data.flow_map(x[i : i + 1], times[i].item(), next_times[i].item())
        torch.testing.assert_close(moved[i : i + 1], alone, rtol=1e-9, atol=1e-9)


def test_points_of_several_values_are_refused() -> None:
    data = MixtureDenoiser(
        weights=torch.ones(2), means=torch.randn(2, 3), stds=torch.zeros(2), schedule=NoiseSchedule.cosine()
    )
    with pytest.raises(NotImplementedError, match=r"the flow of points is known for one value a sample, got \[4, 3\]"):
        data.flow_map(torch.randn(4, 3), 500.0, 0.0)
