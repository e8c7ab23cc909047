"""Compare first stages on photographs that they were not trained on: how far they compress, what they are trained with.

    python examples/first_stage/compare.py --data cifar10-train.zip --output out --table factors
    python examples/first_stage/compare.py --data cifar10-train.zip --output out --table options

The first table is the paper's comparison in small (Rombach et al. 2022, arXiv:2112.10752, table 8): downsampling
factors 1, 2, 4 and 8, KL against a codebook. The second says at f = 4 what each part of the loss and of the codebook
does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import figures
import torch
from main import arguments, measure, prepare, reconstructed, run, shown
from training import Recipe

TABLES: dict[str, dict[str, Recipe]] = {
    "factors": {f"{b.upper()}, f = {f}": Recipe(b, f) for f in (1, 2, 4, 8) for b in ("kl", "vq")},
    "options": {
        "KL, pixels alone": Recipe("kl", perceptual=False, adversary=False),
        "KL, and pyramid": Recipe("kl", adversary=False),
        "KL, and adversary": Recipe("kl", perceptual=False),
        "KL, and both": Recipe("kl"),
        "VQ, pixels alone": Recipe("vq", perceptual=False, adversary=False),
        "VQ, and pyramid": Recipe("vq", adversary=False),
        "VQ, and adversary": Recipe("vq", perceptual=False),
        "VQ, and both": Recipe("vq"),
        "VQ, and both; codes by gradient": Recipe("vq", codes="gradient"),
    },
}

COLUMNS: dict[str, Callable[[Mapping[str, float]], str]] = {
    "numbers in a latent": lambda r: f"{r['latent_numbers']:.0f}",
    "pixel values a number": lambda r: f"{r['pixel_values'] / r['latent_numbers']:.1f}",
    "bits a pixel": lambda r: f"{r['bits_per_pixel']:.3f}" if "bits_per_pixel" in r else "-",
    "PSNR (dB)": lambda r: f"{r['psnr']:.2f}",
    "SSIM": lambda r: f"{r['ssim']:.4f}",
    "Fréchet, random features": lambda r: f"{r['frechet']:.3f}",
    "codes used": lambda r: f"{100 * r['codebook_use']:.1f} %" if "codebook_use" in r else "-",
    "perplexity": lambda r: f"{r['perplexity']:.0f} of {r['codebook_size']:.0f}" if "perplexity" in r else "-",
    "training (s)": lambda r: f"{r['seconds']:.0f}",
}


def markdown(results: Mapping[str, Mapping[str, float]]) -> str:
    """The table, one line a model."""
    lines = [["first stage", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    lines += [[name, *(column(result) for column in COLUMNS.values())] for name, result in results.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def file_name(name: str) -> str:
    """Of a model, from its name in the table."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def main() -> None:
    """Train all, measure all, write the table."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser).add_argument("--table", choices=TABLES, default="factors")
    parsed = parser.parse_args()
    preset, photographs = prepare(parsed)
    rows: dict[str, torch.Tensor] = {"held out": shown(photographs)}
    results: dict[str, dict[str, float]] = {}
    output: Path = parsed.output
    for name, recipe in TABLES[parsed.table].items():
        trained = run(file_name(name), recipe, preset, photographs, parsed)
        rows[name], results[name] = (
            reconstructed(trained.autoencoder, shown(photographs)),
            measure(trained, preset, photographs),
        )
        print(name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    figures.grid(rows, output / f"{parsed.table}.png", title=f"{photographs.source}: {preset.steps} steps each")
    table, total = markdown(results), time.perf_counter() - start
    (output / f"{parsed.table}.md").write_text(table)
    everything = {
        "photographs": photographs.source,
        "preset": parsed.preset,
        "seconds_total": round(total, 1),
        "models": results,
    }
    (output / f"{parsed.table}.json").write_text(json.dumps(everything, indent=2) + "\n")
    print(f"{table}{total:.0f} seconds in all; table and pictures are in {output.resolve()}")


if __name__ == "__main__":
    main()
