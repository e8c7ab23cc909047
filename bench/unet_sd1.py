"""UNet forward, eager, of the size of Stable Diffusion 1: latent 64 x 64, context 77 x 768, 860 M parameters."""

from __future__ import annotations

from bench.goals import Case, Goal
from bench.nets import SD1, TINY, Peer, unet
from bench.settings import Settings
from bench.unet import eager_case

REASON = (
    "heads have 40 to 160 channels, where attention is torch's kernel on both sides, and at batch 4 layouts of weights"
    ", which a single image gains by, are a small part"
)
GOALS = (Goal("diffusers / ours, time", cpu=1.1, cuda=1.2, reason=REASON),)


def run(settings: Settings) -> list[Case]:
    """Batch 1 and 4."""
    size = TINY if settings.quick else SD1
    ours = unet(size, settings)
    peer = Peer(size, ours)
    batches = (1,) if settings.quick else (1, 4)
    return [eager_case(batch, size, ours, peer, settings, GOALS, is_large=True) for batch in batches]
