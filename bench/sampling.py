"""A whole draw: 25 steps of DPM-Solver++(2M) with classifier-free guidance and a fixed context, one latent."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from bench.goals import Case, Goal
from bench.nets import SMALL, TINY, Peer, channels_last, inference, inputs, unet
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import Call
from latentdiff import Denoiser, NoiseSchedule, Sampler
from latentdiff.guidance import ClassifierFree

REASON = (
    "a draw is its network: the ratio of the UNet at batch 2, where the two halves of guidance go together; keys and "
    "values of the fixed context are 2 % of the work, and what both halves share before they look at it is 3 %"
)
GOALS = (
    Goal("diffusers / ours, time", cpu=1.3, cuda=1.3, reason=REASON),
    Goal("diffusers, channels last / ours, time", cpu=1.3, cuda=1.3, reason=REASON),
)
SCALE = 2.0


def run(settings: Settings) -> list[Case]:
    """One latent, which the network sees twice a step."""
    size, steps = (TINY, 3) if settings.quick else (SMALL, 25)
    network = unet(size, settings)
    with torch.no_grad():
        network.conv_out.weight.mul_(0.1)  # an estimate of noise that does not grow on the way
    peer = Peer(size, network)
    x, _, context = inputs(size, 1, settings)
    nothing = torch.zeros_like(context)

    def own() -> Call:
        guided = ClassifierFree(Denoiser(network, NoiseSchedule.scaled_linear()), SCALE, negative=nothing)
        sampler = Sampler("dpmpp_2m", times=[*_scheduler(steps).timesteps.tolist(), -1])
        return inference(lambda: sampler.sample(guided, x, context))

    def diffusers(last: bool = False) -> Call:
        network = channels_last(peer()) if last else peer()
        scheduler = _scheduler(steps)
        both = torch.cat([nothing, context])

        def walk() -> Tensor:
            scheduler.set_timesteps(steps)
            latent = x
            for t in scheduler.timesteps:
                twice = torch.cat([latent, latent])
                twice = twice.to(memory_format=torch.channels_last) if last else twice
                without, guided = network(twice, t, encoder_hidden_states=both, return_dict=False)[0].chunk(2)
                latent = scheduler.step(without + SCALE * (guided - without), t, latent, return_dict=False)[0]
            return latent

        return inference(walk)

    contestants = [
        Contestant("ours", own),
        Contestant("diffusers", diffusers),
        Contestant("diffusers, channels last", lambda: diffusers(True)),
    ]
    tolerance = 1e-2 if settings.dtype == torch.float32 else 0.2  # the peer's tables are float32, over all steps
    return [race(f"{steps} steps", contestants, settings, goals=GOALS, tolerance=tolerance)]


def _scheduler(steps: int) -> Any:
    diffusers: Any = importlib.import_module("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", lower_order_final=False
    )
    scheduler.set_timesteps(steps)
    return scheduler
