from __future__ import annotations

import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from latentdiff import BrownianNoise, CounterNoise, Denoised, Denoiser, NoiseSchedule, Sampler, solvers
from latentdiff.guidance import ClassifierFree
from latentdiff.solvers import SOLVERS, SolverName, Spacing
from latentdiff.testing import GaussianDenoiser

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
PATHS = [name for name in SOLVERS if name != "lcm"]
"""Solvers that follow the mean of the data; LCM wants a consistency model."""
DETERMINISTIC = [name for name in SOLVERS if not SOLVERS[name]().stochastic]


def normal_data(schedule: NoiseSchedule, mean: float = 0.3) -> GaussianDenoiser:
    return GaussianDenoiser(mean=mean, std=0.5, schedule=schedule)


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


@pytest.mark.parametrize("solver", PATHS)
@every_schedule
def test_samples_tend_to_the_data(solver: SolverName, schedule: NoiseSchedule) -> None:
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sample = Sampler(solver, 200).sample(normal_data(schedule), noise, generator=torch.Generator().manual_seed(2))
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
    data, zero, one = normal_data(schedule, mean=0.0), torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1).double()
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


@every_solver
def test_a_walk_can_be_watched_and_stopped(solver: SolverName) -> None:
    data, noise = normal_data(NoiseSchedule.cosine()), torch.randn(3, 2, 5)
    sampler, seen = Sampler(solver, 7), []
    end = sampler.sample(data, noise, generator=CounterNoise(3), callback=seen.append)
    steps = list(sampler.iterate(data, noise, generator=CounterNoise(3)))
    assert [s.index for s in steps] == list(range(7)) == [s.index for s in seen]
    assert [s.t for s in steps] == sampler.timesteps(data.schedule)[:-1].tolist()
    assert [s.next_t for s in steps] == sampler.timesteps(data.schedule)[1:].tolist()
    assert torch.equal(steps[-1].x, end)
    assert all(torch.equal(a.x, b.x) for a, b in zip(steps, seen, strict=True))


@every_solver
@given(stop=st.integers(0, 5), seed=st.integers(0, 2**32))
def test_a_walk_can_be_resumed_from_any_step(solver: SolverName, stop: int, seed: int) -> None:
    data, sampler = normal_data(NoiseSchedule.cosine()), Sampler(solver, 7)
    noise = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(seed))
    steps = list(sampler.iterate(data, noise, generator=CounterNoise(seed)))
    rest = list(sampler.iterate(data, noise, generator=CounterNoise(seed), resume=steps[stop]))
    assert [step.index for step in rest] == list(range(stop + 1, 7))
    assert all(torch.equal(a.x, b.x) for a, b in zip(rest, steps[stop + 1 :], strict=True))


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_the_round_trip_through_noise_has_the_order_of_the_solver(solver: SolverName) -> None:
    """Inverted and sampled again, between log SNR 4 and -4: the error falls as fast as the solver's own, or faster."""
    data = normal_data(NoiseSchedule.linear())
    sample, errors = torch.randn(6, 4, dtype=torch.float64), []
    for steps in (100, 200):
        times = data.schedule.timestep(torch.linspace(-4, 4, steps + 1, dtype=torch.float64)).tolist()
        sampler = Sampler(solver, times=times)
        again = sampler.sample(data, sampler.invert(data, sample))
        errors.append((again - sample).square().mean().sqrt().item())
    if solver == "dpm_adaptive":
        assert errors[-1] < 0.02  # it keeps to its tolerance, whatever the number of steps
        return
    # the first steps of multistep methods are of lower order in both directions
    assert math.log2(errors[0] / errors[1]) > min(SOLVERS[solver]().order, 2) - 0.15


@pytest.mark.parametrize("solver", DETERMINISTIC)
@every_schedule
def test_inversion_finds_the_noise_of_a_sample(solver: SolverName, schedule: NoiseSchedule) -> None:
    """From the clean end to T - 1; the standardised value of normal data is its noise."""
    data, z = normal_data(schedule), torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(3, 3)
    point = schedule.point(schedule.num_timesteps - 1.0)
    scale = point.sigma if schedule.frame == "variance_exploding" else 1.0
    want = (point.alpha * 0.3 + ((point.alpha * 0.5) ** 2 + point.sigma**2) ** 0.5 * z) / scale
    # a polynomial of the noise level cannot be continued over the last step of `trailing`, a factor of 300 in it
    spacing: Spacing | None = "logsnr" if solver == "lms" else None
    got = Sampler(solver, 200, spacing).invert(data, 0.3 + 0.5 * z)
    # errors are relative to the noise; first order in 1 / 200, and one first-order step from the clean end
    torch.testing.assert_close(got, want, rtol=0.06, atol=0.06)


def test_a_walk_that_draws_noise_cannot_be_inverted() -> None:
    with pytest.raises(ValueError, match="solver must be deterministic to be inverted"):
        Sampler("ddpm", 5).invert(normal_data(NoiseSchedule.linear()), torch.randn(2, 3))
    Sampler(solvers.EulerAncestral(eta=0.0), 5).invert(normal_data(NoiseSchedule.linear()), torch.randn(2, 3))


@every_solver
@given(first=st.integers(0, 6), count=st.integers(1, 4))
def test_a_sample_does_not_depend_on_its_batch(solver: SolverName, first: int, count: int) -> None:
    data, sampler, shape = normal_data(NoiseSchedule.cosine()), Sampler(solver, 6), (10, 2, 3)
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
    data, sampler = normal_data(NoiseSchedule.linear()), Sampler(solver, 9)
    noise = torch.randn(6, 4, 3, dtype=torch.float64)
    want = [sampler.sample(data, noise * i, generator=CounterNoise(i)) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: sampler.sample(data, noise * i, generator=CounterNoise(i)), range(8)))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@given(strength=st.floats(0, 1))
def test_strength_is_the_share_of_steps_made(strength: float) -> None:
    data, calls = normal_data(NoiseSchedule.linear()), []

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
    data = normal_data(schedule)
    got = Sampler(solver, 5).sample(data, noise, known=known, mask=mask, generator=torch.Generator().manual_seed(0))
    kept = ~mask.expand_as(got)
    assert torch.equal(got[kept], known[kept])
    assert not torch.isclose(got[~kept], known[~kept]).any()


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m"])
def test_the_kept_part_has_its_marginal_at_every_step(solver: SolverName) -> None:
    """Where the mask is 0, x at each time is alpha * known + sigma * noise."""
    data, known = normal_data(NoiseSchedule.linear()), torch.full((3000, 2), 0.8, dtype=torch.float64)
    mask = torch.tensor([1, 0])
    walk = Sampler(solver, 6).iterate(data, torch.randn_like(known), known=known, mask=mask, generator=CounterNoise(1))
    for step in walk:
        alpha, sigma = data.schedule.point(step.next_t)[1:]
        kept = step.x[:, 1]
        assert kept.mean().item() == pytest.approx(0.8 * alpha, abs=5 * sigma / 3000**0.5 + 1e-12)
        assert kept.std().item() == pytest.approx(sigma, abs=5 * sigma / 6000**0.5 + 1e-12)


def test_resampling_makes_both_parts_of_an_image_agree() -> None:
    """Two values that are always equal, one of them known: RePaint's repetitions draw the other one near to it."""
    schedule = NoiseSchedule.linear()

    class Equal:
        """x_0 = (a, a) with a ~ N(0, 1): the mean of both noisy values tells a."""

        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor | float, condition: object = None) -> Denoised:
            alpha, sigma = schedule.point(float(t))[1:]
            sample = (alpha * x_t.sum(1, keepdim=True) / (2 * alpha**2 + sigma**2)).expand_as(x_t)
            return Denoised(sample, (x_t - alpha * sample) / sigma)

    known = torch.randn(2000, 2, dtype=torch.float64)
    known = known[:, :1].expand(-1, 2).clone()
    errors = []
    for resamples in (1, 10):
        got = Sampler("ddpm", 80).sample(
            Equal(), torch.randn_like(known), known=known, mask=torch.tensor([1, 0]), resamples=resamples
        )
        assert torch.equal(got[:, 1], known[:, 1])
        errors.append((got[:, 0] - known[:, 0]).square().mean().sqrt().item())
    assert errors[1] < 0.65 * errors[0]  # what remains is the last step, which sees noise once more


@pytest.mark.parametrize("resamples", [1, 3])
def test_resampling_makes_each_step_but_the_last_as_often_as_asked(resamples: int) -> None:
    data, known = normal_data(NoiseSchedule.linear()), torch.zeros(2, 3)
    walk = Sampler("dpmpp_2m", 4).iterate(data, torch.randn(2, 3), known=known, mask=known, resamples=resamples)
    assert [step.index for step in walk] == [0] * resamples + [1] * resamples + [2] * resamples + [3]


@every_solver
def test_half_precision_noise_is_walked_in_float32(solver: SolverName) -> None:
    dtypes = set()
    data = normal_data(NoiseSchedule.linear())

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
        ({"resamples": 3}, "resamples must be at least 1, and 1 without known, got 3"),
        ({"generator": [torch.Generator()]}, "generator must have one entry for each of 2 samples"),
    ],
)
def test_bad_inputs_of_a_walk_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sampler("ddpm", 3).sample(normal_data(NoiseSchedule.linear()), torch.randn(2, 3), **arguments)  # type: ignore[arg-type]


@every_schedule
def test_times_and_scales_are_numbers_whatever_the_default_device(schedule: NoiseSchedule) -> None:
    fresh = NoiseSchedule.from_config(schedule.config)
    with torch.device("meta"):
        times = Sampler("dpmpp_2m", 5, "karras").timesteps(fresh)
        assert fresh.point(3.5).sigma > 0
        assert fresh.alphas_cumprod.device.type == "cpu"
    assert times.equal(Sampler("dpmpp_2m", 5, "karras").timesteps(schedule))


class Allocations(TorchDispatchMode):
    """How many tensors of a size are alive at most."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.peak = size, 0
        self.alive: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.size:
            self.alive = [one for one in (*self.alive, weakref.ref(result)) if one() is not None]
            tensors = (one() for one in self.alive)
            self.peak = max(self.peak, len({one.data_ptr() for one in tensors if one is not None}))
        return result


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dpm_adaptive"])
def test_a_walk_keeps_no_more_than_its_history_and_two_latents(solver: SolverName) -> None:
    """Without the estimates, which the denoiser here has made before: x before and after, and a draw of noise or the
    change of a second estimate. (Two draws and their sum for `dpmpp_sde`; `unipc` remembers where its steps began.)
    """
    known = Denoised(torch.randn(2, 3, 5), torch.randn(2, 3, 5))

    class Ready:
        schedule = NoiseSchedule.linear()

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor | float, condition: object = None) -> Denoised:
            return known

    method = SOLVERS[solver]()
    noise, allocations = torch.randn(2, 3, 5), Allocations(30)
    with allocations:
        Sampler(solver, 8).sample(Ready(), noise, generator=torch.Generator().manual_seed(0))
    two_calls = solver in ("heun", "edm", "dpm_2", "dpm_2_ancestral", "dpmpp_2s", "dpmpp_2s_ancestral", "plms")
    extra = 4 if solver == "dpmpp_sde" else int(method.stochastic) + 2 * two_calls + 2 * (solver == "unipc")
    assert allocations.peak <= 2 + extra


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dpm_adaptive"])
@every_schedule
def test_no_step_looks_at_a_value(solver: SolverName, schedule: NoiseSchedule) -> None:
    """Tensors of the meta device have no values: whoever asks for one, as a wait for a device would, fails."""

    class Network:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor | float, condition: object = None) -> Denoised:
            assert isinstance(t, float)
            return Denoised(x_t + 1, x_t - 1)

    noise, mask = torch.empty(2, 3, 4, device="meta"), torch.ones(3, 1, device="meta")
    guided = ClassifierFree(Network(), 3.0, rescale=0.5, interval=(0.2, 0.9))
    sampler = Sampler(solver, 6)
    assert sampler.sample(guided, noise).device.type == "meta"
    assert sampler.sample(Network(), noise, known=noise, mask=mask, resamples=2).device.type == "meta"
    assert sampler.sample(Network(), noise, start=noise, strength=0.5).device.type == "meta"


@pytest.mark.cuda
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dpm_adaptive"])
def test_a_walk_never_waits_for_the_device(solver: SolverName) -> None:
    data, noise = normal_data(NoiseSchedule.linear()), torch.randn(2, 3, 4, device="cuda")
    network = Denoiser(lambda x, t, condition: x * 0.5, data.schedule)
    Sampler(solver, 3).sample(network, noise)  # tables travel once
    torch.cuda.set_sync_debug_mode("error")
    try:
        Sampler(solver, 20).sample(network, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_does_not_depend_on_the_device(solver: SolverName) -> None:
    data = normal_data(NoiseSchedule.cosine())
    noise = CounterNoise(5).normal((3, 2, 5), step=0, device=torch.device("cpu"), dtype=torch.float64)
    want = Sampler(solver, 8).sample(data, noise, generator=CounterNoise(5))
    got = Sampler(solver, 8).sample(data, noise.cuda(), generator=CounterNoise(5))
    torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", PATHS)
@pytest.mark.parametrize("generator", [CounterNoise(3), BrownianNoise(3)])
@every_schedule
def test_repeated_steps_still_draw_from_the_data(
    solver: SolverName, generator: CounterNoise, schedule: NoiseSchedule
) -> None:
    """Nothing is known, all is generated: RePaint's repetitions then change nothing but the noise.

    What a solver remembers must not meet an x that was noised again, and each repetition draws its own noise. (The
    bounds around 0.5 are what ten steps of first order leave; a history of another x ends between 0.9 and a million.)
    """
    data, noise = normal_data(schedule), torch.randn(1500, 2, dtype=torch.float64)
    mask, sampler = torch.ones(1, 2), Sampler(solver, 10)
    drawn = sampler.sample(data, noise, known=torch.zeros_like(noise), mask=mask, generator=generator, resamples=10)
    assert 0.3 < drawn.std().item() < 0.75
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("spacing", SPACING_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.from_betas([0.9]),
        NoiseSchedule.flow(1),
        NoiseSchedule.linear(2).zero_terminal_snr(),
        NoiseSchedule.linear(7),
        NoiseSchedule.edm(num_timesteps=2),
    ],
    ids=repr,
)
def test_grids_of_more_steps_than_times_fall_too(spacing: Spacing, steps: int, schedule: NoiseSchedule) -> None:
    times = Sampler("dpmpp_2m", steps, spacing).timesteps(schedule)
    assert (times.diff() < 0).all()
    assert times[0] <= schedule.num_timesteps - 1
    for solver in ("ddpm", "dpmpp_2m", "heun"):
        drawn = Sampler(solver, steps, spacing).sample(normal_data(schedule), torch.randn(4, 3))  # type: ignore[arg-type]
        assert drawn.isfinite().all()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Sampler("ddim", 2.5), TypeError, "steps must be an int, got 2.5"),
        (lambda: Sampler("ddim", True), TypeError, "steps must be an int, got True"),
        (lambda: Sampler("ddim", times="987"), TypeError, "times must be numbers"),
        (lambda: Sampler("ddim", times=[5, math.nan]), ValueError, "times must fall strictly"),
        (lambda: walk(denoiser=lambda x, t, c: x), TypeError, r"denoiser must have a schedule, .* wrap a network"),
        (lambda: walk(denoiser=None), TypeError, "denoiser must have a schedule, got NoneType"),
        (lambda: walk(known=[1.0], mask=torch.ones(3)), TypeError, "known must be a torch.Tensor"),
        (lambda: walk(known=torch.zeros(2, 3), mask=0.5), TypeError, "mask must be a torch.Tensor, got float"),
        (lambda: walk(known=torch.zeros(2, 3), mask=torch.ones(4)), ValueError, r"mask must broadcast against noise"),
    ],
)
def test_what_is_no_number_tensor_or_denoiser_is_refused(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def walk(**options: Any) -> torch.Tensor:
    options = {"denoiser": normal_data(NoiseSchedule.linear()), "noise": torch.zeros(2, 3)} | options
    return Sampler("ddim", 3).sample(**options)
