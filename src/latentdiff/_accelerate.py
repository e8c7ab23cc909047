"""A model where it is fastest, set as suits that place."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from latentdiff._dit import DiT
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._unet import UNet

M = TypeVar("M", bound=nn.Module)


def accelerate(
    model: M,
    device: torch.device | str | None = None,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = False,
) -> M:
    """Move a model to the fastest device and set it for sampling there, in place.

    On a CPU there is nothing to set: networks choose layouts and products by themselves. On CUDA the weights of
    two-dimensional convolutions become channels-last, the layout of tensor cores; the denoising network's weights
    become bfloat16, where the GPU knows it; and what stays in float32 may use TF32 in matrix products, for the whole
    process (`torch.set_float32_matmul_precision("high")`: 10 bits of mantissa in factors, 23 in sums).

    A `Denoiser` computes all but the network in the dtype of the latents, so a bfloat16 network samples with float32
    latents and solvers, and autoencoder and condition encoder keep their dtype. To train, give `dtype=torch.float32`,
    and let `torch.autocast` lower the precision and `torch.optim.AdamW(..., fused=True)` make the step.

    Args:
        model: A `LatentDiffusion`, or a network such as `UNet`, `DiT` or `Autoencoder`.
        device: Where to; None is a GPU of CUDA if there is one, else the CPU.
        dtype: Of the denoising network's weights; None is bfloat16 on a GPU that knows it, else what they are.
        compile: Whether the denoising network compiles when first called, once for each kind of input. Names in state
            dicts stay.

    Returns:
        The model itself.

    Raises:
        TypeError: If `dtype` is not floating.

    Example:
        >>> network = accelerate(UNet(in_channels=4, base_channels=8, channel_multipliers=(1, 2)), "cpu")
        >>> network(torch.zeros(1, 4, 8, 8), 0).shape
        torch.Size([1, 4, 8, 8])
    """
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    device = torch.device(device) if device is not None else _fastest()
    model.to(device)
    network: nn.Module = model.unet if isinstance(model, LatentDiffusion) else model
    if device.type == "cuda":
        _set_for_cuda(model)
        if dtype is None and _may_be_bfloat16(network):
            dtype = torch.bfloat16
    if dtype is not None:
        network.to(dtype)
    if compile:
        network.compile(fullgraph=True)
    return model


def _may_be_bfloat16(network: nn.Module) -> bool:
    """Whether the GPU knows bfloat16 and `network` is in float32, and no first stage, whose images have 8 bits."""
    dtypes = {parameter.dtype for parameter in network.parameters()}
    return torch.cuda.is_bf16_supported() and dtypes == {torch.float32} and isinstance(network, UNet | DiT)


def _set_for_cuda(model: nn.Module) -> None:
    torch.set_float32_matmul_precision("high")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # documented, not declared


def _fastest() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
