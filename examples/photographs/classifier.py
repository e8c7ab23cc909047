"""An independent opinion on pictures: a small classifier that sees real photographs alone, and its features."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import fitting
import torch
from photos import Photos
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.evaluation import frechet_distance, precision_recall
from latentdiff.training import Objective, Step


class Classifier(nn.Module):
    """Photographs `[batch, 3, 32, 32]` in [-1, 1] to a score for each class `[batch, classes]`.

    It is trained on real photographs alone, before there is any sample.
    """

    def __init__(self, classes: int, width: int) -> None:
        """Build it, untrained."""
        super().__init__()
        widths = (12, width, width, 2 * width, 2 * width)
        self.layers = nn.Sequential()
        for number, (before, after) in enumerate(pairwise(widths)):
            self.layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
            self.layers.append(nn.BatchNorm2d(after))
            self.layers.append(nn.ReLU())
            if number % 2:
                self.layers.append(nn.MaxPool2d(2))
        self.head = nn.Linear(2 * width, classes)

    def features(self, images: Tensor) -> Tensor:
        """What the head looks at: means of the last maps, `[batch, 2 width]`."""
        return self.layers(F.pixel_unshuffle(images, 2)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Scores before the softmax, `[batch, classes]`."""
        return self.head(self.features(images))

    @torch.no_grad()
    def of_all(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[images, 2 width]` and most likely classes `[images]`, on the CPU."""
        device = self.head.weight.device
        found = [self.features(part.to(device)) for part in images.split(250)]
        return torch.cat(found).cpu(), torch.cat([self.head(part).argmax(1) for part in found]).cpu()

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of `images` that it names as `labels` say."""
        return (self.of_all(images)[1] == labels.cpu()).double().mean().item()

    def compare(self, images: Tensor, real: Tensor) -> dict[str, float]:
        """Fréchet distance, precision and recall of images against real ones, in its features."""
        made, true = self.of_all(images)[0], self.of_all(real)[0]
        precision, recall = precision_recall(made, true)
        return {"frechet": frechet_distance(made, true), "precision": precision, "recall": recall}


class Judging(nn.Module):
    """A step of training: cross-entropy with a twentieth of the labels smoothed away."""

    def __init__(self, model: Classifier) -> None:
        """Train `model`."""
        super().__init__()
        self.model = model

    def forward(self, batch: fitting.Batch, step: Step) -> Tensor:
        """The loss, `[]`."""
        images, labels = batch
        return F.cross_entropy(self.model(images).float(), labels, label_smoothing=0.05)


def train(photos: Photos, *, steps: int, width: int, device: torch.device, batch_size: int = 128) -> Classifier:
    """A classifier of the training part."""
    torch.manual_seed(0)
    model = Classifier(len(photos.classes), width).to(device)
    objective = Objective(Judging(model), learning_rate=fitting.rate(5e-3, steps), weight_decay=1e-2)
    fitting.fit(model, objective, photos.train, steps=steps, batch_size=batch_size)
    return model


def save(model: Classifier, path: Path) -> None:
    """Write its weights."""
    save_file(model.state_dict(), path)


def load(path: Path, device: torch.device) -> Classifier:
    """A classifier that `save` wrote."""
    weights = load_file(path)
    model = Classifier(len(weights["head.bias"]), weights["head.weight"].shape[1] // 2)
    model.load_state_dict(weights)
    return model.to(device).eval()
