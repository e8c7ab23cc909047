"""A latent diffusion model in a plain PyTorch loop: the library's losses are functions, and ask for no trainer.

Run `python examples/other_loops/plain.py --steps 500`.
"""

from __future__ import annotations

import argparse

import torch
from digits import build_model, load
from torch.optim import AdamW
from torch.utils.data import DataLoader

from latentdiff.training import EMA


def main(steps: int) -> list[float]:
    """Train, and return the losses."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model().to(device)
    ema = EMA(model, decay=0.99)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = AdamW(trained, lr=1e-3, fused=True)
    loader, losses = DataLoader(load(), batch_size=64, shuffle=True, drop_last=True), []
    model.train()
    while len(losses) < steps:
        for images, labels in loader:
            loss = model.loss(images.to(device), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            ema.update(model)
            losses.append(loss.item())
            if len(losses) == steps:
                break
    images = ema.module.generate(torch.arange(10, device=device))
    print(f"loss {losses[0]:.3f} -> {sum(losses[-10:]) / 10:.3f}; drawn: {list(images.shape)}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
