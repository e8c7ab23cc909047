"""The example of signals and volumes in its shortest setting, its data and what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import latentdiff as ld
from programs import run

EXAMPLE = Path(__file__).parent.parent / "examples" / "any_rank"


def test_the_example_runs_and_writes_models_pictures_and_figures(tmp_path: Path) -> None:
    run(EXAMPLE, EXAMPLE / "main.py", "--preset", "smoke", "--output", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for kind, dims, figure in (("signals", 1, "rate"), ("volumes", 3, "bodies")):
        model = ld.load(tmp_path / f"{kind}.safetensors")
        assert isinstance(model, ld.LatentDiffusion)
        assert model.autoencoder.spatial_dims == model.unet.spatial_dims == dims
        assert (tmp_path / f"{kind}.png").stat().st_size > 10_000
        for row in ("rendered", "first stage", "drawn", "latent noise"):
            assert set(metrics[kind][row]) >= {"spectrum", "values", "told_apart", figure}
        assert metrics[kind]["rendered"]["spectrum"] < metrics[kind]["drawn"]["spectrum"]


MEASURES = """
import math, torch
import data, measuring

torch.manual_seed(0)
seconds = torch.arange(512) / data.RATE
for rate in (55, 72, 110):
    peaks = torch.exp(-0.5 * ((seconds * rate / 60 % 1 - 0.5) / 0.02) ** 2)
    assert abs(measuring.heart_rates(peaks[None, None])[0] - rate) < 0.03 * rate, rate
rates = measuring.heart_rates(data.heartbeats(60, 512, 0))
assert 48 < rates.min() and rates.max() < 122 and rates.std() > 8

volume = torch.full((1, 1, 9, 10, 11), -0.9)
volume[0, 0, 1:3, 1:3, 1:3] = 0.5
volume[0, 0, 5:8, 5:8, 5:8] = 0.5
volume[0, 0, 0, 9, 10] = 1  # a single bright voxel is noise
assert measuring.bodies(volume)[0] == 2
counts = measuring.bodies(data.bodies(40, 16, 0))
assert set(counts) <= {1, 2, 3} and len(set(counts)) >= 2  # bodies may touch

for dims in (1, 2, 3):  # white noise of variance 4 has that power at each frequency
    size = {1: 512, 2: 48, 3: 16}[dims]
    white = measuring.spectra(2 * torch.randn(200, 1, *(size,) * dims))
    level = (10 ** (white / 10)).mean(0)
    level = level[level > 0.01]  # small sizes leave bands without a frequency
    assert len(level) > 7 and (level / 4 - 1).abs().max() < 0.25, level

one, other = data.heartbeats(100, 512, 0), data.heartbeats(100, 512, 1)
same, noise = measuring.compare(one, other), measuring.compare(torch.randn_like(one), other)
assert all(same[name] < noise[name] for name in same), (same, noise)
assert same["told_apart"] < 0.65 and noise["told_apart"] > 0.95
assert torch.equal(data.bodies(3, 8, 5), data.bodies(3, 8, 5))
assert data.bodies(2, 8, 5).shape == (2, 1, 8, 8, 8)
for x in (one, data.bodies(20, 16, 0)):
    assert x.min() >= -1 and x.max() <= 1
"""


def test_measures_know_what_they_are_shown() -> None:
    run(EXAMPLE, "-c", MEASURES)
