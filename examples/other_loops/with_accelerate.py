"""A latent diffusion model in a loop of Hugging Face Accelerate (`pip install accelerate`).

Run `accelerate launch examples/other_loops/with_accelerate.py --steps 500`.

Several processes average gradients in the `forward` of what was prepared: so that is the objective's module, whose
`forward` is the loss, not the model itself.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import build_model, load
from torch.utils.data import DataLoader

from latentdiff.training import EMA, SampleNoise, Step, diffusion_objective


def main(steps: int) -> list[float]:
    """Train, and return the losses of this process."""
    accelerator = Accelerator()
    torch.manual_seed(0)  # the same start everywhere
    model = build_model().to(accelerator.device)
    ema = EMA(model, decay=0.99)
    objective = diffusion_objective(model, learning_rate=1e-3)
    loader = DataLoader(load(), batch_size=64, shuffle=True, drop_last=True)
    module, optimizer, loader = accelerator.prepare(objective.module, objective.make_optimizer(), loader)
    set_seed(1, device_specific=True)
    model.train()
    losses: list[float] = []
    while len(losses) < steps:
        for batch in loader:
            number = len(losses)
            noise = SampleNoise(seed=number, first_sample=accelerator.process_index * len(batch[0]))
            loss = module(batch, Step(number, noise))
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            losses.append(loss.item())
            if len(losses) == steps:
                break
    images = ema.module.generate(torch.arange(10, device=accelerator.device))
    accelerator.print(f"loss {losses[0]:.3f} -> {sum(losses[-10:]) / 10:.3f}; drawn: {list(images.shape)}")
    accelerator.end_training()
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
