"""The same UNet under `torch.compile`, both with its defaults."""

from __future__ import annotations

import torch

from bench.goals import Case, Goal
from bench.nets import SMALL, TINY, Peer, UNetSize, inference, inputs, unet
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import Call
from latentdiff import UNet

REASON = (
    "the compiler fuses on both sides what we fuse by hand; what is left is the attention of narrow heads, one "
    "operation of ours"
)
GOALS = (Goal("diffusers, compiled / ours, time", cpu=1.1, cuda=1.1, reason=REASON),)


def run(settings: Settings) -> list[Case]:
    """Batch 1 and 8."""
    size = TINY if settings.quick else SMALL
    ours = unet(size, settings)
    peer = Peer(size, ours)
    return [_case(batch, size, ours, peer, settings) for batch in ((1,) if settings.quick else (1, 8))]


def _case(batch: int, size: UNetSize, ours: UNet, peer: Peer, settings: Settings) -> Case:
    x, t, context = inputs(size, batch, settings)
    backend = "eager" if settings.quick else "inductor"
    torch.compiler.reset()

    def own() -> Call:
        network = torch.compile(ours, backend=backend, dynamic=False)
        return inference(lambda: network(x, t, context))

    def diffusers() -> Call:
        network = torch.compile(peer(), backend=backend, dynamic=False)
        return inference(lambda: network(x, t, context).sample)

    def eager() -> Call:
        return inference(lambda: ours(x, t, context))

    contestants = [
        Contestant("ours", own),
        Contestant("diffusers, compiled", diffusers),
        Contestant("ours, eager", eager),
    ]
    return race(f"batch {batch}", contestants, settings, goals=GOALS, counted="ours, eager")
