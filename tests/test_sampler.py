from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import get_args

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff import CounterNoise, Denoised, Denoiser, NoiseSchedule, Sampler, solvers
from latentdiff.solvers import SOLVERS, SolverName, Spacing
from oracles import NormalData

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "zero terminal SNR": NoiseSchedule.scaled_linear().zero_terminal_snr(),
    "flow": NoiseSchedule.flow(),
    "edm": NoiseSchedule.edm(),
}
SPACING_NAMES: tuple[Spacing, ...] = get_args(Spacing)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_solver = pytest.mark.parametrize("solver", SOLVERS)
deterministic = [name for name, solver in SOLVERS.items() if not solver.stochastic]


@pytest.mark.parametrize("spacing", SPACING_NAMES)
@every_schedule
@given(steps=st.integers(1, 1000))
def test_times_are_as_many_as_asked_and_fall_to_the_clean_end(
    spacing: Spacing, schedule: NoiseSchedule, steps: int
) -> None:
    times = Sampler("ddim", steps, spacing).timesteps(schedule)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (times.diff() < 0).all()
    assert times[0] <= schedule.num_timesteps - 1
    assert times[-1] == -1
    if spacing != "leading":
        assert times[0] == schedule.num_timesteps - 1


def test_integer_spacings_are_those_of_the_literature() -> None:
    schedule = NoiseSchedule.linear()
    assert Sampler("ddim", 4, "leading").timesteps(schedule).tolist() == [750, 500, 250, 0, -1]
    assert Sampler("ddim", 4, "trailing").timesteps(schedule).tolist() == [999, 749, 499, 249, -1]
    assert Sampler("ddim", 4, "linspace").timesteps(schedule).tolist() == [999, 666, 333, 0, -1]


def test_karras_spacing_is_even_in_the_seventh_root_of_the_noise_level() -> None:
    schedule = NoiseSchedule.edm()
    times = Sampler("euler", 18, "karras").timesteps(schedule)[:-1]
    i = torch.arange(18, dtype=torch.float64) / 17
    levels = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(schedule.sigma(times), levels, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", deterministic)
@pytest.mark.parametrize("schedule", [SCHEDULES["linear"], SCHEDULES["flow"], SCHEDULES["edm"]])
def test_the_order_of_a_solver_is_what_it_claims(name: SolverName, schedule: NoiseSchedule) -> None:
    """Slope of log error against log steps on normal data, in log SNR from 4 to -4 (no jump to sigma = 0)."""
    data, x = NormalData(schedule), torch.randn(7, 3, dtype=torch.float64)
    errors = []
    for steps in (64, 128, 256):
        log_snr = torch.linspace(-4, 4, steps + 1, dtype=torch.float64)
        times = schedule.timestep(log_snr)
        walk = Sampler(name, times=times.tolist()).iterate(data, x)
        first = next(walk).x.new_tensor(0)  # the walk starts from noise scaled by its frame
        start = x * schedule.sigma(times[:1]) if schedule.frame == "variance_exploding" else x
        for step in walk:
            first = step.x
        exact = data.flow(start, times[0].item(), times[-1].item())
        errors.append((first - exact).square().mean().sqrt().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(SOLVERS[name].order, abs=0.15)


@every_solver
@every_schedule
def test_samples_tend_to_the_data(solver: SolverName, schedule: NoiseSchedule) -> None:
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sample = Sampler(solver, 200).sample(NormalData(schedule), noise, generator=torch.Generator().manual_seed(2))
    # standard errors .0046 and .0032 of 12,000 values; the rest is bias: first order in 1 / 200, signal left at T - 1
    assert sample.mean().item() == pytest.approx(0.3, abs=0.03)
    assert sample.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@given(steps=st.integers(1, 40))
def test_ddim_has_the_variance_of_its_own_recurrence(eta: float, steps: int) -> None:
    schedule = NoiseSchedule.linear()
    sampler = Sampler(solvers.DDIM(eta=eta), steps, "trailing")
    bar = [schedule.alpha(t) ** 2 for t in sampler.timesteps(schedule).tolist()]
    want = 1.0  # of x at the start; centred data of variance .25
    for a, b in pairwise(bar):
        spread = a * 0.25 + 1 - a
        fresh = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        slope = b**0.5 * a**0.5 * 0.25 / spread + (1 - b - fresh) ** 0.5 * (1 - a) ** 0.5 / spread
        want = slope**2 * want + fresh
    # the map is linear: unit noise through each draw alone gives its share of the variance
    data, zero, one = NormalData(schedule, mean=0.0), torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1).double()
    got = sampler.sample(data, one, generator=_Pulse(-1)).square()
    for index in range(steps):
        got = got + sampler.sample(data, zero, generator=_Pulse(index)).square()
    assert got.item() == pytest.approx(want, rel=1e-10)


class _Pulse:
    """Noise that is 1 in one step and 0 in all others."""

    def __init__(self, index: int) -> None:
        self.index = index

    def normal(self, shape: object, *, step: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        is_now = step // 256 - 1 == self.index
        return torch.full(tuple(shape), float(is_now), device=device, dtype=dtype)  # type: ignore[call-overload,no-any-return]


PEERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True),
    "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(lower_order_final=False, final_sigmas_type="zero"),
    "euler": lambda: diffusers.EulerDiscreteScheduler(),
    "heun": lambda: diffusers.HeunDiscreteScheduler(),
}


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # the peer's, with numpy 2
@pytest.mark.parametrize("name", PEERS)
def test_parity_with_diffusers_on_the_same_times(name: SolverName) -> None:
    """Same betas, same whole times, one made-up network: the same latents at the end."""
    steps = 20
    peer = PEERS[name]()
    times = [950 - 50 * i for i in range(steps)]
    schedule = NoiseSchedule.linear()

    def network(x: torch.Tensor, t: torch.Tensor | float, condition: object = None) -> torch.Tensor:
        share = torch.as_tensor(t, dtype=torch.float64).reshape(-1)[0] / 1000
        return torch.tanh(x * (1 - share)) * 0.3 + 0.9 * x * share

    x = torch.randn(2, 3, 5, dtype=torch.float64)
    peer.alphas_cumprod = schedule.alphas_cumprod  # in float64; its noise levels are rounded to float32 all the same
    peer.set_timesteps(steps)
    peer_times = [float(t) for t in dict.fromkeys(peer.timesteps.tolist())]
    want = x * peer.init_noise_sigma
    for t in peer.timesteps:
        output = network(peer.scale_model_input(want, t), t)
        want = peer.step(output, t, want).prev_sample
    if name != "ddim":
        times = peer_times
    start = x * float(peer.init_noise_sigma)
    if name in ("euler", "heun"):  # they step in x / alpha from sigma alone
        start = start * schedule.alpha(times[0])
    got = Sampler(name, times=[*times, -1.0]).sample(Denoiser(network, schedule), start)
    torch.testing.assert_close(got, want.double(), rtol=1e-5, atol=1e-5)


@every_solver
def test_a_walk_can_be_watched_and_stopped(solver: SolverName) -> None:
    data, noise = NormalData(NoiseSchedule.cosine()), torch.randn(3, 2, 5)
    sampler, seen = Sampler(solver, 7), []
    end = sampler.sample(data, noise, generator=CounterNoise(3), callback=seen.append)
    steps = list(sampler.iterate(data, noise, generator=CounterNoise(3)))
    assert [s.index for s in steps] == list(range(7)) == [s.index for s in seen]
    assert [s.t for s in steps] == sampler.timesteps(data.schedule)[:-1].tolist()
    assert [s.next_t for s in steps] == sampler.timesteps(data.schedule)[1:].tolist()
    assert torch.equal(steps[-1].x, end)
    assert all(torch.equal(a.x, b.x) for a, b in zip(steps, seen, strict=True))


@every_solver
@given(first=st.integers(0, 6), count=st.integers(1, 4))
def test_a_sample_does_not_depend_on_its_batch(solver: SolverName, first: int, count: int) -> None:
    data, sampler, shape = NormalData(NoiseSchedule.cosine()), Sampler(solver, 6), (10, 2, 3)
    noise = CounterNoise(11).normal(shape, step=0, device=torch.device("cpu"), dtype=torch.float64)
    whole = sampler.sample(data, noise, generator=CounterNoise(11))
    part = sampler.sample(data, noise[first : first + count], generator=CounterNoise(11, first))
    assert torch.equal(part, whole[first : first + count])
    generators = [torch.Generator().manual_seed(i) for i in range(10)]
    each = [torch.Generator().manual_seed(i) for i in range(first, min(first + count, 10))]
    whole = sampler.sample(data, noise, generator=generators)
    assert torch.equal(sampler.sample(data, noise[first : first + count], generator=each), whole[first : first + count])


@every_solver
def test_a_sampler_is_shared_by_threads(solver: SolverName) -> None:
    data, sampler = NormalData(NoiseSchedule.linear()), Sampler(solver, 9)
    noise = torch.randn(6, 4, 3, dtype=torch.float64)
    want = [sampler.sample(data, noise * i, generator=CounterNoise(i)) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: sampler.sample(data, noise * i, generator=CounterNoise(i)), range(8)))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@given(strength=st.floats(0, 1))
def test_strength_is_the_share_of_steps_made(strength: float) -> None:
    data, calls = NormalData(NoiseSchedule.linear()), []

    class Counting:
        schedule = data.schedule

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor | float, condition: object = None) -> Denoised:
            calls.append(t)
            return data(x_t, t)

    start, noise, sampler = torch.rand(2, 3), torch.randn(2, 3), Sampler("euler", 10)
    got = sampler.sample(Counting(), noise, start=start, strength=strength)
    assert len(calls) == round(10 * strength)
    if not calls:
        assert torch.equal(got, start)
    if strength == 1:
        assert torch.equal(got, sampler.sample(data, noise))


@every_solver
@every_schedule
def test_known_pixels_are_kept_exactly(solver: SolverName, schedule: NoiseSchedule) -> None:
    noise, known = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    mask = torch.rand(2, 1, 4, 5) > 0.5
    data = NormalData(schedule)
    got = Sampler(solver, 5).sample(data, noise, known=known, mask=mask, generator=torch.Generator().manual_seed(0))
    kept = ~mask.expand_as(got)
    assert torch.equal(got[kept], known[kept])
    assert not torch.isclose(got[~kept], known[~kept]).any()


@every_solver
def test_half_precision_noise_is_walked_in_float32(solver: SolverName) -> None:
    dtypes = set()
    data = NormalData(NoiseSchedule.linear())

    class Watching:
        schedule = data.schedule

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor | float, condition: object = None) -> Denoised:
            dtypes.add(x_t.dtype)
            return data(x_t, t)

    assert Sampler(solver, 3).sample(Watching(), torch.randn(2, 3).bfloat16()).dtype == torch.bfloat16
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Sampler("best"), "solver must be one of 'ddim'"),  # type: ignore[arg-type]
        (lambda: Sampler("ddim", 0), "steps must be at least 1, got 0"),
        (lambda: Sampler("ddim", 5, "even"), "spacing must be one of"),  # type: ignore[arg-type]
        (lambda: Sampler("ddim", times=[3, 5]), "times must fall strictly"),
        (lambda: Sampler("ddim", times=[5, 3], spacing="karras"), "times must come without a spacing"),
        (lambda: Sampler("ddim", times=[1000, 3]).timesteps(NoiseSchedule.linear()), r"times must be in \[-1, 999\]"),
        (lambda: solvers.DDIM(eta=1.5), r"eta must be in \[0, 1\]"),
        (lambda: solvers.DDPM(variance="learned"), "variance must be one of"),  # type: ignore[arg-type]
    ],
)
def test_bad_samplers_are_refused(make: object, match: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"start": torch.zeros(2, 4)}, r"start must have noise's shape \[2, 3\], got \[2, 4\]"),
        ({"strength": 0.5}, "strength must come with start"),
        ({"strength": 1.5}, r"strength must be in \[0, 1\]"),
        ({"known": torch.zeros(2, 3)}, "known and mask must come together"),
        ({"generator": [torch.Generator()]}, "generator must have one entry for each of 2 samples"),
    ],
)
def test_bad_inputs_of_a_walk_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sampler("ddpm", 3).sample(NormalData(NoiseSchedule.linear()), torch.randn(2, 3), **arguments)  # type: ignore[arg-type]


@every_schedule
def test_times_and_scales_are_numbers_whatever_the_default_device(schedule: NoiseSchedule) -> None:
    fresh = NoiseSchedule.from_config(schedule.config)
    with torch.device("meta"):
        times = Sampler("dpmpp_2m", 5, "karras").timesteps(fresh)
        assert fresh.point(3.5).sigma > 0
        assert fresh.alphas_cumprod.device.type == "cpu"
    assert times.equal(Sampler("dpmpp_2m", 5, "karras").timesteps(schedule))
