"""What samples of any rank are measured by: spectra, values, and one figure that only makes sense for the kind."""

from __future__ import annotations

import math

import numpy as np
import torch
from data import RATE
from scipy.ndimage import label
from scipy.stats import wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

BANDS = 16
"""Of frequency."""

FLOOR = 0.03
"""Standard deviation of white noise below whose power differences of spectra do not count."""


def compare(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Distances of samples from real ones, both `[n, 1, *spatial]`: 0, or 50 % for the classifier, is best.

    Returns:
        `spectrum`: root mean square difference of the mean spectra, in decibels. `values`: Wasserstein distance of all
        values. `rate` or `bodies`: Wasserstein distance of the heart rates, in beats a minute, or of the numbers of
        separate bodies. `told_apart`: accuracy of a logistic regression that tells one from the other by spectra and
        quantiles, on folds that it did not see.
    """
    a, b = spectra(samples), spectra(real)
    kind, property_of = ("rate", heart_rates) if samples.ndim == 3 else ("bodies", bodies)
    return {
        "spectrum": (a.mean(0) - b.mean(0)).square().mean().sqrt().item(),
        "values": float(wasserstein_distance(samples.flatten()[::7].numpy(), real.flatten()[::7].numpy())),
        kind: float(wasserstein_distance(property_of(samples), property_of(real))),
        "told_apart": told_apart(samples, real),
    }


def spectra(x: Tensor) -> Tensor:
    """Power in bands of frequency of `[n, 1, *spatial]`, all directions together: `[n, BANDS]`, in decibels.

    White noise of the standard deviation `FLOOR` is added in effect: what is weaker is not seen.
    """
    sizes = x.shape[2:]
    power = torch.fft.fftn(x[:, 0].double() - x.double().mean(), dim=tuple(range(1, 1 + len(sizes)))).abs().square()
    frequencies = torch.meshgrid(*(torch.fft.fftfreq(n).abs() for n in sizes), indexing="ij")
    radius = torch.stack(frequencies).square().sum(0).sqrt()
    band = (radius / 0.5 * BANDS).long().clamp(max=BANDS - 1).flatten()
    sums = torch.zeros(len(x), BANDS, dtype=torch.float64).index_add_(1, band, power.flatten(1))
    density = sums / torch.bincount(band, minlength=BANDS).clamp(min=1) / math.prod(sizes)
    return 10 * torch.log10(density + FLOOR**2)


def heart_rates(signals: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Beats a minute of `[n, 1, length]`: the lag of the highest autocorrelation of the slope between 40 and 130."""
    steep = signals.double().diff().square()  # at the R waves, whatever the drift
    x = F.avg_pool1d(steep, 13, stride=1, padding=6)[:, 0]  # about as wide as beats come early or late
    x = x - x.mean(1, keepdim=True)
    power = torch.fft.rfft(x, n=2 * x.shape[1]).abs().square()
    correlation = torch.fft.irfft(power)  # sums, of fewer pairs at later lags: one beat is preferred to two
    first, last = round(60 / 130 * RATE), round(60 / 40 * RATE)
    lags = correlation[:, first:last].argmax(1) + first
    return np.asarray(60 * RATE / lags.numpy())


def bodies(volumes: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Separate bright bodies in each of `[n, 1, depth, height, width]`, of 4 voxels or more."""
    numbers = []
    for volume in volumes[:, 0].numpy():
        labelled, _ = label(volume > -0.4)
        numbers.append(float((np.bincount(labelled.ravel())[1:] >= 4).sum()))
    return np.array(numbers)


def told_apart(samples: Tensor, real: Tensor) -> float:
    """Accuracy of a classifier that tells samples from real ones by spectra and quantiles, in five folds.

    Lopez-Paz and Oquab 2017, arXiv:1610.06545.
    """
    shares = torch.linspace(0, 1, 21, dtype=torch.float64)
    features = [
        torch.cat([spectra(part), part.flatten(1).double().quantile(shares, dim=1).T], 1).numpy()
        for part in (samples, real)
    ]
    which = np.repeat([0, 1], [len(samples), len(real)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return float(cross_val_score(classifier, np.concatenate(features), which, cv=5).mean())
