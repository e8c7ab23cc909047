"""The doctor finds each fault that is planted in a healthy model, and none in the healthy one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import latentdiff as ld
from latentdiff._typing import Prediction
from networks import randomised

COUNT = 24


def pictures(count: int = COUNT) -> Tensor:
    """Stripes of random directions: `[count, 1, 8, 12]`, in [-1, 1]."""
    u = torch.rand(4, count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.arange(8.0).reshape(8, 1), torch.arange(12.0)
    return torch.sin(2 * u[0] * rows + 2 * u[1] * columns + 6 * u[2]) * (0.2 + 0.8 * u[3])


def labels(count: int = COUNT) -> Tensor:
    return torch.arange(count) % 5


@pytest.fixture(scope="module")
def healthy() -> ld.LatentDiffusion:
    """A first stage that was trained for a moment, and a fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = ld.Autoencoder(
            in_channels=1, latent_channels=3, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1,
            middle_attention=False,
        )  # fmt: skip
        optimizer = torch.optim.Adam(autoencoder.parameters(), lr=5e-3)
        for _ in range(40):
            output = autoencoder(pictures())
            loss = (output.reconstruction - pictures()).square().mean() + 1e-5 * output.regularization
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        unet = ld.UNet(
            in_channels=3, base_channels=8, channel_multipliers=(1,), blocks_per_level=1, head_dim=4, context_dim=6
        )
    return ld.LatentDiffusion(
        autoencoder=autoencoder.calibrate([pictures()]),
        unet=unet,
        schedule=ld.NoiseSchedule.linear(100),
        condition_encoder=ld.ClassEncoder(num_classes=5, dim=6),
    )


@pytest.fixture
def model(healthy: ld.LatentDiffusion) -> ld.LatentDiffusion:
    return copy.deepcopy(healthy)


def problems(model: ld.LatentDiffusion, x: Tensor, y: object, *, compiling: bool = False) -> dict[str, str]:
    """What the doctor found by name: what it saw, and what is to be done."""
    report = ld.doctor(model, x, y, compiling=compiling)
    return {finding.name: f"{finding.value} -> {finding.advice}" for finding in report.problems}


def test_a_healthy_model_has_nothing_to_look_at(model: ld.LatentDiffusion) -> None:
    report = ld.doctor(model, pictures(), labels())
    assert report.is_ok, str(report)
    names = ["device", "data", "latents", "posterior", "reconstruction", "schedule", "condition", "null condition"]
    assert [finding.name for finding in report.findings] == [
        *names, "zero predictor", "loss by time", "gradients", "compile"
    ]  # fmt: skip
    assert str(report).splitlines()[-1] == "nothing to look at"
    assert len(str(report).splitlines()) == 13


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "edm"])
def test_the_loss_of_answering_zero_is_the_one_that_is_expected(
    model: ld.LatentDiffusion, prediction: Prediction
) -> None:
    model.prediction = prediction
    assert "zero predictor" not in problems(model, pictures(), labels())


def scale_the_latents(model: ld.LatentDiffusion) -> None:
    model.autoencoder.scaling_factor = [5 * float(factor) for factor in model.autoencoder.latent_scaling]


def shift_the_latents(model: ld.LatentDiffusion) -> None:
    model.autoencoder.latent_shift.add_(1.5 / model.autoencoder.latent_scaling)


def drown_a_channel_in_noise(model: ld.LatentDiffusion) -> None:
    assert model.autoencoder.quant_conv is not None
    with torch.no_grad():
        model.autoencoder.quant_conv.weight[[1, 4]] = 0
        model.autoencoder.quant_conv.bias[4] = 0
    model.autoencoder.calibrate([pictures()])


def spoil_the_decoder(model: ld.LatentDiffusion) -> None:
    nn.init.zeros_(model.autoencoder.last_layer)


def end_in_signal(model: ld.LatentDiffusion) -> None:
    model.schedule = ld.NoiseSchedule.scaled_linear(100)  # that of Stable Diffusion: alpha is .068 at the end


def begin_in_noise(model: ld.LatentDiffusion) -> None:
    model.schedule = ld.NoiseSchedule.linear(100, 0.01, 0.02)


def never_drop(model: ld.LatentDiffusion) -> None:
    assert model.condition_encoder is not None
    model.condition_encoder.dropout = 0.0


def always_drop(model: ld.LatentDiffusion) -> None:
    assert model.condition_encoder is not None
    model.condition_encoder.dropout = 0.9


def lose_the_null(model: ld.LatentDiffusion) -> None:
    class Without(ld.ClassEncoder):
        def null(self, batch: int) -> ld.Condition:
            raise NotImplementedError("no null here")

    model.condition_encoder = Without(num_classes=5, dim=6)


def answer_too_much(model: ld.LatentDiffusion) -> None:
    nn.init.constant_(list(model.unet.parameters())[-1], 3)


def answer_nan(model: ld.LatentDiffusion) -> None:
    nn.init.constant_(next(model.unet.parameters()), float("nan"))


def freeze(model: ld.LatentDiffusion) -> None:
    model.unet.requires_grad_(False)


class Lazy(nn.Module):
    """A network with a weight that it does not use, and one that looks at numbers on its way."""

    def __init__(self, *, looks: bool) -> None:
        super().__init__()
        self.used, self.forgotten = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.looks = looks

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        if not self.looks:
            return x * self.used
        return x * (self.used if self.used > 1 else self.forgotten + self.used)


def forget_a_weight(model: ld.LatentDiffusion) -> None:
    model.unet = Lazy(looks=False)  # type: ignore[assignment]


def put_the_weights_in_half_precision(model: ld.LatentDiffusion) -> None:
    model.unet.bfloat16()


@pytest.mark.parametrize(
    ("plant", "name", "advice"),
    [
        (scale_the_latents, "latents", "call autoencoder.calibrate"),
        (shift_the_latents, "latents", "call autoencoder.calibrate"),
        (drown_a_channel_in_noise, "posterior", "say nothing about the image"),
        (spoil_the_decoder, "reconstruction", "train the first stage"),
        (end_in_signal, "schedule", "use a schedule that ends there"),
        (begin_in_noise, "schedule", "begin with smaller betas"),
        (never_drop, "null condition", "set dropout=0.1"),
        (always_drop, "null condition", "drop it less often"),
        (lose_the_null, "null condition", "no null here -> guidance needs"),
        (answer_too_much, "loss by time", "worse than answering zero"),
        (answer_nan, "loss by time", "not finite"),
        (freeze, "gradients", r"unet.requires_grad_(True)"),
        (forget_a_weight, "gradients", "1 of 2 weights get one, not forgotten -> weights without use"),
        (put_the_weights_in_half_precision, "device", "train under torch.autocast"),
    ],
)
def test_a_planted_fault_is_found(
    model: ld.LatentDiffusion, plant: Callable[[ld.LatentDiffusion], None], name: str, advice: str
) -> None:
    plant(model)
    found = problems(model, pictures(), labels())
    assert advice in found[name]


@pytest.mark.parametrize(
    ("change", "name", "advice"),
    [
        (lambda x: (x + 1) / 2, "data", "give 2 * x - 1"),
        (lambda x: x * 127.5, "data", "scale the data to the autoencoder's value_range"),
        (lambda x: x / 100, "data", "scaled twice"),
        (lambda x: (x * 127 + 128).byte(), "data", "batch.float() / 127.5 - 1"),
        (lambda x: x.log(), "data", "missing values in the loader"),
        (lambda x: x.expand(-1, 3, -1, -1), "first stage", "channels=1, got channels=3"),
        (lambda x: x[..., :7], "first stage", "divisible by 2"),
    ],
)
def test_data_that_do_not_fit_are_found(
    model: ld.LatentDiffusion, change: Callable[[Tensor], Tensor], name: str, advice: str
) -> None:
    found = problems(model, change(pictures()), labels())
    assert advice in found[name]


@pytest.mark.parametrize(
    ("y", "name", "advice"),
    [
        (None, "condition", "y must be given to a model with a condition_encoder"),
        (labels(COUNT - 1), "condition", f"y must have the {COUNT} samples of batch, got {COUNT - 1}"),
        (labels() + 1, "condition", "fails: "),
    ],
)
def test_conditions_that_do_not_fit_are_found(model: ld.LatentDiffusion, y: object, name: str, advice: str) -> None:
    assert advice in problems(model, pictures(), y)[name]


def test_a_condition_that_a_model_or_its_network_does_not_take_is_found(model: ld.LatentDiffusion) -> None:
    model.condition_encoder = ld.ClassEncoder(num_classes=5, dim=7)
    assert "dim=6" in problems(model, pictures(), labels())["network"]
    model.condition_encoder = None
    assert "y must be None" in problems(model, pictures(), labels())["condition"]


def test_dead_codes_are_found_and_live_ones_are_not(model: ld.LatentDiffusion) -> None:
    torch.manual_seed(0)
    coded = ld.Autoencoder(
        in_channels=1, latent_channels=3, base_channels=8, channel_multipliers=(1, 2), blocks_per_level=1,
        middle_attention=False, bottleneck="vq", codebook_size=32,
    )  # fmt: skip
    model.autoencoder = coded.eval()
    coded.initialize_codebook(pictures())
    assert "codebook" not in problems(model, pictures(), labels())
    with torch.no_grad():
        for weight in coded.quantizer.parameters():  # type: ignore[union-attr]
            weight[1:] += 1000
    assert "1 of 32 codes used by 576 vectors, perplexity 1.0" in problems(model, pictures(), labels())["codebook"]


def test_a_network_that_breaks_the_graph_is_found(model: ld.LatentDiffusion) -> None:
    model.unet = Lazy(looks=True)  # type: ignore[assignment]
    found = problems(model, pictures(), labels(), compiling=True)
    assert list(found) == ["compile"]
    assert found["compile"].startswith("breaks: ")


def test_a_model_with_a_wrong_prediction_is_worse_than_none(model: ld.LatentDiffusion) -> None:
    """A perfect network for v, read as one for epsilon: at the end v is all but -x_0, so that the loss is 2."""
    clean: list[Tensor] = []

    class Knows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
            alpha, sigma = (scale.reshape(-1, 1, 1, 1).to(x) for scale in scales(t))
            return (alpha * x - clean[0]) / sigma + 0 * self.weight

    def scales(t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(model.schedule.alpha(t)), torch.as_tensor(model.schedule.sigma(t))

    with torch.no_grad():
        clean.append(model.autoencoder.encode(pictures()).sample(ld.CounterNoise(0)))
    model.unet = Knows()  # type: ignore[assignment]
    assert "worse than answering zero" in problems(model, pictures(), labels())["loss by time"]
    model.prediction = "v_prediction"
    assert "loss by time" not in problems(model, pictures(), labels())


@pytest.mark.parametrize("training", [True, False])
def test_a_look_changes_nothing(model: ld.LatentDiffusion, training: bool) -> None:
    randomised(model).train(training)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    first = ld.doctor(model, pictures(), labels(), compiling=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert ld.doctor(model, pictures(), labels(), compiling=False) == first
    assert ld.doctor(model, pictures(), labels(), compiling=False, seed=1) != first


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes_without_a_declared_range_are_looked_at(dims: int) -> None:
    model = ld.LatentDiffusion(
        autoencoder=ld.Autoencoder(
            in_channels=2, latent_channels=9, base_channels=4, channel_multipliers=(1,), blocks_per_level=1,
            bottleneck="none", spatial_dims=dims, value_range=None,  # type: ignore[arg-type]
        ),
        unet=ld.UNet(in_channels=9, base_channels=4, channel_multipliers=(1,), blocks_per_level=1, spatial_dims=dims),  # type: ignore[arg-type]
        schedule=ld.NoiseSchedule.flow(),
        prediction="flow",
    )  # fmt: skip
    x = torch.randn(4, 2, *(3, 4, 5)[:dims], generator=torch.Generator().manual_seed(0))
    report = ld.doctor(model, 7 * x, compiling=False)
    names = [finding.name for finding in report.findings]
    assert {"data", "zero predictor", "loss by time", "gradients"} <= set(names)
    assert "null condition" not in names
    assert "..." in str(report)  # nine channels are shown by their range
    assert "all values are the same" in problems(model, torch.ones_like(x), None)["data"]
