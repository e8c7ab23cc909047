"""Decode an image of 1024 x 1024 points in pieces against whole: the published decoder with a quarter of its channels.

Exact pieces give the untiled image; others differ from it at their seams, so that theirs is another function.
"""

from __future__ import annotations

import torch

from bench.goals import Case, Goal
from bench.nets import diffusers_autoencoder, inference
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import Call
from latentdiff import Autoencoder, Tiling

REASON = (
    "the statistics of a norm are those of the whole image, so half of the convolutions run twice in place of being "
    "kept; blended pieces, which have seams, come near"
)
GOALS = (
    Goal("untiled / ours, time", cpu=1 / 1.1, cuda=1 / 1.1, reason=REASON),
    Goal("ours / untiled, memory", cpu=0.25, cuda=0.25, at_most=True),
)
SEAMS = "pieces with seams"


def run(settings: Settings) -> list[Case]:
    """Exact pieces and blended ones against the whole, and against diffusers."""
    side, tile = (64, 32) if settings.quick else (1024, 256)
    autoencoder = Autoencoder(base_channels=32).to(settings.device, settings.dtype).eval()
    z = torch.randn(1, 4, side // 8, side // 8, device=settings.device).to(settings.dtype)

    def own(size: int | Tiling | None) -> Call:
        return inference(lambda: autoencoder.decode(z, tile=size))

    def diffusers() -> Call:
        peer = diffusers_autoencoder(autoencoder)
        return inference(lambda: peer.decode(z).sample)

    def diffusers_tiled() -> Call:
        peer = diffusers_autoencoder(autoencoder)
        peer.enable_tiling()  # type: ignore[operator]
        return inference(lambda: peer.decode(z).sample)

    exact = [
        Contestant("ours", lambda: own(tile)),
        Contestant("untiled", lambda: own(None)),
        Contestant("diffusers, untiled", diffusers),
    ]
    blended = [
        Contestant("ours", lambda: own(Tiling(tile * 3 // 2, exact=False))),
        Contestant("untiled", lambda: own(None), "without seams"),
        Contestant("diffusers, tiled", diffusers_tiled, SEAMS),
    ]
    pieces = {"exact": exact, "blended": blended}
    return [
        race(f"{side} x {side}, {name} pieces", contestants, settings, goals=GOALS, memory=True)
        for name, contestants in pieces.items()
    ]
