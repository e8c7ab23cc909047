"""Random numbers that do not depend on batch, order or device unless the caller wants them to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff._checks import working_dtype
from latentdiff._typing import Generator, NoiseSource


def draw_noise(
    shape: Sequence[int],
    generator: Generator = None,
    *,
    step: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise.

    A generator draws on its own device and the result is moved, so a CPU generator gives the same noise everywhere.
    Half-precision noise is drawn in float32 and rounded.

    Args:
        shape: `[batch, ...]`.
        generator: One generator for the batch, a list with one for each sample, a `CounterNoise`, or None.
        step: Number of the draw, for `CounterNoise`.
        device: Where the noise goes.
        dtype: Its dtype.

    Returns:
        `shape`.

    Raises:
        ValueError: If a list's length is not the batch size.
        TypeError: If `generator` is none of these.
    """
    device = torch.device(device)
    wide = working_dtype(dtype)
    match generator:
        case None:
            noise = torch.randn(*shape, device=device, dtype=wide)
        case torch.Generator():
            noise = torch.randn(*shape, generator=generator, device=generator.device, dtype=wide)
        case list() | tuple():
            if len(generator) != shape[0]:
                raise ValueError(f"generator must have one entry for each of {shape[0]} samples, got {len(generator)}")
            rows = [torch.randn(*shape[1:], generator=one, device=one.device, dtype=wide) for one in generator]
            noise = torch.stack(rows)
        case NoiseSource():
            noise = generator.normal(shape, step=step, device=device, dtype=wide)
        case _:
            raise TypeError(f"generator must be a torch.Generator, a list of them or CounterNoise, got {generator!r}")
    return noise.to(device=device, dtype=dtype)


def draw_uniform(
    batch: int, generator: Generator = None, *, step: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform numbers in [0, 1), float64 `[batch]`; generators as in `draw_noise`."""
    if generator is None or isinstance(generator, torch.Generator):
        source = torch.device(device) if generator is None else generator.device
        return torch.rand(batch, generator=generator, device=source, dtype=torch.float64).to(device)
    normal = draw_noise((batch, 1), generator, step=step, device=device, dtype=torch.float64)[:, 0]
    uniform: Tensor = torch.special.ndtr(normal)
    return uniform.clamp(max=1 - 2**-53)


@dataclass(frozen=True)
class CounterNoise:
    """Noise as a pure function of (seed, sample, step): Philox 4x32-10 (Salmon et al. 2011) and Box-Muller.

    Sample number i of a batch gets the noise of sample `first_sample + i`, whatever the batch size, chunk, rank or
    order; integer arithmetic, and float64 rounded once at the end, make devices agree.

    Args:
        seed: In 0 ... 2 ** 64 - 1.
        first_sample: Number of the first sample of the batch, in 0 ... 2 ** 32 - 1; for chunk k of size n it is k * n.

    Raises:
        ValueError: If a number is out of range.
    """

    seed: int
    first_sample: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        if not 0 <= self.first_sample < 2**32:
            raise ValueError(f"first_sample must be in [0, 2**32), got {self.first_sample}")

    def normal(self, shape: Sequence[int], *, step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normal noise of `shape` `[batch, ...]` for draw number `step`, in 0 ... 2 ** 32 - 1."""
        return self.normals(shape, [step], device=device)[0].to(dtype)

    def normals(self, shape: Sequence[int], steps: Sequence[int], *, device: torch.device, stream: int = 0) -> Tensor:
        """Several draws at once: float64 `[draws, batch, ...]`.

        Args:
            shape: `[batch, ...]`, of one draw.
            steps: Numbers of the draws, in 0 ... 2 ** 32 - 1.
            device: Where to draw.
            stream: Draws of another stream are independent of those of this one, in 0 ... 2 ** 32 - 1.
        """
        batch, size = shape[0], math.prod(shape[1:])
        # filled in on the device: a copy from the host would wait for it
        draw = torch.stack([torch.full((), step, device=device) for step in steps]).reshape(-1, 1, 1)
        sample = torch.arange(self.first_sample, self.first_sample + batch, device=device).unsqueeze(1)
        block = torch.arange(-(-size // 4), device=device)
        counter = torch.broadcast_tensors(block, sample, draw, torch.full_like(draw, stream))
        words = _philox((counter[0], counter[1], counter[2], counter[3]), self.seed)
        u = [(word.to(torch.float64) + 0.5) * 2.0**-32 for word in words]
        normals = (*_box_muller(u[0], u[1]), *_box_muller(u[2], u[3]))
        return torch.stack(normals, -1).reshape(len(steps), batch, -1)[..., :size].reshape(len(steps), *shape)


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius, angle = torch.sqrt(-2 * torch.log(u)), 2 * math.pi * v
    return radius * torch.cos(angle), radius * torch.sin(angle)


def _philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox 4x32 on 32-bit words held in int64 tensors."""
    mask = 0xFFFFFFFF
    a, b, c, d = counter
    key_0, key_1 = seed & mask, seed >> 32
    for _ in range(10):
        high_0, low_0 = _multiply(0xD2511F53, a)
        high_1, low_1 = _multiply(0xCD9E8D57, c)
        a, b, c, d = high_1 ^ b ^ key_0, low_1, high_0 ^ d ^ key_1, low_0
        key_0, key_1 = (key_0 + 0x9E3779B9) & mask, (key_1 + 0xBB67AE85) & mask
    return a, b, c, d


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit words, without passing 63 bits."""
    low = factor * (word & 0xFFFF)
    high = factor * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
