"""Training over two processes, and training that is killed; apart, since each process imports this file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import latentdiff as ld
from latentdiff.training import (
    EMA,
    Batches,
    LearningRate,
    Objective,
    Replicated,
    Sharded,
    Step,
    Trainer,
    diffusion_objective,
    first_stage_objectives,
    whole_state,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES, LABELS = randn(26, 1, 6, 8).clamp(-1, 1), torch.arange(26) % 5


def model(seed: int = 0) -> ld.LatentDiffusion:
    torch.manual_seed(seed)
    return ld.LatentDiffusion(
        autoencoder=ld.Autoencoder(
            in_channels=1, latent_channels=2, base_channels=4, channel_multipliers=(1, 2), blocks_per_level=1
        ).requires_grad_(False),
        unet=ld.UNet(
            in_channels=2, base_channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_levels=(0,),
            head_dim=4, context_dim=6,
        ),
        schedule=ld.NoiseSchedule.cosine(),
        condition_encoder=ld.ClassEncoder(num_classes=5, dim=6, dropout=0.3),
    )  # fmt: skip


def diffusion(folder: Path | None, seed: int = 0, **options: Any) -> tuple[ld.LatentDiffusion, EMA[Any], Trainer]:
    whole = model(seed)
    ema = EMA(whole, 0.9)
    objective = diffusion_objective(whole, learning_rate=LearningRate(1e-2, warm_up=2))
    options = {"steps": 8, "progress": False, "averages": [(ema, whole)]} | options
    return whole, ema, Trainer(objective, Batches((IMAGES, LABELS), 8), folder=folder, **options)


def first_stage(adaptive: bool = False) -> Trainer:
    torch.manual_seed(0)
    autoencoder = ld.Autoencoder(in_channels=1, latent_channels=2, base_channels=4, channel_multipliers=(1, 2))
    adversary = ld.PatchDiscriminator(in_channels=1, base_channels=4, num_layers=1, normalization="group")
    loss = ld.losses.AutoencoderLoss(discriminator=adversary, start_step=1, adaptive=adaptive)
    objectives = first_stage_objectives(autoencoder, loss, learning_rate=1e-3)
    return Trainer(objectives, Batches(IMAGES, 4), steps=3, progress=False)


class Probe(nn.Module):
    """Notes the chance it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def forward(self, batch: Tensor, step: Step) -> Tensor:
        noise = step.generator.normal(batch.shape, step=0, device=batch.device, dtype=batch.dtype)
        self.seen += [batch, noise, torch.rand(1)]
        return (self.weight * batch).square().mean()


def _replicated(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # the second process begins with other weights, and must get those of the first
    whole, ema, trainer = diffusion(Path(folder) / "run", seed=rank, accumulate=2)
    trainer.train(4)
    probe = Probe()
    Trainer(Objective(probe), Batches(torch.arange(12.0), 6), steps=1, progress=False).train()
    stage = first_stage().train()
    first_stage(adaptive=True).train()  # its weight compares gradients within the pass
    torch.save(
        {
            "history": trainer.history,
            "weights": whole.state_dict(),
            "average": ema.module.state_dict(),
            "seen": probe.seen,
            "stage": stage,
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_replicated, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole, _, alone = diffusion(None)
    history = alone.train(4)
    # the same samples, times and noise: sums in another order, float32, over four steps
    assert first["history"]["loss"] == second["history"]["loss"] == pytest.approx(history["loss"], rel=1e-5)
    assert first["history"]["gradient_norm"] == pytest.approx(history["gradient_norm"], rel=1e-4)
    for name, tensor in first["weights"].items():
        if "autoencoder" not in name:  # is none of what is trained
            assert torch.equal(tensor, second["weights"][name])
            # AdamW's first steps are of the size of the rate whatever the gradient: where that is rounding, anything
            torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=1e-3, atol=1e-3)
    assert torch.equal(first["average"]["unet.conv_in.weight"], second["average"]["unet.conv_in.weight"])

    probe = Probe()
    Trainer(Objective(probe), Batches(torch.arange(12.0), 6), steps=1, progress=False).train()
    for mine, his, both in list(zip(first["seen"], second["seen"], probe.seen, strict=True))[:2]:
        assert torch.equal(torch.cat([mine, his]), both)
        assert not torch.equal(mine, his)
    assert not torch.equal(first["seen"][2], second["seen"][2])  # torch's own generator differs as well

    stage = first_stage().train()
    assert first["stage"]["generator/loss"] == pytest.approx(stage["generator/loss"], rel=1e-4)
    assert first["stage"]["discriminator/loss"][1:] == pytest.approx(stage["discriminator/loss"][1:], rel=1e-4)

    _, _, resumed = diffusion(tmp_path / "run")  # what two wrote, one reads
    assert resumed.resume()
    assert resumed.step == 4
    assert resumed.history == first["history"]


def _sharded(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole, ema, trainer = diffusion(Path(folder) / "run", parallel=Sharded(), accumulate=2)
    trainer.train(4)
    local = sum(weight.to_local().numel() for weight in whole.unet.parameters())
    _, again_ema, again = diffusion(Path(folder) / "run", parallel=Sharded())
    assert again.resume()
    again.train(6)
    _, _, mixed = diffusion(Path(folder) / "alone", parallel=Sharded())
    assert mixed.resume()
    mixed.train(6)
    torch.save(
        {
            "history": trainer.history,
            "again": again.history,
            "mixed": mixed.history,
            "local": local,
            "average": whole_state(ema.module.unet),
            "again average": whole_state(again_ema.module.unet),
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_half_the_weights_each_train_as_one_does(tmp_path: Path) -> None:
    whole, ema, alone = diffusion(tmp_path / "alone")
    history = alone.train(4)
    average = ema.module.unet.state_dict()
    torch.multiprocessing.spawn(_sharded, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["history"]["loss"] == second["history"]["loss"] == pytest.approx(history["loss"], rel=1e-5)
    assert first["local"] + second["local"] == sum(weight.numel() for weight in whole.unet.parameters())
    for name, tensor in first["average"].items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-3, atol=1e-3)

    _, longer_ema, resumed = diffusion(tmp_path / "run")  # what two shards wrote, one reads
    assert resumed.resume()
    resumed.train(6)
    assert first["again"]["loss"] == pytest.approx(resumed.history["loss"], rel=1e-5)
    assert first["mixed"]["loss"] == pytest.approx(resumed.history["loss"], rel=1e-4)  # and the other way around
    for name, tensor in first["again average"].items():
        torch.testing.assert_close(tensor, longer_ema.module.unet.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_what_several_processes_need_is_told() -> None:
    with pytest.raises(ValueError, match="parallel must be left out in a process alone; start with torchrun"):
        diffusion(None, parallel=Sharded())
    assert diffusion(None, parallel=Replicated())[2].train(1)
    assert ld.training.join_processes() == torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


# Killed.

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_train_processes import diffusion
_, _, trainer = diffusion(Path({folder!r}), save_every=3, steps=10**6)
def told(trainer):
    print(trainer.step, flush=True)
trainer.train(every={{1: told}})
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 7])
def test_a_killed_training_loses_the_steps_since_its_checkpoint_at_most(tmp_path: Path, at: int) -> None:
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    made = 0
    while made < at:
        made = int(process.stdout.readline())
    time.sleep(0.004 * at)  # somewhere in a step or in the writing of a checkpoint
    os.kill(process.pid, signal.SIGKILL)
    made = max([made, *map(int, process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    whole, _, resumed = diffusion(tmp_path, save_every=3, steps=12)
    assert resumed.resume() == (made >= 3)
    assert made - 3 <= resumed.step <= made + 1
    history = resumed.train()
    want = diffusion(None, steps=12)
    assert history == want[2].train()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), want[0].parameters(), strict=True))
