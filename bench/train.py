"""A training step of the small UNet: forward, backward and AdamW, batch 4; weights and gradients are equal at first."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.goals import Case, Goal
from bench.nets import SMALL, TINY, channels_last, diffusers_unet, inputs, monai_unet, unet
from bench.race import Contestant, race
from bench.settings import Settings
from bench.timing import Call

REASON = (
    "convolutions, products and their gradients are half of the time, the same on both sides, and AdamW, which is that "
    "of torch on both, a tenth"
)
GOALS = (
    Goal("diffusers / ours, time", cpu=1.15, cuda=1.2, reason=REASON),
    Goal("diffusers, channels last / ours, time", cpu=1.15, cuda=1.2, reason=REASON),
    Goal("ours / diffusers, memory", cpu=0.95, cuda=0.9, at_most=True, reason=REASON),
)


def run(settings: Settings) -> list[Case]:
    """One batch."""
    size, batch = (TINY, 2) if settings.quick else (SMALL, 4)
    network = unet(size, settings)
    x, t, context = inputs(size, batch, settings)
    noise = torch.randn_like(x)

    def own(fused: bool = False) -> Call:
        trained = copy.deepcopy(network).train()
        return step(trained, lambda: trained(x, t, context), noise, fused)

    def diffusers(last: bool = False) -> Call:
        trained = copy.deepcopy(diffusers_unet(size, network))  # whose weights were ours, not copies
        trained = (channels_last(trained) if last else trained).train()
        given = x.to(memory_format=torch.channels_last) if last else x
        return step(trained, lambda: trained(given, t, context).sample, noise)

    def monai() -> Call:
        trained = monai_unet(size, settings).train()
        return step(trained, lambda: trained(x, t, context), noise)

    contestants = [
        Contestant("ours", own),
        Contestant("diffusers", diffusers),
        Contestant("diffusers, channels last", lambda: diffusers(True)),
        Contestant("ours, fused AdamW, as `training` has it", lambda: own(True)),
    ]
    if not settings.quick:  # whose import alone is many seconds
        contestants.append(Contestant("MONAI", monai, "same size, other function"))
    # gradients of single precision, summed in another order
    tolerance = 1e-3 if settings.dtype == torch.float32 else 0.2
    return [race(f"batch {batch}", contestants, settings, goals=GOALS, memory=True, tolerance=tolerance)]


def step(network: nn.Module, predict: Callable[[], Tensor], noise: Tensor, fused: bool = False) -> Callable[[], Tensor]:
    """A step that answers with the gradient of the first convolution, which comes through all layers."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=fused or noise.is_cuda)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))

    def run() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        F.mse_loss(predict(), noise).backward()
        assert first.weight.grad is not None  # noqa: S101
        gradient = first.weight.grad.detach()
        optimiser.step()
        return gradient

    return run
