"""Train a class-conditional latent diffusion model on small photographs; look at its samples and have them judged.

    python examples/photographs/class_conditional.py --data cifar10-train.zip --output out

The judge is a small classifier that is trained on the same photographs in the same run and sees no sample before it is
done. What it says of samples stands beside what it says of held-out photographs, of reconstructions and of noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import common
import figures
import torch
from classifier import Classifier
from common import Run
from first_stage import Recipe, reconstruct
from photos import to_pixels
from torch import Tensor

import latentdiff as ld

SCALES = (1.0, 2.0)
"""Of guidance; 1 is none."""

DIM = 128
"""Of the vector of a class."""


def build(autoencoder: ld.Autoencoder, run: Run) -> ld.LatentDiffusion:
    """A UNet to whose embedding of time that of the class is added."""
    torch.manual_seed(1)
    unet = ld.UNet(
        in_channels=autoencoder.latent_channels,
        base_channels=run.preset.base_channels,
        channel_multipliers=(2, 2),
        blocks_per_level=run.preset.blocks_per_level,
        head_dim=32,
        embedding_dim=DIM,
        scale_shift_norm=True,
    )
    return ld.LatentDiffusion(
        autoencoder=autoencoder,
        unet=unet,
        schedule=ld.NoiseSchedule.cosine(),
        condition_encoder=ld.ClassEncoder(num_classes=len(run.photos.classes), dim=DIM, routing="embedding"),
        prediction="v_prediction",
        image_size=run.photos.train.pictures.shape[-1],
    ).to(run.device)


def draw(model: ld.LatentDiffusion, labels: Tensor, scale: float, run: Run, *, seed: int = 0) -> Tensor:
    """Pictures of the given classes in [-1, 1], on the CPU; the same for the same seed."""
    sampler = ld.Sampler("dpmpp_2m", steps=run.preset.sampling_steps)
    generator, made = torch.Generator(run.device).manual_seed(seed), []
    for part in labels.split(250):
        with torch.autocast(run.device.type, torch.bfloat16):
            images = model.generate(part.to(run.device), sampler=sampler, guidance_scale=scale, generator=generator)
        made.append(images.float().cpu())
    return torch.cat(made)


def evaluate(model: ld.LatentDiffusion, judge: Classifier, run: Run) -> dict[str, dict[str, float]]:
    """What the judge says of held-out photographs, of reconstructions, of noise, and of samples at each scale."""
    held_out = run.photos.validation.spread(run.preset.evaluated)
    real, labels = held_out.images(), held_out.labels
    trained = run.photos.train.spread(len(held_out))
    shown = {
        "photographs of the train part": (trained.images(), trained.labels),
        "reconstructions of those": (reconstruct(model.autoencoder, trained.images()), trained.labels),
        "uniform noise": (torch.rand(real.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1, labels),
    }
    for scale in SCALES:
        with run.timed(f"sampling, guidance {scale:g}"):
            shown[f"samples, guidance {scale:g}"] = draw(model, labels, scale, run), labels
    return {
        name: {"accuracy": judge.accuracy(images, named), **judge.compare(images, real)}
        for name, (images, named) in shown.items()
    }


def write_pictures(model: ld.LatentDiffusion, run: Run) -> None:
    """Ten samples of each class, and reconstructions."""
    labels = torch.arange(len(run.photos.classes)).repeat_interleave(10)
    for scale in SCALES:
        rows = to_pixels(draw(model, labels, scale, run, seed=1)).unflatten(0, (-1, 10))
        title = f"{run.photos.source}: samples, guidance {scale:g}"
        figures.grid(
            dict(zip(run.photos.classes, rows, strict=True)), run.output / f"samples_{scale:g}.png", title=title
        )
    held_out = run.photos.validation.spread(10).images()
    pair = {"held out": to_pixels(held_out), "decoded": to_pixels(reconstruct(model.autoencoder, held_out))}
    figures.grid(pair, run.output / "reconstructions.png", title="First stage")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw, measure, save."""
    run = common.start(common.parser(__doc__).parse_args(arguments))
    judge = common.judge(run)
    model = build(common.autoencoder(run, Recipe("kl", 4)), run)
    common.train(model, run)
    write_pictures(model, run)
    run.results |= evaluate(model, judge, run)
    run.finish()


if __name__ == "__main__":
    main()
