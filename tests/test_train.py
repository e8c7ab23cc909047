"""The trainer: what a step does, what a checkpoint brings back, what is refused."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import latentdiff as ld
from latentdiff.training import (
    EMA,
    Batches,
    LearningRate,
    NonFiniteError,
    Objective,
    Step,
    Trainer,
    diffusion_objective,
    first_stage_objectives,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = randn(26, 1, 6, 8).clamp(-1, 1)
LABELS = torch.arange(26) % 5


class Regression(nn.Module):
    """Least squares with a dropout and a noise of its own: chance from both sources."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.3)

    def forward(self, batch: tuple[Tensor, Tensor], step: Step) -> dict[str, Tensor]:
        x, y = batch
        x = x + 0.1 * ld_noise(step, x)
        error = (self.norm(self.drop(self.linear(x))) - y).square().mean()
        return {"loss": error, "size": y.abs().mean()}


def ld_noise(step: Step, x: Tensor) -> Tensor:
    return step.generator.normal(x.shape, step=0, device=x.device, dtype=x.dtype)


PAIRS = (randn(23, 3, seed=1), randn(23, 2, seed=2))


def model() -> ld.LatentDiffusion:
    torch.manual_seed(0)
    return ld.LatentDiffusion(
        autoencoder=ld.Autoencoder(
            in_channels=1, latent_channels=2, base_channels=4, channel_multipliers=(1, 2), blocks_per_level=1
        ),
        unet=ld.UNet(
            in_channels=2,
            base_channels=8,
            channel_multipliers=(1,),
            blocks_per_level=1,
            attention_levels=(0,),
            head_dim=4,
            context_dim=6,
        ),
        schedule=ld.NoiseSchedule.cosine(),
        condition_encoder=ld.ClassEncoder(num_classes=5, dim=6, dropout=0.2),
        prediction="v_prediction",
        image_size=8,
    )


def diffusion(folder: Path | None = None, **options: Any) -> tuple[ld.LatentDiffusion, EMA[Any], Trainer]:
    whole = model()
    ema = EMA(whole, 0.9)
    rate = LearningRate(1e-2, warm_up=3, decay="cosine", steps=10)
    options = {"steps": 10, "save_every": 4, "progress": False, "averages": [(ema, whole)]} | options
    trainer = Trainer(
        diffusion_objective(whole, learning_rate=rate), Batches((IMAGES, LABELS), 8), folder=folder, **options
    )
    return whole, ema, trainer


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def test_ten_steps_are_five_and_save_and_load_and_five(tmp_path: Path) -> None:
    whole, ema, trainer = diffusion()
    history = trainer.train()
    diffusion(tmp_path)[2].train(5)
    torch.manual_seed(77)  # another process has another state
    again, again_ema, resumed = diffusion(tmp_path)
    assert resumed.train() == history
    assert same(whole, again)
    assert same(ema.module, again_ema.module)
    for mine, theirs in zip(trainer.optimizers, resumed.optimizers, strict=True):
        for a, b in zip(mine.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(whole.unet.conv_in.weight, ema.module.unet.conv_in.weight)
    assert again_ema.updates == 10


def test_global_chance_and_buffers_come_back_too(tmp_path: Path) -> None:
    def trainer(folder: Path | None) -> tuple[Regression, Trainer]:
        module = Regression()
        objective = Objective(module, learning_rate=0.1, weight_decay=0.1)
        return module, Trainer(objective, Batches(PAIRS, 5), steps=10, folder=folder, progress=False)

    module, whole = trainer(None)
    history = whole.train()
    trainer(tmp_path)[1].train(5)
    again, resumed = trainer(tmp_path)
    assert resumed.train() == history
    assert same(module, again)
    assert module.norm.num_batches_tracked == 10


@pytest.mark.parametrize("drawn_by", ["global generator", "own generator", "stateful", "iterable"])
def test_data_loaders_go_on_where_they_were(tmp_path: Path, drawn_by: str) -> None:
    seen: list[list[int]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, batch: Any, step: Step) -> Tensor:
            seen.append([int(number) for number in (batch[0] if isinstance(batch, list) else batch)])
            return self.weight.square().sum()

    def trainer(folder: Path | None) -> Trainer:
        return Trainer(Objective(Watched()), loader(drawn_by), steps=7, folder=folder, progress=False)

    trainer(None).train()
    want, seen[:] = list(seen), []
    trainer(tmp_path).train(4)
    torch.manual_seed(5)
    trainer(tmp_path).train()
    assert seen == want
    assert sorted(number for batch in want[:3] for number in batch) == list(range(12))
    if drawn_by in {"global generator", "own generator"}:
        assert want[:3] != want[3:6]  # another order each epoch


class Stateful:
    """Counts through batches of four, and starts where it was left."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < 3:
            self.at += 1
            yield torch.arange(12).view(3, 4)[self.at - 1]
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def loader(drawn_by: str) -> Any:
    data = TensorDataset(torch.arange(12))
    match drawn_by:
        case "global generator":
            return DataLoader(data, batch_size=4, shuffle=True)
        case "own generator":
            return DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator())
        case "stateful":
            return Stateful()
    return [torch.arange(12).view(3, 4)[i] for i in range(3)]


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    curves = [diffusion(accumulate=parts)[2].train()["loss"] for parts in (1, 4)]
    # the same sums in another order, float32, over ten steps
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert len(set(curves[0])) == 10


def test_training_leaves_the_global_random_state_alone() -> None:
    trainer = diffusion()[2]
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    trainer.train(2)
    assert torch.equal(torch.rand(2), want)


def test_another_seed_is_another_run() -> None:
    assert diffusion(seed=1)[2].train(2) != diffusion()[2].train(2)


def test_training_makes_the_loss_small() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)

    class Fit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = module

        def forward(self, batch: Tensor, step: Step) -> Tensor:
            return (self.linear(batch) - batch[:, :2]).square().mean()

    data = randn(64, 3)
    trainer = Trainer(Objective(Fit(), learning_rate=0.03), Batches(data, 16), steps=300, progress=False)
    assert trainer.train()["loss"][-1] < 1e-3


# A first stage with its adversary.


def first_stage(start_step: int = 0, **options: Any) -> tuple[ld.Autoencoder, ld.losses.AutoencoderLoss, Trainer]:
    torch.manual_seed(0)
    autoencoder = ld.Autoencoder(in_channels=1, latent_channels=2, base_channels=4, channel_multipliers=(1, 2))
    adversary = ld.PatchDiscriminator(in_channels=1, base_channels=4, num_layers=1)
    loss = ld.losses.AutoencoderLoss(discriminator=adversary, start_step=start_step)
    objectives = first_stage_objectives(autoencoder, loss, learning_rate=1e-3, discriminator_learning_rate=5e-4)
    options = {"steps": 4, "progress": False} | options
    return autoencoder, loss, Trainer(objectives, Batches(IMAGES, 4), **options)


def test_each_side_moves_its_own_parameters_and_the_adversary_waits_for_its_step() -> None:
    autoencoder, loss, trainer = first_stage(start_step=2)
    assert loss.discriminator is not None
    before = copy.deepcopy(loss.discriminator)
    history = trainer.train(2)
    assert same(before, loss.discriminator)
    assert set(history) >= {"generator/loss", "generator/reconstruction", "generator/kl"}
    assert not any(name.startswith("discriminator") for name in history)
    encoder = copy.deepcopy(autoencoder)
    history = trainer.train(4)
    assert not same(before, loss.discriminator)
    assert not same(encoder, autoencoder)
    assert [math.isnan(value) for value in history["discriminator/loss"]] == [True, True, False, False]


def test_the_trainer_is_the_loop_that_one_would_write() -> None:
    """Trap: the discriminator learns from the reconstruction that the generator's step was made with, once."""
    autoencoder, loss, trainer = first_stage()
    own, own_loss, _ = first_stage()
    optimizers = [
        torch.optim.AdamW(group, lr=rate, betas=(0.5, 0.9), weight_decay=0, fused=True)
        for group, rate in zip(own_loss.parameter_groups(own), (1e-3, 5e-4), strict=True)
    ]
    batches, noise = Batches(IMAGES, 4), []

    def noted(trainer: Trainer) -> None:
        noise.append(trainer.step)

    trainer.train(2, every={1: noted})
    assert noise == [1, 2]
    for number in range(2):
        images = batches(number)
        step = next(iter(trainer._engine._parts(images, number, 0)))[0]
        output = own.train()(images, step.generator)
        generator = own_loss.generator_loss(images, output, step=number, last_layer=own.last_layer)
        discriminator = own_loss.discriminator_loss(images, output, step=number)
        for answer, optimizer in zip((generator, discriminator), optimizers, strict=True):
            optimizer.zero_grad()
            answer.loss.backward()
            optimizer.step()
    torch.testing.assert_close(own.state_dict(), autoencoder.state_dict())
    torch.testing.assert_close(own_loss.state_dict(), loss.state_dict())


def test_first_stages_resume_bit_for_bit_their_codebooks_included(tmp_path: Path) -> None:
    def trainer(folder: Path | None) -> tuple[ld.Autoencoder, Trainer]:
        torch.manual_seed(0)
        autoencoder = ld.Autoencoder(
            in_channels=1,
            latent_channels=2,
            base_channels=4,
            channel_multipliers=(1, 2),
            bottleneck="vq",
            codebook_size=9,
            codebook_decay=0.9,
            restart_below=0.5,
        )
        loss = ld.losses.AutoencoderLoss(
            discriminator=ld.PatchDiscriminator(in_channels=1, base_channels=4, num_layers=1)
        )
        objectives = first_stage_objectives(autoencoder, loss, learning_rate=1e-2)
        return autoencoder, Trainer(objectives, Batches(IMAGES, 4), steps=6, folder=folder, progress=False)

    autoencoder, whole = trainer(None)
    whole.train()
    trainer(tmp_path)[1].train(3)
    again, resumed = trainer(tmp_path)
    assert resumed.train() == whole.history
    assert same(autoencoder, again)


# What goes wrong.


class Failing(Regression):
    """Not a number at one step."""

    def forward(self, batch: tuple[Tensor, Tensor], step: Step) -> dict[str, Tensor]:
        figures = super().forward(batch, step)
        if step.number == 3:
            figures["loss"] = figures["loss"] * math.nan
        return figures


def test_a_loss_that_is_no_number_stops_before_it_does_harm(tmp_path: Path) -> None:
    def trainer(module: Regression, steps: int, folder: Path | None) -> Trainer:
        return Trainer(
            Objective(module, learning_rate=0.1), Batches(PAIRS, 5), steps=steps, folder=folder, progress=False
        )

    good, bad = Regression(), Failing()
    trainer(good, 3, None).train()
    stopping = trainer(bad, 10, tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"loss and gradient_norm must be finite.* at step 3;.*\[5, 3\].*linear"
    ) as e:
        stopping.train()
    assert e.value.step == 3
    assert str(tmp_path / "step-000000003") in str(e.value)
    assert same(good, bad)  # the statistics of the normalisation too
    assert all(weight.grad is None for weight in bad.parameters())
    again = Regression()
    resumed = trainer(again, 10, tmp_path)
    assert resumed.resume()
    assert resumed.step == 3
    assert same(good, again)


def test_a_gradient_that_is_no_number_stops_too() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, batch: Tensor, step: Step) -> Tensor:
            return self.weight.abs().sqrt().sum() * batch.sum()

    trainer = Trainer(Objective(Root()), Batches(torch.ones(4, 1), 2), steps=2, progress=False)
    with pytest.raises(NonFiniteError, match=r"^gradient_norm must be finite.*there is no folder for checkpoints"):
        trainer.train()


def test_gradients_are_clipped_to_their_norm() -> None:
    class Plane(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, batch: Tensor, step: Step) -> Tensor:
            return (self.weight * torch.tensor([3.0, 4.0])).sum()

    for clip, length in ((0.5, 0.5), (None, 5.0), (7.0, 5.0)):
        plane = Plane()
        objective = Objective(plane, learning_rate=1.0, clip=clip, optimizer=lambda weights: torch.optim.SGD(weights))
        history = Trainer(objective, Batches(torch.ones(4, 1), 2), steps=1, progress=False).train()
        assert history["gradient_norm"] == [5.0]
        assert plane.weight.norm().item() == pytest.approx(length, rel=1e-5)


def test_optimisers_with_plain_values_in_their_state_resume(tmp_path: Path) -> None:
    def trainer(folder: Path | None) -> tuple[Regression, Trainer]:
        module = Regression()
        objective = Objective(module, optimizer=lambda weights: torch.optim.SGD(weights, momentum=0.9))
        return module, Trainer(objective, Batches(PAIRS, 5), steps=6, folder=folder, progress=False)

    module, whole = trainer(None)
    whole.train()
    trainer(tmp_path)[1].train(3)
    again, resumed = trainer(tmp_path)
    resumed.train()
    assert same(module, again)


def test_checkpoints_are_kept_as_told_and_are_data_alone(tmp_path: Path) -> None:
    diffusion(tmp_path, save_every=2, keep=3)[2].train(7)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-000000004", "step-000000006", "step-000000007"]
    assert sorted(path.name for path in (tmp_path / kept[-1]).iterdir()) == ["tensors.safetensors", "training.json"]
    assert json.loads((tmp_path / kept[-1] / "training.json").read_text())["step"] == 7


def test_half_written_checkpoints_are_passed_over_and_removed(tmp_path: Path) -> None:
    diffusion(tmp_path)[2].train(2)
    (tmp_path / ".step-000000009.tmp").mkdir()
    (tmp_path / "step-000000011").mkdir()  # without training.json it is none
    trainer = diffusion(tmp_path)[2]
    assert trainer.resume()
    assert trainer.step == 2
    assert not trainer.resume()
    trainer.train(3)
    assert not (tmp_path / ".step-000000009.tmp").exists()


class Killed(BaseException):
    """What stops at once and asks nobody."""


@pytest.mark.parametrize("call", range(6))
def test_wherever_writing_stops_there_is_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The calls by which a checkpoint reaches the disk: each but the last leaves the one before as it was."""

    def trainer() -> Trainer:
        objective = Objective(Regression(), learning_rate=0.1)
        return Trainer(objective, Batches(PAIRS, 5), steps=9, folder=tmp_path, keep=1, progress=False)

    trainer().train(2)
    left = call

    def stopping(function: Any) -> Any:
        def stopped(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*arguments, **options)

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", stopping(os.fsync))
        patch.setattr(Path, "rename", stopping(Path.rename))
        patch.setattr("shutil.rmtree", stopping(shutil.rmtree))
        with pytest.raises(Killed):
            trainer().train(5)
    resumed = trainer()
    assert resumed.resume()
    assert resumed.step == (2 if call < 4 else 5)  # two files, the folder, its name; then the old one goes
    assert resumed.train() == trainer().train()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000009"]


def test_figures_go_to_tensorboard_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = diffusion(tmp_path, tensorboard=True)[2].train(3)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(history["loss"], rel=1e-6)
    assert {"gradient_norm", "samples_per_second"} <= set(events.Tags()["scalars"])


def test_tensorboard_is_asked_for_only_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="tensorboard must be installed for tensorboard=True"):
        diffusion(tmp_path, tensorboard=True)


def test_bad_checkpoints_are_refused(tmp_path: Path) -> None:
    path = diffusion(tmp_path)[2]
    path.train(2)
    with pytest.raises(FileExistsError, match="folder must hold no checkpoints to begin anew"):
        diffusion(tmp_path)[2].train(resume=False)
    with pytest.raises(ld.CheckpointError, match="was made with seed=0, not 1"):
        diffusion(tmp_path, seed=1)[2].resume()
    with pytest.raises(ld.CheckpointError, match="has 1 averages, not 0"):
        diffusion(tmp_path, averages=[])[2].resume()
    other = Trainer(Objective(Regression()), Batches(PAIRS, 5), steps=9, folder=tmp_path, progress=False)
    with pytest.raises(ld.CheckpointError, match="has 1 averages, not 0"):
        other.resume()
    file = tmp_path / "step-000000002" / "training.json"
    text = file.read_text()
    file.write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(ld.CheckpointError, match="has format 9, this version of latentdiff reads 1"):
        diffusion(tmp_path)[2].resume()
    file.write_text(text[:20])
    with pytest.raises(ld.CheckpointError, match="is no complete checkpoint of a training"):
        diffusion(tmp_path)[2].resume()


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    def trainer(module: nn.Module) -> Trainer:
        return Trainer(Objective(module), Batches(PAIRS, 5), steps=9, folder=tmp_path, progress=False)

    trainer(Regression()).train(1)
    wide, more = Regression(), Regression()
    wide.norm = nn.BatchNorm1d(2, affine=False)
    more.linear = nn.Linear(3, 2, bias=False)
    with pytest.raises(ld.CheckpointError, match=r"lacks nothing and has objective/loss/module/norm.bias"):
        trainer(wide).resume()
    renamed = Regression()
    renamed.extra = nn.Parameter(torch.ones(3))
    with pytest.raises(ld.CheckpointError, match=r"it lacks objective/loss/module/extra and has nothing besides"):
        trainer(renamed).resume()
    shaped = Regression()
    shaped.norm.weight = nn.Parameter(torch.ones(5))
    with pytest.raises(ld.CheckpointError, match=r"has objective/loss/module/norm.weight of \[2\], not \[5\]"):
        trainer(shaped).resume()


def test_bad_arguments_are_refused() -> None:
    module = Regression()
    objective, batches = Objective(module), Batches(PAIRS, 5)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Trainer(objective, batches, steps=0)
    with pytest.raises(ValueError, match="precision must be one of 'auto', 'float32', 'bfloat16', got 'half'"):
        Trainer(objective, batches, steps=1, precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="objectives must hold at least one"):
        Trainer([], batches, steps=1)
    with pytest.raises(ValueError, match="objectives must have names of their own"):
        Trainer([objective, objective], batches, steps=1)
    with pytest.raises(ValueError, match="objectives must train parameters of their own, but two train linear"):
        Trainer([objective, Objective(module, name="b")], batches, steps=1)
    with pytest.raises(ValueError, match="gradient_checkpointing must be None for modules that have no such"):
        Trainer(objective, batches, steps=1, gradient_checkpointing=True)
    with pytest.raises(ValueError, match="folder must be given for tensorboard=True"):
        Trainer(objective, batches, steps=1, tensorboard=True)
    with pytest.raises(ValueError, match="parameters must be those of module, got 1 others"):
        Objective(module, parameters=[nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="module must have parameters that require a gradient"):
        Objective(nn.ReLU())
    with pytest.raises(ValueError, match="clip must be positive"):
        Objective(module, clip=0.0)


def test_what_a_module_returns_is_looked_at() -> None:
    class Wrong(Regression):
        def forward(self, batch: Any, step: Step) -> dict[str, Tensor]:
            return {"los": torch.ones(())}

    with pytest.raises(ValueError, match=r"module must return a loss or a mapping with 'loss', got \['los'\]"):
        Trainer(Objective(Wrong()), Batches(PAIRS, 5), steps=1, progress=False).train()


def test_one_switch_computes_again_what_is_not_kept() -> None:
    whole, _, trainer = diffusion(gradient_checkpointing=True)
    assert whole.unet.gradient_checkpointing
    plain = diffusion()[2]
    # the same operations once more
    assert trainer.train(3)["loss"] == pytest.approx(plain.train(3)["loss"], rel=1e-6)


def test_pictures_are_drawn_every_so_many_steps_and_change_nothing(tmp_path: Path) -> None:
    drawn: list[int] = []
    _, ema, trainer = diffusion()

    def pictures(trainer: Trainer) -> None:
        images = ema.module.generate(torch.tensor([1, 2]), sampler=ld.Sampler("ddim", steps=2))
        assert images.shape == (2, 1, 8, 8)
        trainer.averages[0].module.eval()
        drawn.append(trainer.step)

    history = trainer.train(every={3: pictures})
    assert drawn == [3, 6, 9]
    assert history == diffusion()[2].train()


def test_batches_may_be_latents_and_dictionaries() -> None:
    whole = model()
    latents = randn(26, 2, 3, 4)

    class Rows(Dataset[Any]):
        epoch = -1

        def __len__(self) -> int:
            return 26

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return latents[index], LABELS[index]

    rows = Rows()
    objective = diffusion_objective(whole, latents=True)
    history = Trainer(objective, Batches(rows, 8), steps=4, accumulate=2, progress=False).train()
    assert rows.epoch == 1
    again = Trainer(diffusion_objective(model(), latents=True), Batches((latents, LABELS), 8), steps=4, progress=False)
    assert history["loss"] == pytest.approx(again.train()["loss"], rel=1e-5)  # halves in another order
    frozen = whole.autoencoder.state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in model().autoencoder.state_dict().items())


def test_the_optimiser_gets_the_rate_of_each_step() -> None:
    rates: list[float] = []
    rate = LearningRate(1e-2, warm_up=3, decay="cosine", steps=10)

    def note(trainer: Trainer) -> None:
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    diffusion()[2].train(every={1: note})
    assert rates == [rate.at(step) for step in range(10)]


def test_loaders_without_batches_are_refused() -> None:
    trainer = Trainer(Objective(Regression()), [], steps=1, progress=False)
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        trainer.train()


def test_bfloat16_is_near_float32() -> None:
    half, full = diffusion(precision="bfloat16")[2].train(3), diffusion(precision="float32")[2].train(3)
    assert half["loss"] != full["loss"]
    assert half["loss"] == pytest.approx(full["loss"], rel=0.03)  # eight bits a factor


def test_the_bar_tells_loss_and_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    diffusion(progress=True)[2].train(2)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss=" in shown
    assert "samples/s=" in shown
