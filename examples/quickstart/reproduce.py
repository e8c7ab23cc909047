"""Load the quickstart's model in a process of its own and draw the grid again: bit for bit the same."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from main import draw_grid
from safetensors.torch import load_file

import latentdiff as ld


def main() -> None:
    """Compare with the samples in the folder given as argument."""
    torch.set_num_threads(1)  # as main.py does: another number may round otherwise
    folder = Path(sys.argv[1])
    model = ld.load(folder / "model.safetensors", device="cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(model, ld.LatentDiffusion):
        raise TypeError(f"{folder} must hold a LatentDiffusion, got {type(model).__name__}")
    same = torch.equal(draw_grid(model), load_file(folder / "samples.safetensors")["samples"])
    print("the saved model draws the same samples, bit for bit" if same else "the saved model draws OTHER samples")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
