"""Train a latent diffusion model that fills holes in photographs; measure it beside fillings that need no training.

    python examples/photographs/inpainting.py --data cifar10-train.zip --output out

Two ways with one model. As in the paper (Rombach et al. 2022, arXiv:2112.10752, section 4.5) the photograph without
what is in the hole, and the hole, stand beside the noisy latents; a smooth filling stands for what is missing. And with
the mask in the loop: the model without its condition, an unconditional one, fills the hole while the sampler puts back
what is known after each step (`known`, `mask` and `resamples` of `ld.Sampler`; Lugmayr et al. 2022, arXiv:2201.09865),
which needs no training for holes. Outside the hole the result is the photograph itself, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import common
import drawing
import figures
import fitting
import numpy as np
import photos
import torch
from classifier import Classifier
from common import Run
from first_stage import WIDER, Recipe, reconstruct
from photos import to_images, to_pixels
from skimage.restoration import inpaint_biharmonic
from torch import Tensor, nn
from torch.nn import functional as F

import latentdiff as ld
from latentdiff.training import Step

RESAMPLES = 3
"""How often a step is made with the mask in the loop."""

STEPS = {"cpu": 1000}
"""Of training the diffusion model by preset, where they are not those of all tasks."""

DRAWS = 8
"""Samples whose mean is looked at."""

SMALLER = 4
"""By how much large photographs are made smaller."""


def holes(count: int, size: int, seed: int) -> Tensor:
    """Random holes `[count, 1, size, size]`, bool: two rectangles of a fifth to half a side each, which may overlap."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(size // 5, size // 2 + 1, (count, 2, 2), generator=generator)
    starts = (torch.rand(count, 2, 2, generator=generator) * (size + 1 - sides)).long()
    places = torch.arange(size)
    inside = (places >= starts[..., None]) & (places < (starts + sides)[..., None])  # [count, rectangles, axis, size]
    return (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).any(1, keepdim=True)


def smooth(images: Tensor, hole: Tensor, rounds: int = 4) -> Tensor:
    """The hole filled smoothly with what stands around it: about a membrane, a solution of Laplace's equation.

    From coarse to fine (Gortler et al. 1996, The Lumigraph, section 3.4): what is known is averaged to half the size
    until nothing is missing there; on the way back each missing pixel starts from the coarser picture, and `rounds`
    times becomes the mean of its four neighbours. All values are means of known ones.

    Args:
        images: `[batch, channels, height, width]`; what is in the hole has no influence.
        hole: `[batch, 1, height, width]`, bool.
        rounds: Of taking means.

    Returns:
        Images of the same shape; outside the hole they are those that were given.
    """
    if not hole.any() or max(images.shape[2:]) < 2:
        return images
    kernel = [min(2, n) for n in images.shape[2:]]
    known = F.avg_pool2d((~hole).to(images), kernel)
    coarse = F.avg_pool2d(images.masked_fill(hole, 0.0), kernel) / known.clamp_min(0.25)
    guess = F.interpolate(smooth(coarse, known == 0, rounds), size=images.shape[2:], mode="bilinear")
    filled = torch.where(hole, guess, images)
    for _ in range(rounds):
        x = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        mean = (x[..., 1:-1, 2:] + x[..., 1:-1, :-2] + x[..., 2:, 1:-1] + x[..., :-2, 1:-1]) / 4
        filled = torch.where(hole, mean, filled)
    return filled


def seamless(made: Tensor, images: Tensor, hole: Tensor) -> Tensor:
    """Pictures that meet the photographs at the hole's edge; outside they are the photographs.

    The difference on the edge goes on smoothly into the hole (Pérez, Gangnet and Blake 2003, Poisson Image Editing,
    ACM TOG 22(3), equation 6): a tint of the first stage goes, detail stays. Nothing is looked at but known pixels.
    """
    return torch.where(hole, (made + smooth(images - made, hole)).clamp(-1, 1), images)


def given(autoencoder: ld.Autoencoder, images: Tensor, hole: Tensor) -> dict[str, Tensor]:
    """What the model is told: the latents of the photograph, its hole filled smoothly, and where to make latents.

    Grey in the hole would shift known latents more, since the encoder's norms take means over the whole picture. A
    latent is to be made as soon as one of its pixels is missing.
    """
    with torch.no_grad():
        latents = autoencoder.encode(smooth(images, hole)).mode()
    return {"image": latents, "mask": F.max_pool2d(hole.float(), autoencoder.downsampling_factor)}


def build(autoencoder: ld.Autoencoder, run: Run) -> ld.LatentDiffusion:
    """A UNet of convolutions alone; one photograph in five it sees without condition."""
    torch.manual_seed(1)
    encoder = ld.SpatialEncoder(
        in_channels=autoencoder.latent_channels, has_mask=True, mask_range=(-1.0, 1.0), dropout=0.2
    )
    return common.with_map_beside(autoencoder, encoder, (2, 2), run)


class Filling(nn.Module):
    """A step of training: the denoising loss, with other holes each time."""

    def __init__(self, model: ld.LatentDiffusion) -> None:
        """Train `model`."""
        super().__init__()
        self.model = model

    def forward(self, batch: fitting.Batch, step: Step) -> Tensor:
        """The loss, `[]`."""
        images, _ = batch
        hole = holes(len(images), images.shape[-1], step.number).to(images.device)
        return self.model.loss(images, given(self.model.autoencoder, images, hole), generator=step.generator)


def fill(model: ld.LatentDiffusion, images: Tensor, hole: Tensor, run: Run, *, seed: int = 0) -> Tensor:
    """Pictures in [-1, 1] for photographs with holes, on the CPU, by the model that is told of the hole.

    They are the model's everywhere: `torch.where` or `seamless` takes what is in the hole.
    """
    sampler = ld.Sampler("dpmpp_2m", steps=run.preset.sampling_steps)
    generator, made = torch.Generator(run.device).manual_seed(seed), []
    for x, missing in zip(images.split(250), hole.split(250), strict=True):
        with torch.autocast(run.device.type, torch.bfloat16):
            y = given(model.autoencoder, x.to(run.device), missing.to(run.device))
            made.append(model.generate(y, size=x.shape[2:], sampler=sampler, generator=generator).float().cpu())
    return torch.cat(made)


@torch.no_grad()
def fill_in_the_loop(
    model: ld.LatentDiffusion, images: Tensor, hole: Tensor, run: Run, *, resamples: int, seed: int = 0
) -> Tensor:
    """The same by the model that is told nothing, what is known put back after each step."""
    sampler = ld.Sampler("ddim", steps=run.preset.sampling_steps)
    generator, made, encoder = torch.Generator(run.device).manual_seed(seed), [], model.condition_encoder
    if encoder is None:
        raise ValueError("model must have been trained without its condition now and then, got one without conditions")
    for x, missing in zip(images.split(250), hole.split(250), strict=True):
        with torch.autocast(run.device.type, torch.bfloat16):
            y = given(model.autoencoder, x.to(run.device), missing.to(run.device))
            latents = sampler.sample(
                model.denoiser,
                torch.randn(y["image"].shape, generator=generator, device=run.device),
                encoder.null(len(x)).expand(tuple(y["image"].shape[2:])),
                generator=generator,
                known=y["image"],
                mask=y["mask"],
                resamples=resamples,
            )
            made.append(model.autoencoder.clamp(model.decode(latents)).float().cpu())
    return torch.cat(made)


def mean_colour(images: Tensor, hole: Tensor) -> Tensor:
    """The hole filled with the mean of what is known: a baseline."""
    known = ~hole
    mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
    return torch.where(hole, mean, images)


def biharmonic(images: Tensor, hole: Tensor) -> Tensor:
    """The hole filled as smoothly as can be (scikit-image's `inpaint_biharmonic`): a baseline."""
    made = [
        inpaint_biharmonic(x.movedim(0, -1).double().numpy(), missing[0].numpy(), channel_axis=-1)
        for x, missing in zip(images, hole, strict=True)
    ]
    filled = torch.from_numpy(np.stack(made)).movedim(-1, 1).float().clamp(-1, 1)
    return torch.where(hole, filled, images)


def error_in_hole(made: Tensor, images: Tensor, hole: Tensor) -> dict[str, float]:
    """Differences from the photograph, over all missing pixels, in grey levels of 256."""
    difference = 127.5 * (made - images).masked_select(hole)
    root = difference.square().mean().sqrt()
    return {"mean_error": difference.abs().mean().item(), "root_mean_square_error": root.item()}


def by_place(made: Tensor, images: Tensor, hole: Tensor) -> dict[str, float]:
    """Mean errors at the hole's edge, missing pixels that have a known neighbour, and further in than two pixels."""
    edge = hole & (F.max_pool2d((~hole).float(), 3, 1, 1) > 0)
    middle = hole & (F.max_pool2d((~hole).float(), 5, 1, 2) == 0)
    places = {"edge": edge, "middle": middle}
    return {f"mean_error_{name}": error_in_hole(made, images, place)["mean_error"] for name, place in places.items()}


def evaluate(model: ld.LatentDiffusion, judge: Classifier, run: Run) -> dict[str, object]:
    """Errors in the hole, and what the judge says of the whole, for each filling."""
    held_out = run.photos.validation.spread(2 * run.preset.evaluated)
    pictures, others = held_out.pictures[::2], to_images(held_out.pictures[1::2])
    real, labels = to_images(pictures), held_out.labels[::2]
    hole = holes(len(real), real.shape[-1], seed=2**31)
    shown = {"given": real.masked_fill(hole, 0.0), "mean colour": mean_colour(real, hole)}
    shown["smooth, what the model is told"] = smooth(real, hole)
    with run.timed("biharmonic"):
        shown["biharmonic"] = biharmonic(real, hole)
    with run.timed(f"sampling, told of the hole, {DRAWS} times"):
        draws = torch.stack([fill(model, real, hole, run, seed=seed) for seed in range(DRAWS)])
    shown["told of the hole, seams left"] = torch.where(hole, draws[0], real)
    shown["told of the hole"] = seamless(draws[0], real, hole)
    shown[f"told of the hole, means of {DRAWS}"] = seamless(draws.mean(0), real, hole)
    for resamples in (1, RESAMPLES):
        with run.timed(f"sampling, in the loop, {resamples}"):
            made = fill_in_the_loop(model, real, hole, run, resamples=resamples)
        shown[f"mask in the loop, resamples={resamples}"] = seamless(made, real, hole)
    inside = seamless(reconstruct(model.autoencoder, real), real, hole)
    shown |= {"the hole by the first stage": inside, "photographs themselves": real}
    every = max(1, len(real) // 12)
    rows = {name: to_pixels(images[::every][:12]) for name, images in shown.items()}
    figures.grid(rows, run.output / "inpainting.png", title=f"{run.photos.source}: holes filled")
    known = (~hole).expand_as(pictures)
    return {
        "share_missing": hole.double().mean().item(),
        "known_pixels_exact": all(torch.equal(to_pixels(x)[known], pictures[known]) for x in shown.values()),
        **{
            name: error_in_hole(images, real, hole)
            | by_place(images, real, hole)
            | {"accuracy": judge.accuracy(images, labels)}
            | judge.compare(images, others)
            for name, images in shown.items()
        },
    }


def large(model: ld.LatentDiffusion, run: Run) -> dict[str, float]:
    """Large photographs, made four times smaller, with their own holes: a picture, and the errors in them."""
    columns: dict[str, list[Tensor]] = {}
    errors: dict[str, list[float]] = {}
    for photograph in photos.large(run.arguments.photographs)[: 1 if run.arguments.preset == "smoke" else None]:
        real, hole = smaller(photograph)
        shown = {"given": torch.where(hole, torch.ones(()), real), "biharmonic": biharmonic(real, hole)}
        shown["told of the hole"] = seamless(fill(model, real, hole, run), real, hole)
        in_the_loop = fill_in_the_loop(model, real, hole, run, resamples=RESAMPLES)
        shown["mask in the loop"] = seamless(in_the_loop, real, hole)
        shown["photograph"] = real
        for name, images in shown.items():
            columns.setdefault(name, []).append(to_pixels(images)[0])
            errors.setdefault(name, []).append(error_in_hole(images, real, hole)["mean_error"])
    drawing.table({name: parts[:4] for name, parts in columns.items()}, run.output / "large.png")
    return {name: sum(each) / len(each) for name, each in errors.items() if name not in {"given", "photograph"}}


def smaller(photograph: photos.Large) -> tuple[Tensor, Tensor]:
    """A photograph `[1, 3, height, width]` in [-1, 1] and its hole `[1, 1, height, width]`, at a quarter of their size.

    Sizes are multiples of 8 afterwards; a pixel is missing as soon as a part of it is.
    """
    height, width = (n // (8 * SMALLER) * 8 * SMALLER for n in photograph.picture.shape[1:])
    picture = to_images(photograph.picture[None, :, :height, :width])
    hole = F.max_pool2d(photograph.hole[None, :, :height, :width].float(), SMALLER) > 0
    return F.avg_pool2d(picture, SMALLER), hole


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, fill, measure, save."""
    parser = common.parser(__doc__)
    parser.add_argument("--photographs", type=Path, help="folder of large photographs, and of masks <name>_mask.png")
    run = common.start(parser.parse_args(arguments), STEPS)
    judge = common.judge(run)
    first = common.autoencoder(run, Recipe("kl", 4), **WIDER.get(run.arguments.preset, {}))
    model = build(first, run)
    common.train(model, run, step=Filling(model))
    run.results |= evaluate(model, judge, run)
    run.results["large photographs, mean error in the hole"] = large(model, run)
    run.finish()


if __name__ == "__main__":
    main()
