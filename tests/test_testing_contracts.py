"""Contract suites: what the library has passes them, and each promise that is broken is named."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import latentdiff as ld
from downstream_sample import Halved, Plain, ScalarEncoder
from latentdiff import Condition, Denoised, NoiseSchedule, Point
from latentdiff.solvers import SOLVERS, Evaluation, Solver, SolverName, Stepped
from latentdiff.testing import (
    GaussianDenoiser,
    check_condition_encoder,
    check_denoiser,
    check_schedule,
    check_solver,
)
from models import small_model

# Solvers


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_keeps_its_promises(name: SolverName) -> None:
    check_solver(name)


@pytest.mark.parametrize("solver", [Plain(), ld.solvers.DDIM(eta=0.5), ld.solvers.DDPM(variance="fixed_large")])
def test_solvers_of_ones_own_and_with_options_keep_them_too(solver: Solver) -> None:
    check_solver(solver)


@dataclass(frozen=True, kw_only=True)
class Broken(Plain):
    """DDIM with a fault."""

    fault: str = ""
    memory: dict[str, Tensor] = field(default_factory=dict)

    def step(self, denoise: Evaluation, x: Tensor, now: Point, to: Point, state: object) -> Stepped:
        denoised = denoise(x, now)
        end = to.alpha * denoised.sample + to.sigma * denoised.noise
        match self.fault:
            case "last step":
                end = end * (to.noise_level / to.sigma if to.sigma else math.nan)
            case "pure noise":
                end = end * (now.half_log_snr / (now.half_log_snr + 1))
            case "in place":
                end = x.copy_(end)
            case "estimate in place":
                end = denoised.sample.mul_(to.alpha).add_(denoised.noise, alpha=to.sigma)
            case "history":
                end = torch.lerp(end, self.memory.get("last", end), 0.01)
                self.memory["last"] = end
            case "batch":
                end = end - end.mean(0) * 1e-3
            case "dtype":
                end = end.double()
            case "shape":
                end = end[:, :1]
            case "secret noise":
                end = end + to.sigma * 1e-3 * denoise.noise(x)
            case "order":
                end = torch.lerp(x, end, 0.9)
        return Stepped(end, denoised)


@dataclass(frozen=True, kw_only=True)
class Silent(Plain):
    """Says that it draws noise and does not."""

    weak_order: ClassVar[int | None] = 1

    @property
    def stochastic(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Unstated(Solver):
    """Says nothing of its order."""

    def step(self, denoise: Evaluation, x: Tensor, now: Point, to: Point, state: object) -> Stepped:
        return Plain().step(denoise, x, now, to, state)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("last step", r"1 steps, from t = 999 to -1: x must be finite"),
        ("pure noise", "zero terminal SNR, .*: x must be finite"),
        ("in place", "the noise given must not be written to"),
        ("estimate in place", "what the denoiser answered must not be written to"),
        ("history", "the same noise must give the same walk"),
        ("batch", "a sample must not depend on its batch"),
        ("dtype", "dtype must stay torch.float32, got torch.float64"),
        ("shape", r"shape must be \[5, 2, 3\], got \[5, 1, 3\]"),
        ("secret noise", "must say that it is stochastic: it draws noise"),
        ("order", r"must have order 1 \+- 0.4"),
    ],
)
def test_a_broken_solver_is_told_what_it_breaks(fault: str, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_solver(Broken(fault=fault))


def test_solvers_must_be_true_to_what_they_say() -> None:
    with pytest.raises(AssertionError, match="says that it is stochastic but draws no noise"):
        check_solver(Silent())
    with pytest.raises(AssertionError, match=r"Unstated\(\) must state order"):
        check_solver(Unstated())
    check_solver(Broken(fault="none"), order=False)


# Schedules: tests/test_schedule.py checks those of the library


@dataclass(frozen=True, repr=False)
class Odd(NoiseSchedule):
    """A schedule with a fault."""

    fault: str = ""

    @property
    def config(self) -> dict[str, ld._typing.JSON]:
        fault: dict[str, ld._typing.JSON] = {} if self.fault == "config" else {"fault": self.fault}
        return super().config | fault

    @property
    def alphas_cumprod(self) -> Tensor:
        if self.fault == "shared table":
            known: Tensor = self.__dict__.setdefault("_known", super().alphas_cumprod)
            return known
        return super().alphas_cumprod.to(torch.float32 if self.fault == "float32" else torch.float64)

    @property
    def betas(self) -> Tensor:
        return super().betas * (1.001 if self.fault == "betas" else 1)

    def _timestep(self, log_snr: Tensor) -> Tensor:
        return super()._timestep(log_snr).round() if self.fault == "rounded" else super()._timestep(log_snr)

    def _from_log_snr(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super()._from_log_snr(log_snr)
        scale = 1.1 if self.fault == "rule" else 1
        return alpha * scale, sigma * scale * (0.999 if self.fault == "ratio" else 1)

    def _log_snr(self, t: Tensor) -> Tensor:
        wave = 0.5 * torch.sin(2 * math.pi * t) if self.fault == "wave" else 0
        return super()._log_snr(t) + wave

    def _check_time(self, t: Tensor) -> Tensor:
        return t.to(torch.float64).clamp(-1, 999) if self.fault == "lenient" else super()._check_time(t)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("config", r"from_config\(config\) must be the schedule again"),
        ("shared table", "tables must be copies"),
        ("float32", "alphas_cumprod must be float64"),
        ("betas", "betas must multiply up to alphas_cumprod"),
        ("rounded", "timestep must be the inverse of log_snr"),
        ("rule", "alpha and sigma must keep the rule of the frame"),
        ("ratio", r"alpha must be sigma \* exp\(log_snr / 2\)"),
        ("wave", "log_snr must fall"),
        ("lenient", "must be refused by a ValueError"),
    ],
)
def test_a_broken_schedule_is_told_what_it_breaks(fault: str, match: str) -> None:
    good = NoiseSchedule.edm() if fault == "betas" else NoiseSchedule.linear()  # there they come from alphas_cumprod
    check_schedule(Odd(good.frame, 1000, good.table))
    with pytest.raises(AssertionError, match=match):
        check_schedule(Odd(good.frame, 1000, good.table, fault=fault))


# Denoisers


def test_models_and_guidance_are_denoisers() -> None:
    model, x = small_model(), torch.randn(3, 3, 4, 6)
    assert model.condition_encoder is not None
    condition = model.condition_encoder(torch.tensor([0, 3, 2]))
    check_denoiser(model.denoiser, x, condition)
    check_denoiser(ld.guidance.ClassifierFree(model.denoiser, 3.0, model.condition_encoder.null(3)), x, condition)


COSINE = NoiseSchedule.cosine()


@dataclass(frozen=True)
class Faulty:
    """An exact denoiser with a fault."""

    fault: str
    schedule: NoiseSchedule = COSINE

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        time = torch.as_tensor(t, dtype=torch.float64)
        if self.fault == "first time" and time.ndim:
            time = time[0]
        if self.fault == "half time" and time.ndim:
            time = time.bfloat16().double().clamp(max=999)
        denoised = GaussianDenoiser(mean=0.3, std=0.5, schedule=self.schedule)(x_t, time)
        sample, noise = denoised.sample, denoised.noise
        match self.fault:
            case "inconsistent":
                sample = sample + 0.1
            case "batch":
                shift = 0.01 * x_t.mean()
                alpha, sigma = (s.reshape(-1, *(1,) * (x_t.ndim - 1)) for s in self.schedule.scales(time))
                sample, noise = sample + sigma * shift, noise - alpha * shift
            case "dtype":
                sample = sample.float()
            case "shape":
                noise = noise[:, :1]
            case "chance":
                alpha, sigma = (s.reshape(-1, *(1,) * (x_t.ndim - 1)) for s in self.schedule.scales(time))
                shift = torch.randn_like(sample)
                sample, noise = sample + sigma * shift, noise - alpha * shift
            case "infinite":
                sample = sample / 0
            case "in place":
                x_t.mul_(2)
        return Denoised(sample, noise)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("first time", "each sample must be denoised at its own time"),
        ("half time", r"t of shape \[3\] must give what a number gives"),
        ("inconsistent", r"alpha \* sample \+ sigma \* noise must be x"),
        ("batch", "a sample must not depend on its neighbours"),
        ("dtype", "sample must be torch.float64, got torch.float32"),
        ("shape", "noise must be shaped like x"),
        ("chance", "the same input must give the same answer"),
        ("infinite", "sample must be finite"),
        ("in place", "x must not be written to"),
    ],
)
def test_a_broken_denoiser_is_told_what_it_breaks(fault: str, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_denoiser(Faulty(fault), torch.randn(3, 2, 5, dtype=torch.float64), tolerance=1e-6)


def test_a_guidance_that_halves_the_sample_alone_is_no_denoiser() -> None:
    with pytest.raises(AssertionError, match="must be x"):
        check_denoiser(Halved(Faulty("none")), torch.randn(3, 2, dtype=torch.float64))
    check_denoiser(Faulty("none"), torch.randn(3, 2, dtype=torch.float64), tolerance=1e-12)
    with pytest.raises(ValueError, match="x must hold two samples or more"):
        check_denoiser(Faulty("none"), torch.randn(1, 2))


# Condition encoders


@pytest.mark.parametrize(
    ("encoder", "y"),
    [
        (ld.ClassEncoder(num_classes=4, dim=3), torch.tensor([0, 3, -1])),
        (ld.ClassEncoder(num_classes=4, dim=3, routing="embedding", dropout=0.0), torch.tensor([1, 2])),
        (ScalarEncoder(dim=5), torch.tensor([0.1, 0.5, 0.7])),
    ],
)
def test_condition_encoders_keep_their_promises(encoder: ld.ConditionEncoder, y: Tensor) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    check_condition_encoder(encoder, y)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Forgetful(ScalarEncoder):
    """An encoder with a fault."""

    def __init__(self, *, dim: int, fault: str, dropout: float = 0.1) -> None:
        super().__init__(dim=dim, dropout=dropout)
        self.fault = fault
        if fault == "state":
            self.nothing = nn.Parameter(torch.zeros(dim), requires_grad=False)
            del self.nothing
            self.nothing = torch.randn(dim)  # type: ignore[assignment]

    def forward(self, y: object) -> Condition:
        condition = super().forward(y)
        if self.fault == "chance" and condition.context is not None:
            return Condition(context=condition.context + torch.randn(1))
        return condition

    def null(self, batch: int) -> Condition:
        match self.fault:
            case "null batch":
                return super().null(1)
            case "null part":
                return Condition(embedding=self.nothing.expand(batch, -1))
            case "null rows":
                return Condition(context=torch.arange(batch).float()[:, None, None].expand(batch, 1, self.dim))
        return super().null(batch)

    def drop(
        self, condition: Condition, probability: float | None = None, generator: torch.Generator | None = None
    ) -> Condition:
        match self.fault:
            case "never":
                return condition
            case "unmarked":
                marked = self.null_trained.clone()
                dropped = super().drop(condition, probability, generator)
                self.null_trained.copy_(marked)
                return dropped
            case "always marked":
                self.null_trained.fill_(True)
        return super().drop(condition, probability, generator)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("chance", "Forgetful must give the same twice in evaluation mode"),
        ("null batch", r"Forgetful.null\(3\) must have a batch of 3"),
        (
            "null part",
            "Forgetful.null must have the parts and shapes of a condition: conditions must have the same parts",
        ),
        ("null rows", "Forgetful.null must be the same for every sample"),
        ("never", "Forgetful.drop at probability 1 must leave the null"),
        ("unmarked", "dropping in training must mark the null as trained"),
        ("always marked", "dropping in evaluation mode must not mark the null"),
        ("state", "everything that makes a condition must be in the state"),
    ],
)
def test_a_broken_encoder_is_told_what_it_breaks(fault: str, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        check_condition_encoder(Forgetful(dim=5, fault=fault), torch.tensor([0.1, 0.5, 0.7]))


# Extras


def test_strategies_say_what_to_install_and_the_rest_needs_none_of_it() -> None:
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import latentdiff as ld\n"
        "ld.testing.GaussianDenoiser(schedule=ld.NoiseSchedule.flow())\n"
        "try: import latentdiff.testing.strategies\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'latentdiff[test]'" in run.stdout
