"""What the quickstart measures: a classifier's opinion, and distances in the space of its features."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from latentdiff.evaluation import frechet_distance, precision_recall


class Judge:
    """A scikit-learn classifier, trained on real digits only, and its hidden layer as features."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int = 0) -> None:
        """Train on `images` `[n, 1, 8, 8]` with `labels` `[n]`."""
        self.classifier = MLPClassifier((128,), alpha=1e-2, max_iter=400, random_state=seed)
        self.classifier.fit(_pixels(images), labels.numpy())

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of `images` that the classifier names as `labels` say."""
        return float(self.classifier.score(_pixels(images), labels.numpy()))

    def features(self, images: Tensor) -> Tensor:
        """The hidden layer, `[n, 128]`."""
        weight, bias = self.classifier.coefs_[0], self.classifier.intercepts_[0]
        return torch.from_numpy(np.maximum(_pixels(images) @ weight + bias, 0))

    def compare(self, generated: Tensor, real: Tensor) -> dict[str, float]:
        """Precision, recall (k = 3) and Frechet distance of generated against real images."""
        a, b = self.features(generated), self.features(real)
        precision, recall = precision_recall(a, b, neighbours=3)
        return {"precision": precision, "recall": recall, "frechet": frechet_distance(a, b)}


def _pixels(images: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return images.flatten(1).double().numpy()
