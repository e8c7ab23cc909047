"""Take a photograph of more than a megapixel through a trained first stage, whole and in pieces, and show the seams.

    python examples/first_stage/tile.py --model out/kl.safetensors --data photographs/ --output out

The photograph is assembled from the pictures of a folder, four of a size in a square (files ending in `_mask` are left
out); without --data it is two of each of scikit-learn's sample photographs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import figures
import torch
from data import to_bytes, to_images, to_pixels
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

import latentdiff as ld
from latentdiff.evaluation import psnr

TILINGS = {"blended tiles": False, "exact bands": True}
"""Whether the norms' statistics are those of the whole photograph."""


def assemble(folder: Path | None) -> Tensor:
    """Four pictures in a square, uint8 `[3, height, width]`."""
    if folder is None:
        first, second = (to_bytes(Image.fromarray(photo)) for photo in load_sample_images().images)
        return torch.cat([torch.cat([first, second], 2), torch.cat([second, first], 2)], 1)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in {".jpg", ".jpeg", ".png"}]
    photos = [to_bytes(Image.open(f).convert("RGB")) for f in files if not f.stem.endswith("_mask")][:4]
    if len(photos) < 4 or len({photo.shape for photo in photos}) > 1:
        raise ValueError(f"data must be a folder of four pictures of one size, got {len(photos)} in {folder}")
    return torch.cat([torch.cat(photos[:2], 2), torch.cat(photos[2:], 2)], 1)


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What a call returns, on the CPU, and its seconds."""
    start = time.perf_counter()
    result = call().float().cpu()  # which waits for the device
    return result, time.perf_counter() - start


def compare(whole: Tensor, tiled: Tensor) -> dict[str, float]:
    """How far two decoded photographs are apart, in grey levels of 256."""
    difference = 127.5 * (whole - tiled).abs()
    return {
        "largest_difference": difference.max().item(),
        "mean_difference": difference.mean().item(),
        "psnr_against_whole": psnr(tiled, whole).item(),
    }


def magnified(whole: Tensor, tiled: Tensor, gain: float) -> Tensor:
    """The difference as a picture, mean over the colours, bright where it is large."""
    difference = 127.5 * gain * (whole - tiled).abs().mean(1)[0]
    return difference.clamp(0, 255).to(torch.uint8).expand(3, -1, -1)


@torch.no_grad()
def main() -> None:
    """Encode and decode three times, compare, draw."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("out/kl.safetensors"), help="written by main.py")
    parser.add_argument("--data", type=Path, help="folder of pictures of one size")
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--tile", type=int, default=256, help="side of a tile, in pixels")
    parser.add_argument("--gain", type=float, default=4.0, help="by which the picture of differences is magnified")
    parsed = parser.parse_args()
    output: Path = parsed.output
    output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autoencoder = ld.load(parsed.model, device=device)
    if not isinstance(autoencoder, ld.Autoencoder):
        raise TypeError(f"model must hold an Autoencoder, got {type(autoencoder).__name__}")
    photograph = assemble(parsed.data)
    f = autoencoder.downsampling_factor
    photograph = photograph[:, : photograph.shape[1] // f * f, : photograph.shape[2] // f * f]
    images = to_images(photograph[None].to(device))
    results: dict[str, object] = {"height": images.shape[2], "width": images.shape[3], "tile": parsed.tile}
    decoded: dict[str, Tensor] = {}
    tilings = {"whole": None, **{name: ld.Tiling(parsed.tile, exact=exact) for name, exact in TILINGS.items()}}
    for name, tile in tilings.items():
        latents, encoding = timed(lambda tile=tile: autoencoder.encode(images, tile=tile).mode())
        decoded[name], decoding = timed(lambda z=latents, tile=tile: autoencoder.decode(z.to(device), tile=tile))
        figures_of_tiling = {"seconds_encode": encoding, "seconds_decode": decoding}
        if name != "whole":
            figures_of_tiling |= compare(decoded["whole"], decoded[name])
        results[name] = figures_of_tiling | {"psnr": psnr(autoencoder.clamp(decoded[name]), images.cpu()).item()}
    for name, made in decoded.items():
        Image.fromarray(to_pixels(made)[0].movedim(0, -1).numpy()).save(output / f"{name.replace(' ', '_')}.png")
    shown = {"photograph": photograph} | {f"decoded: {name}": to_pixels(made)[0] for name, made in decoded.items()}
    del shown["decoded: exact bands"]  # looks as the whole one
    for name in TILINGS:
        difference = magnified(decoded["whole"], decoded[name], parsed.gain)
        shown[f"{name}: difference from whole, x {parsed.gain:g}"] = difference
    figures.pictures(shown, output / "tiles.png")
    results["seconds_total"] = round(time.perf_counter() - start, 1)
    (output / "tiles.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    print(f"{results['seconds_total']} seconds in all; pictures and figures are in {output.resolve()}")


if __name__ == "__main__":
    main()
