"""UNet forward, eager: widths (64, 128, 256, 256), latent 32 x 32, context 77 x 256."""

from __future__ import annotations

from functools import partial

import torch

from bench.goals import Case, Goal
from bench.nets import SMALL, TINY, Peer, UNetSize, channels_last, inference, inputs, monai_unet, plain_unet, unet
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import Call
from latentdiff import UNet

REASON = (
    "half of the time are convolutions and products at torch's rate, the same on both sides; at batch 1 a seventh and "
    "more is Python's, for some seven hundred calls"
)
GOALS = (
    Goal("diffusers / ours, time", cpu=1.25, cuda=1.3, reason=REASON),
    Goal("diffusers, channels last / ours, time", cpu=1.15, cuda=1.3, reason=REASON),
)
OTHER = "same size, other function"


def run(settings: Settings) -> list[Case]:
    """Batch 1 and 8."""
    size = TINY if settings.quick else SMALL
    ours = unet(size, settings)
    peer = Peer(size, ours)
    return [eager_case(batch, size, ours, peer, settings, GOALS) for batch in ((1, 2) if settings.quick else (1, 8))]


def eager_case(
    batch: int,
    size: UNetSize,
    ours: UNet,
    peer: Peer,
    settings: Settings,
    goals: tuple[Goal, ...],
    *,
    is_large: bool = False,
) -> Case:
    """One batch; a large network meets diffusers only, as there is no memory for more copies."""
    x, t, context = inputs(size, batch, settings)

    def own() -> Call:
        return inference(lambda: ours(x, t, context))

    def diffusers(last: bool) -> Call:
        network = channels_last(peer()) if last else peer()
        given = x.to(memory_format=torch.channels_last) if last else x
        return inference(lambda: network(given, t, context).sample)

    def monai() -> Call:
        network = monai_unet(size, settings)
        return inference(lambda: network(x, t, context))

    def plain() -> Call:
        network = plain_unet(size, settings)
        return inference(lambda: network(x, t))

    contestants = [Contestant("ours", own), Contestant("diffusers", partial(diffusers, False))]
    if not is_large:
        contestants.append(Contestant("diffusers, channels last", partial(diffusers, True)))
    if not is_large and not settings.quick:  # whose imports alone are many seconds
        contestants += [
            Contestant("MONAI", monai, OTHER),
            Contestant("denoising-diffusion-pytorch", plain, f"{OTHER}: linear attention, no context"),
        ]
    return race(f"batch {batch}", contestants, settings, goals=goals, counted="diffusers")
