# pyright: strict, reportUnknownMemberType=false
"""A file as somebody who builds on the library would write it; strict type checkers find nothing in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

import latentdiff as ld
from latentdiff.solvers import Evaluation, Solver, Stepped


class Network(nn.Module):
    """A network of one's own: it needs no base class, only the three arguments."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, 3, padding=1)

    @override
    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return torch.tanh(self.mix(x)) * t.reshape(-1, 1, 1).to(x.dtype) / 1000


class ScalarEncoder(ld.ConditionEncoder):
    """An encoder of one's own: a number for each sample, as one token."""

    def __init__(self, *, dim: int, dropout: float = 0.1) -> None:
        super().__init__(dropout=dropout)
        self.dim = dim
        self.project = nn.Linear(1, dim)
        self.nothing = nn.Parameter(torch.zeros(dim))

    @override
    def forward(self, y: object) -> ld.Condition:
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a tensor, got {type(y).__name__}")
        return ld.Condition(context=self.project(y[:, None, None]))

    @override
    def null(self, batch: int) -> ld.Condition:
        return ld.Condition(context=self.nothing.expand(batch, 1, -1))


@dataclass(frozen=True, kw_only=True)
class Plain(Solver):
    """A solver of one's own: DDIM."""

    order: ClassVar[int] = 1

    @override
    def step(self, denoise: Evaluation, x: Tensor, now: ld.Point, to: ld.Point, state: object) -> Stepped:
        denoised = denoise(x, now)
        return Stepped(to.alpha * denoised.sample + to.sigma * denoised.noise, denoised)


@dataclass(frozen=True)
class Halved:
    """A guidance of one's own: a denoiser made of a denoiser."""

    denoiser: ld.Denoise

    @property
    def schedule(self) -> ld.NoiseSchedule:
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> ld.Denoised:
        denoised = self.denoiser(x_t, t, condition)
        return ld.Denoised(denoised.sample / 2, denoised.noise)


def use_the_mathematics_alone() -> Tensor:
    """Another network, trained and sampled in one dimension."""
    schedule = ld.NoiseSchedule.cosine(num_timesteps=100)
    denoiser = ld.Denoiser(Network(3), schedule, prediction="v_prediction")
    output = ld.losses.DiffusionLoss(weighting="min_snr")(denoiser, torch.randn(2, 3, 16))
    output.loss.backward()
    log_snr: float = schedule.log_snr(10.0)
    alphas: Tensor = schedule.alpha(torch.tensor([0, 99]))
    seen: list[float] = [log_snr, *alphas.tolist()]
    sampler = ld.Sampler(Plain(), steps=3)
    steps = sampler.iterate(Halved(denoiser), torch.randn(2, 3, 16), generator=ld.CounterNoise(0))
    seen.extend(step.t for step in steps)
    return sampler.sample(denoiser, torch.randn(2, 3, 16), callback=lambda step: seen.append(step.next_t))


def use_the_networks_alone() -> Tensor:
    """Each block by itself."""
    autoencoder = ld.Autoencoder(in_channels=1, latent_channels=2, base_channels=32, channel_multipliers=(1, 2))
    images = torch.rand(2, 1, 8, 12) * 2 - 1
    latents: Tensor = autoencoder.encode(images).sample()
    reconstruction: Tensor = autoencoder(images).reconstruction
    quantized: ld.Quantized = ld.VectorQuantizer(codebook_size=16, dim=2)(latents)
    attention = ld.CrossAttention(query_dim=32, context_dim=8, num_heads=2, head_dim=16)
    tokens: Tensor = attention(torch.randn(2, 7, 32), torch.randn(2, 5, 8))
    return latents + quantized.latents + 0 * tokens.sum() + 0 * reconstruction.sum()


def use_the_whole(folder: Path) -> Tensor:
    """Train a step, write, read, draw."""
    model = ld.LatentDiffusion(
        autoencoder=ld.Autoencoder(in_channels=1, latent_channels=2, base_channels=32, channel_multipliers=(1, 2)),
        unet=ld.UNet(in_channels=2, base_channels=32, channel_multipliers=(1, 2), context_dim=8),
        schedule=ld.NoiseSchedule.scaled_linear(),
        condition_encoder=ld.ClassEncoder(num_classes=3, dim=8),
    )
    loss: Tensor = model.loss(torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([0, 2]))
    loss.backward()
    ld.save(model, folder / "model.safetensors")
    again = ld.load(folder / "model.safetensors")
    if not isinstance(again, ld.LatentDiffusion):
        raise TypeError("another model was saved")
    sampler = ld.Sampler("ddim", steps=2)
    return again.generate(torch.tensor([1, 2]), size=8, sampler=sampler, guidance_scale=2.0)
