"""How far to compress: diffusion at f = 1, 2, 4 and 8 with as much computation each, on small photographs.

    python examples/photographs/tradeoff.py --data cifar10-train.zip --output out

The paper's question (Rombach et al. 2022, arXiv:2112.10752, figures 6 and 7) in small: with strong compression a step
is cheap, but the first stage sets a limit; without any (f = 1, diffusion of pixels) nothing is lost, but little is
learned in the same time. Each diffusion model gets the same seconds of the processor, which hardly depend on what else
runs on the machine, or on a GPU of the clock. Factors may be run one by one, in the same folder: the plot shows all
that are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import first_stage
import fitting
import torch
from classifier import Classifier
from common import Run
from photos import to_pixels
from torch import Tensor, nn

import latentdiff as ld
from latentdiff import training
from latentdiff.training import LearningRate, Objective, Trainer

import figures  # isort: skip  # examples/first_stage has it, where `photos` looks
from matplotlib import pyplot as plt  # isort: skip  # after `figures` has chosen how to draw

LATENT_CHANNELS = {1: 3, 2: 2, 4: 3, 8: 4}
"""By factor, as in the paper (table 8)."""

MULTIPLIERS = (1, 2, 4, 4)
"""Of the UNet's levels at 32, 16, 8 and 4 points: each model has those that its latents are large enough for."""

SHARES = (0.25, 0.5, 1.0)
"""Of the seconds, after which samples are measured."""


EVERY = 5
"""Steps after which the time is looked at."""


@dataclass(frozen=True)
class Budget:
    """What each factor gets.

    Attributes:
        first_stage_steps: Of training a first stage, 16 photographs each.
        diffusion: Seconds to train a diffusion model.
        samples: How many are measured, and photographs beside them.
        sampling_steps: Of the sampler.
        base_channels: Of the UNet.
    """

    first_stage_steps: int
    diffusion: float
    samples: int
    sampling_steps: int
    base_channels: int


BUDGETS = {
    "smoke": Budget(2, 0.2, 20, 2, 16),
    "cpu": Budget(500, 45, 300, 10, 32),
    "gpu": Budget(30000, 900, 5000, 25, 128),
}


class Diffusion(nn.Module):
    """Diffusion of classes in the latent space of a first stage, or of pixels, where there is none."""

    def __init__(self, autoencoder: ld.Autoencoder | None, factor: int, base_channels: int, classes: int) -> None:
        """Build it, untrained."""
        super().__init__()
        self.autoencoder = None if autoencoder is None else autoencoder.requires_grad_(False)
        multipliers = MULTIPLIERS[factor.bit_length() - 1 :]
        self.unet = ld.UNet(
            in_channels=LATENT_CHANNELS[factor],
            base_channels=base_channels,
            channel_multipliers=multipliers,
            blocks_per_level=1,
            head_dim=32,
            embedding_dim=64,
            scale_shift_norm=True,
        )
        self.encoder = ld.ClassEncoder(num_classes=classes, dim=64, routing="embedding")
        self.denoiser = ld.Denoiser(self.unet, ld.NoiseSchedule.cosine(), "v_prediction")
        self.factor = factor

    def train(self, mode: bool = True) -> Diffusion:
        """Set the mode of all but the first stage."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The denoising loss."""
        with torch.no_grad():
            latents = images if self.autoencoder is None else self.autoencoder.encode(images).sample(generator)
        condition = self.encoder.for_training(labels, generator)
        return ld.losses.DiffusionLoss()(self.denoiser, latents, condition, generator=generator).loss

    @torch.no_grad()
    def draw(self, labels: Tensor, steps: int, size: int, generator: torch.Generator) -> Tensor:
        """Images in [-1, 1] of classes, without guidance."""
        shape = (len(labels), LATENT_CHANNELS[self.factor], size // self.factor, size // self.factor)
        noise = torch.randn(shape, generator=generator, device=labels.device)
        latents = ld.Sampler("dpmpp_2m", steps=steps).sample(self.denoiser, noise, self.encoder(labels))
        return (latents if self.autoencoder is None else self.autoencoder.decode(latents)).float().clamp(-1, 1)


def seconds(device: torch.device) -> float:
    """Of the processor; where a GPU works, of the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Step(nn.Module):
    """A step of training."""

    def __init__(self, model: Diffusion) -> None:
        """Train `model`."""
        super().__init__()
        self.model = model

    def forward(self, batch: fitting.Batch, step: training.Step) -> Tensor:
        """The denoising loss, `[]`."""
        images, labels = batch
        return self.model.loss(images, labels, step.generator)


def spend(trainer: Trainer, budget: float, device: torch.device) -> float:
    """Train for some seconds, and return how many it were."""
    begin = seconds(device)
    while (spent := seconds(device) - begin) < budget:
        trainer.train(until=trainer.step + EVERY)
    return spent


def autoencoder(factor: int, budget: Budget, run: Run) -> ld.Autoencoder | None:
    """A first stage, KL, that was given or is trained for as many steps as the others; none at f = 1."""
    if factor == 1:
        return None
    if run.arguments.first_stages is not None:
        return first_stage.load(run.arguments.first_stages / f"kl__f___{factor}.safetensors", run.device)
    recipe, folder = first_stage.Recipe("kl", factor), run.checkpoints(f"first_stage_{factor}")
    with run.timed(f"first stage, f = {factor}"):
        return first_stage.train(run.photos, recipe, run.arguments.preset, folder, steps=budget.first_stage_steps)


def measured(model: Diffusion, judge: Classifier, budget: Budget, run: Run) -> tuple[dict[str, float], Tensor]:
    """What the judge says of samples, how many there are in a second, and the samples."""
    held_out = run.photos.validation.spread(budget.samples)
    labels, size = held_out.labels.to(run.device), held_out.pictures.shape[-1]
    generator = torch.Generator(run.device).manual_seed(0)
    begin = seconds(run.device)
    with torch.autocast(run.device.type, torch.bfloat16):
        parts = [model.draw(part, budget.sampling_steps, size, generator) for part in labels.split(100)]
    spent = seconds(run.device) - begin
    images = torch.cat(parts).cpu()
    opinion = {"accuracy": judge.accuracy(images, labels), **judge.compare(images, held_out.images())}
    return opinion | {"samples_a_second": len(labels) / spent}, images


def one_factor(
    first: ld.Autoencoder | None, factor: int, judge: Classifier, budget: Budget, run: Run
) -> dict[str, object]:
    """Train at this factor, measure on the way, save; the samples are drawn as a picture."""
    torch.manual_seed(1)
    model = Diffusion(first, factor, budget.base_channels, len(run.photos.classes)).to(run.device)
    objective = Objective(Step(model), learning_rate=LearningRate(run.preset.learning_rate, warm_up=50))
    trainer, average = fitting.trainer(
        model, objective, run.photos.train, steps=10**9, batch_size=run.preset.batch_size, progress=False
    )
    spent, course, samples = 0.0, [], torch.empty(0)
    for share in SHARES:
        spent += spend(trainer, share * budget.diffusion - spent, run.device)
        opinion, samples = measured(average.module, judge, budget, run)
        course.append({"seconds": spent, "steps": trainer.step, **opinion})
        print(f"f = {factor}:", {name: round(value, 4) for name, value in course[-1].items()}, flush=True)
    average.copy_to(model)
    save(model, run)
    every = max(1, len(samples) // 12)
    figures.grid({f"f = {factor}": to_pixels(samples[::every][:12])}, run.output / f"samples_{factor}.png", title="")
    return {**limit(first, judge, budget, run), "parameters": parameters(model.unet), "course": course}


def limit(first: ld.Autoencoder | None, judge: Classifier, budget: Budget, run: Run) -> dict[str, float]:
    """What the judge says of reconstructions of photographs of the train part: no sample is to be expected closer."""
    trained, held_out = run.photos.train.spread(budget.samples), run.photos.validation.spread(budget.samples)
    images = trained.images() if first is None else first_stage.reconstruct(first, trained.images())
    found = {"accuracy": judge.accuracy(images, trained.labels), **judge.compare(images, held_out.images())}
    return {f"reconstruction_{name}": value for name, value in found.items()}


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def save(model: Diffusion, run: Run) -> None:
    """The model as a `LatentDiffusion`; at f = 1, where nothing is latent, its UNet."""
    path = run.output / f"model_{model.factor}.safetensors"
    if model.autoencoder is None:
        ld.save(model.unet, path)
        return
    whole = ld.LatentDiffusion(
        autoencoder=model.autoencoder,
        unet=model.unet,
        schedule=model.denoiser.schedule,
        condition_encoder=model.encoder,
        prediction="v_prediction",
        image_size=run.photos.train.pictures.shape[-1],
    )
    ld.save(whole, path)


def plot(found: Mapping[int, Mapping[str, Any]], baseline: float, path: Path, unit: str) -> None:
    """Fréchet distance against training time, with the limits set by the first stages, and against throughput."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for number, (factor, one) in enumerate(sorted(found.items())):
        course, colour = one["course"], f"C{number}"
        frechet = [point["frechet"] for point in course]
        left.plot([point["seconds"] for point in course], frechet, "o-", color=colour, label=f"f = {factor}")
        left.axhline(one["reconstruction_frechet"], color=colour, linestyle=":", linewidth=1)
        throughput = course[-1]["samples_a_second"]
        right.plot(throughput, frechet[-1], "o", color=colour, markersize=9)
        right.annotate(f"f = {factor}", (throughput, frechet[-1]), xytext=(6, 6), textcoords="offset points")
    for axis in (left, right):
        axis.axhline(baseline, color="black", linestyle="--", linewidth=1)
        axis.set(ylabel="Fréchet distance, classifier's features", yscale="log")
        axis.grid(alpha=0.3)
        axis.set_yticks([1, 2, 5, 10, 20, 50])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    left.set(xlabel=f"training of the diffusion model, seconds of the {unit}")
    right.margins(0.2)
    right.set(xlabel=f"samples a second of the {unit}", xscale="log")
    speeds = [one["course"][-1]["samples_a_second"] for one in found.values()]
    right.set_xticks(speeds, [f"{speed:.0f}" for speed in speeds])
    right.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    left.plot([], [], "k:", label="reconstructions")
    left.plot([], [], "k--", label="photographs of the train part")
    left.legend(fontsize=8, loc="lower left", framealpha=1)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def together(run: Run) -> dict[int, dict[str, Any]]:
    """What stands in the output folder, of this run and of earlier ones."""
    files = {int(path.stem.removeprefix("factor_")): path for path in run.output.glob("factor_*.json")}
    return {factor: json.loads(path.read_text()) for factor, path in sorted(files.items())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train at each factor, measure, plot."""
    parser = common.parser(__doc__)
    parser.add_argument("--first-stages", type=Path, help="folder of those that examples/first_stage/compare.py wrote")
    parser.add_argument("--factors", type=int, nargs="+", choices=LATENT_CHANNELS, default=list(LATENT_CHANNELS))
    run = common.start(parser.parse_args(arguments))
    judge, budget = common.judge(run), BUDGETS[run.arguments.preset]
    for factor in run.arguments.factors:
        if run.arguments.resume and factor in together(run):
            continue
        first = autoencoder(factor, budget, run)
        with run.timed(f"f = {factor}"):
            one = one_factor(first, factor, judge, budget, run)
        (run.output / f"factor_{factor}.json").write_text(json.dumps(one, indent=2) + "\n")
    trained, held_out = run.photos.train.spread(budget.samples), run.photos.validation.spread(budget.samples)
    baseline = judge.compare(trained.images(), held_out.images())
    run.results |= {"photographs of the train part": baseline, "factors": together(run)}
    unit = "clock" if run.device.type == "cuda" else "processor"
    plot(together(run), baseline["frechet"], run.output / "tradeoff.png", unit)
    run.finish()


if __name__ == "__main__":
    main()
