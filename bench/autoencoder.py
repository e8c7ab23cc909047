"""Encode and decode an image of 256 x 256 points: the published first stage with half of its channels."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.goals import Case, Goal
from bench.nets import channels_last, diffusers_autoencoder, inference
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import Call
from latentdiff import Autoencoder

REASON = "four fifths of the time are convolutions, the same on both sides and at nine tenths of the matrix rate"
GOALS = (
    Goal("diffusers / ours, time", cpu=1.15, cuda=1.2, reason=REASON),
    Goal("diffusers, channels last / ours, time", cpu=1.15, cuda=1.2, reason=REASON),
)


def run(settings: Settings) -> list[Case]:
    """Both directions."""
    base, side = (32, 32) if settings.quick else (64, 256)
    autoencoder = Autoencoder(base_channels=base, value_range=None).to(settings.device, settings.dtype).eval()
    image = torch.randn(1, 3, side, side, device=settings.device).to(settings.dtype)
    latent = torch.randn(1, 4, side // 8, side // 8, device=settings.device).to(settings.dtype)
    return [_case("encode", autoencoder, image, settings), _case("decode", autoencoder, latent, settings)]


def _case(direction: str, autoencoder: Autoencoder, x: Tensor, settings: Settings) -> Case:
    def own() -> Call:
        if direction == "encode":
            return inference(lambda: autoencoder.encode(x).mode())
        return inference(lambda: autoencoder.decode(x))

    def diffusers(last: bool = False) -> Call:
        peer = diffusers_autoencoder(autoencoder)
        peer = channels_last(peer) if last else peer
        given = x.to(memory_format=torch.channels_last) if last else x
        if direction == "encode":
            return inference(lambda: peer.encode(given).latent_dist.mode())
        return inference(lambda: peer.decode(given).sample)

    contestants = [
        Contestant("ours", own),
        Contestant("diffusers", diffusers),
        Contestant("diffusers, channels last", lambda: diffusers(True)),
    ]
    return race(direction, contestants, settings, goals=GOALS, counted="diffusers")
