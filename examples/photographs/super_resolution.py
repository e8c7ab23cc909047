"""Train a latent diffusion model that makes photographs four times as large; measure it beside bicubic.

    python examples/photographs/super_resolution.py --data cifar10-train.zip --output out

The photograph made small, enlarged to the size of the noisy latents, stands beside them (Rombach et al. 2022,
arXiv:2112.10752, section 4.4). Nothing in the networks but convolutions looks at other places, so that what was learned
on small pictures is applied to crops of large photographs as well, those of --photographs or of scikit-image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
import drawing
import figures
import fitting
import photos
import torch
from classifier import Classifier
from common import Run
from first_stage import WIDER, Recipe, reconstruct
from photos import to_images, to_pixels
from torch import Tensor
from torch.nn import functional as F

import latentdiff as ld
from latentdiff.evaluation import psnr, ssim

FACTOR = 4
"""Of the sizes."""

CROP = 256
"""Side of the crops of large photographs."""

DRAWS = 4
"""Samples whose mean is looked at."""


def shrink(images: Tensor) -> Tensor:
    """Images a quarter as high and wide, without aliasing: bicubic."""
    return F.interpolate(images, scale_factor=1 / FACTOR, mode="bicubic", antialias=True).clamp(-1, 1)


def bicubic(small: Tensor) -> Tensor:
    """Images four times as high and wide: the baseline."""
    return F.interpolate(small, scale_factor=FACTOR, mode="bicubic").clamp(-1, 1)


def consistent(made: Tensor, small: Tensor) -> Tensor:
    """Images changed smoothly, so that made small again they are closer to what was given.

    What the first stage loses or tints comes back so far as the small image has it: a step of back-projection (Irani
    and Peleg 1991, CVGIP 53(3)).
    """
    return (made + F.interpolate(small - shrink(made), scale_factor=FACTOR, mode="bicubic")).clamp(-1, 1)


def build(autoencoder: ld.Autoencoder, run: Run) -> ld.LatentDiffusion:
    """A UNet of convolutions alone, with the small image beside the latents."""
    torch.manual_seed(1)
    doublings = (FACTOR // autoencoder.downsampling_factor).bit_length() - 1  # from its size to that of the latents
    encoder = ld.SpatialEncoder(in_channels=3, num_stages=doublings, factor=2.0, dropout=0.0)
    return common.with_map_beside(autoencoder, encoder, (1, 2, 2), run)


def with_small(batch: fitting.Batch, generator: torch.Generator) -> fitting.Batch:
    """Photographs to train on and the same made small."""
    images, _ = fitting.mirrored(batch, generator)
    return images, shrink(images)


def enlarge(model: ld.LatentDiffusion, small: Tensor, run: Run, *, seed: int = 0) -> Tensor:
    """Images in [-1, 1], four times as high and wide as the small ones, on the CPU; the same for the same seed."""
    sampler = ld.Sampler("dpmpp_2m", steps=run.preset.sampling_steps)
    size = [FACTOR * n for n in small.shape[2:]]
    generator, made = torch.Generator(run.device).manual_seed(seed), []
    for part in small.split(250):
        with torch.autocast(run.device.type, torch.bfloat16):
            images = model.generate(part.to(run.device), size=size, sampler=sampler, generator=generator)
        made.append(images.float().cpu())
    return torch.cat(made)


def closeness(made: Tensor, real: Tensor) -> dict[str, float]:
    """How close to the photographs, and, made small again, to what was given."""
    return {
        "psnr": psnr(made, real).mean().item(),
        "ssim": ssim(made, real).mean().item(),
        "psnr_made_small": psnr(shrink(made), shrink(real)).mean().item(),
    }


def evaluate(model: ld.LatentDiffusion, judge: Classifier, run: Run) -> dict[str, dict[str, float]]:
    """Bicubic, samples, the mean of several, and the first stage, which no sample can be better than, side by side.

    Fréchet distances are those to other photographs than the ones that were made small.
    """
    held_out, others = halves(run)
    real, small = held_out.images(), shrink(held_out.images())
    with run.timed(f"sampling, {DRAWS} times"):
        draws = torch.stack([enlarge(model, small, run, seed=seed) for seed in range(DRAWS)])
    shown = {
        "bicubic": bicubic(small),
        "samples": draws[0],
        "samples, made consistent": consistent(draws[0], small),
        f"means of {DRAWS} samples": draws.mean(0),
        "reconstructions by the first stage": reconstruct(model.autoencoder, real),
        "photographs themselves": real,
    }
    write_pictures({name: images[:: max(1, len(real) // 12)][:12] for name, images in shown.items()}, small, run)
    return {
        name: (closeness(images, real) if name != "photographs themselves" else {})
        | {"accuracy": judge.accuracy(images, held_out.labels)}
        | judge.compare(images, others.images())
        for name, images in shown.items()
    } | {"samples, spread of a pixel": {"std": draws.std(0).mean().item()}}


def halves(run: Run) -> tuple[photos.Labelled, photos.Labelled]:
    """Held-out photographs to make small, and others to compare features with."""
    held_out = run.photos.validation.spread(2 * run.preset.evaluated)
    first, second = (photos.Labelled(held_out.pictures[i::2], held_out.labels[i::2]) for i in (0, 1))
    return first, second


def write_pictures(rows: dict[str, Tensor], small: Tensor, run: Run) -> None:
    """A column for each of some photographs."""
    count = len(next(iter(rows.values())))
    given = {"given": small[:: max(1, len(small) // 12)][:count]}
    pixels = {name: to_pixels(images) for name, images in (given | rows).items()}
    figures.grid(pixels, run.output / "super_resolution.png", title=f"{run.photos.source}: 8 x 8 to 32 x 32 pixels")


def large(model: ld.LatentDiffusion, run: Run) -> dict[str, float]:
    """Crops of large photographs, made small and large again: a picture, and how close they come."""
    found: dict[str, list[dict[str, float]]] = {}
    columns: dict[str, list[Tensor]] = {}
    for photograph in photos.large(run.arguments.photographs)[: 1 if run.arguments.preset == "smoke" else None]:
        side = min(CROP, *(FACTOR * (n // FACTOR) for n in photograph.picture.shape[1:]))
        real = to_images(photograph.crop(side).picture[None])
        made = {"bicubic": bicubic(shrink(real)), "samples": enlarge(model, shrink(real), run)}
        made["samples, made consistent"] = consistent(made["samples"], shrink(real))
        made["reconstructions by the first stage"] = reconstruct(model.autoencoder, real)
        for name, images in made.items():
            found.setdefault(name, []).append(closeness(images, real))
        for name, images in (made | {"photograph": real}).items():
            columns.setdefault(name, []).append(to_pixels(images)[0])
    drawing.table({name: parts[:3] for name, parts in columns.items()}, run.output / "large.png")
    return {
        f"{name}, {measure}": sum(one[measure] for one in each) / len(each)
        for name, each in found.items()
        for measure in each[0]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, enlarge, measure, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--photographs", type=Path, help="folder of large photographs")
    run = common.start(parser.parse_args(arguments))
    judge = common.judge(run)
    first = common.autoencoder(run, Recipe("vq", 2), **WIDER.get(run.arguments.preset, {}))
    model = build(first, run)
    common.train(model, run, transform=with_small)
    run.results |= evaluate(model, judge, run)
    run.results["crops of large photographs"] = large(model, run)
    run.finish()


if __name__ == "__main__":
    main()
