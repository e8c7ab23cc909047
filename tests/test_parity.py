"""The same numbers as the field's references, on the same times and the same noise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references
from latentdiff import CounterNoise, NoiseSchedule, Sampler, draw_noise, solvers
from latentdiff.solvers import Spacing
from peers import PAIRS, PEERS, SCHEDULES, SPACINGS, against_diffusers, against_reference, mixture


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=8)
@given(steps=st.integers(2, 24), spacing=st.sampled_from(SPACINGS), to_clean=st.booleans())
def test_solvers_equal_their_references_on_every_grid(
    name: str, schedule: NoiseSchedule, steps: int, spacing: Spacing, to_clean: bool
) -> None:
    """1e-10 is 1e5 roundings of a walk of 24 steps."""
    if (ends := against_reference(name, schedule, steps, spacing, to_clean)) is None:
        return
    got, want, lost = ends
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10 * lost * max(1.0, want.abs().max().item()))


def test_the_large_variance_is_that_of_ddpm() -> None:
    schedule = SCHEDULES["linear"]
    data, seed, x = mixture(schedule), CounterNoise(2), torch.randn(4, 3, dtype=torch.float64)
    times = Sampler("ddpm", 12).timesteps(schedule).tolist()
    levels = [schedule.point(t).noise_level for t in times]

    def denoise(y: Tensor, level: float) -> Tensor:
        t = schedule.timestep(-2 * references.log(level))
        return data(y * schedule.alpha(t), t).sample

    def noise(step: int, draw: int) -> Tensor:
        return draw_noise(x.shape, seed, step=(step + 1) * 256, dtype=torch.float64)

    want = references.ddpm(denoise, x / schedule.alpha(times[0]), levels, noise, large=True)
    got = Sampler(solvers.DDPM(variance="fixed_large"), times=times).sample(data, x, generator=seed)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_plms_has_the_published_weights_on_even_times() -> None:
    """Liu et al. 2022, eq. 12, with the pseudo improved Euler step of latent diffusion at the start."""
    schedule = SCHEDULES["linear"]
    data, x = mixture(schedule), torch.randn(4, 3, dtype=torch.float64)
    times = Sampler("plms", 10, "trailing").timesteps(schedule).tolist()
    got = Sampler("plms", times=times).sample(data, x)
    published = {
        1: (1.0,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }
    past: list[Tensor] = []
    for t, to in pairwise(times):
        now, then = schedule.point(t), schedule.point(to)

        def transfer(noise: Tensor, x: Tensor = x, now: Any = now, then: Any = then) -> Tensor:
            return then.alpha * (x - now.sigma * noise) / now.alpha + then.sigma * noise

        past = [data(x, t).noise, *past][:4]
        noise = sum(w * e for w, e in zip(published[len(past)], past, strict=True))
        if len(past) == 1:
            noise = (past[0] + data(transfer(past[0]), to).noise) / 2
        x = transfer(torch.as_tensor(noise))
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)


# Side by side with diffusers, as it comes


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # the peer's, with numpy 2
@pytest.mark.parametrize("name", PEERS)
def test_the_same_numbers_as_diffusers(name: str) -> None:
    """Same betas, same whole times, one network, the same draws."""
    got, want = against_diffusers(name)
    tolerance = PEERS[name][3]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
