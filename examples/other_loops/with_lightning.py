"""A latent diffusion model in Lightning's trainer (`pip install lightning`).

Run `python examples/other_loops/with_lightning.py --steps 500`.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from digits import build_model, load
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import DataLoader

from latentdiff.training import EMA


class Diffusion(lightning.LightningModule):
    """The model, its loss and its average; the latter is in Lightning's checkpoints, as a part of this."""

    def __init__(self) -> None:
        """Build the model."""
        super().__init__()
        self.model = build_model()
        self.ema = EMA(self.model, decay=0.99)
        self.averaged = self.ema.module
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """The loss of images and labels."""
        loss = self.model.loss(batch[0], batch[1])
        self.losses.append(loss.item())
        return loss

    def on_train_batch_end(self, *arguments: object) -> None:
        """Take the new weights into the average, whose part in evaluation mode it stays."""
        self.ema.update(self.model)

    def on_train_start(self) -> None:
        """Lightning puts all parts into training mode; the average has another use."""
        self.averaged.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keep how many updates the average has had."""
        checkpoint["updates"] = self.ema.updates

    def on_load_checkpoint(self, checkpoint: dict[str, int]) -> None:
        """Go on from there."""
        self.ema.updates = checkpoint["updates"]

    def configure_optimizers(self) -> AdamW:
        """Of the network and the condition encoder: the first stage is frozen."""
        return AdamW([weight for weight in self.parameters() if weight.requires_grad], lr=1e-3)


def main(steps: int) -> list[float]:
    """Train, and return the losses."""
    lightning.seed_everything(0, verbose=False)
    module = Diffusion()
    loader = DataLoader(load(), batch_size=64, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(
        max_steps=steps, gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, loader)
    images = module.averaged.generate(torch.arange(10, device=module.device))
    print(f"loss {module.losses[0]:.3f} -> {sum(module.losses[-10:]) / 10:.3f}; drawn: {list(images.shape)}")
    return module.losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    main(parser.parse_args().steps)
