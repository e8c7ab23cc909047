"""Checkpoints in the layout of CompVis: latent diffusion models and first stages with their YAML files, there and back.

Names are derived from the module (`_places`), the module from the YAML file (`_compvis_config`). Running averages of
the weights stand below `model_ema.` with all dots of the names dropped; they are what the original samples with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from latentdiff._autoencoder import Autoencoder
from latentdiff._checkpoints._compvis_config import build_module, measures_scale, read_config
from latentdiff._checkpoints._files import read_tensors, write_tensors
from latentdiff._checkpoints._places import Place, autoencoder_places, encoder_places, key_map, unet_places
from latentdiff._checkpoints._report import check_fit
from latentdiff._condition import ClassEncoder, ConditionEncoder, SpatialEncoder, TextEncoder
from latentdiff._errors import CheckpointError
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import JSON
from latentdiff._unet import UNet

UNET_PREFIX: Final = "model.diffusion_model."
FIRST_STAGE: Final = "first_stage_model."
ENCODER: Final = "cond_stage_model."
AVERAGES: Final = "model_ema."
SCALE: Final = "scale_factor"
AVERAGE_COUNTERS: Final = (f"{AVERAGES}decay", f"{AVERAGES}num_updates")
SMALLEST_VARIANCE: Final = 1e-20
"""The original's lower limit of a variance before its logarithm."""

LEFTOVERS: Final = {
    "loss.": "the loss networks of the first stage's training, which a model does not need",
    f"{FIRST_STAGE}loss.": "the same, below a latent diffusion model",
    f"{FIRST_STAGE}{AVERAGES}": "averages of the first stage, which the original never loads there",
    AVERAGES: "averages and their counters: used if they are wanted, else left",
    "betas": "the noise schedule: computed from the YAML file in float64, where the file holds float32",
    "alphas_cumprod": "likewise, with alphas_cumprod_prev",
    "sqrt_": "likewise, four tables",
    "log_one_minus_alphas_cumprod": "likewise",
    "posterior_": "likewise, four tables",
    "lvlb_weights": "weights of the variational bound in a loss, of the schedule too",
    "logvar": "learned weights of time steps in the loss",
    "colorize": "random colours in which training showed label maps",
}
"""What checkpoints hold beside the weights: how its names begin, and why it is passed over."""


def read_compvis(
    path: Path, config: str | os.PathLike[str] | Mapping[str, JSON], *, device: torch.device | str, ema: bool
) -> LatentDiffusion | Autoencoder:
    """The model of a checkpoint and its configuration, in evaluation mode; see `load`."""
    root = read_config(config)
    with torch.device("meta"):
        module = build_module(root)
    found = read_tensors(path)
    places = module_places(module)
    if ema and any(name.startswith(AVERAGES) for name in found.keys() - set(AVERAGE_COUNTERS)):
        places = {key: _averaged(place, module) for key, place in places.items()}
    _check(path, module, places, found)
    state = module.state_dict()
    for key, place in places.items():
        state[key] = found[place.theirs].to(state[key].dtype).reshape(state[key].shape)
    for key, tensor in state.items():
        if key.rpartition(".")[2] == "null_trained":
            state[key] = torch.tensor(_has_null(module), device="cpu")
        elif tensor.is_meta:
            raise CheckpointError(f"{path} has no tensor for {key}")
    module.load_state_dict(state, assign=True)
    if isinstance(module, LatentDiffusion):
        if SCALE in found:
            module.autoencoder.scaling_factor = float(found[SCALE])
        elif measures_scale(root):
            raise CheckpointError(f"{path} must hold {SCALE}, as scale_by_std says", missing=[SCALE])
    module.to(device)
    return module.eval()


def write_compvis(module: nn.Module, path: Path, *, ema: nn.Module | None) -> None:
    """Write a model as the original would; see `export`."""
    tensors = dict[str, Tensor]()
    if isinstance(module, LatentDiffusion):
        tensors |= schedule_buffers(module.schedule)
        tensors |= _scale_buffer(module.autoencoder)
    elif not isinstance(module, Autoencoder):
        raise TypeError(f"model must be a LatentDiffusion or an Autoencoder, got {type(module).__name__}")
    places, state = module_places(module), module.state_dict()
    _check_writable(module, places)
    tensors |= {place.theirs: _with_axes(state[key], place.axes) for key, place in places.items()}
    if isinstance(module, LatentDiffusion) and is_first_stage(module.condition_encoder):
        first_stage = [name for name in tensors if name.startswith(FIRST_STAGE)]
        tensors |= {ENCODER + name.removeprefix(FIRST_STAGE): tensors[name] for name in first_stage}
    if ema is not None:
        tensors |= _averages(module, ema, places)
    write_tensors(path, tensors)


def module_places(module: LatentDiffusion | Autoencoder) -> dict[str, Place]:
    """What each tensor of a model's state is called in a checkpoint, and with which shape."""
    if isinstance(module, Autoencoder):
        return key_map(module.state_dict(), autoencoder_places(module))
    if not isinstance(module.unet, UNet):
        raise TypeError(f"unet must be a UNet to have names in the CompVis layout, got {type(module.unet).__name__}")
    parts = {
        "unet": key_map(module.unet.state_dict(), unet_places(module.unet), UNET_PREFIX),
        "autoencoder": key_map(module.autoencoder.state_dict(), autoencoder_places(module.autoencoder), FIRST_STAGE),
    }
    encoder = module.condition_encoder
    if encoder is not None:
        parts["condition_encoder"] = key_map(encoder.state_dict(), encoder_places(encoder), ENCODER)
    return {f"{part}.{key}": place for part, places in parts.items() for key, place in places.items()}


def is_first_stage(encoder: ConditionEncoder | None) -> bool:
    """Whether the original keeps the first stage twice for this encoder: it is given latents and a mask."""
    return isinstance(encoder, SpatialEncoder) and encoder.has_mask and encoder.to_channels is None


def schedule_buffers(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The tables that the original keeps in a checkpoint, `[T]` each, float32 of float64 arithmetic.

    References:
        Ho et al. 2020, arXiv:2006.11239, eq. 4 and 7.
    """
    betas, alphas_cumprod = schedule.betas, schedule.alphas_cumprod
    before = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    variance = betas * (1 - before) / (1 - alphas_cumprod)
    tables = {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas_cumprod).log(),
        "sqrt_recip_alphas_cumprod": (1 / alphas_cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas_cumprod - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=SMALLEST_VARIANCE).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - alphas_cumprod),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alphas_cumprod),
    }
    return {name: table.float() for name, table in tables.items()}


def _averaged(place: Place, module: nn.Module) -> Place:
    """Where the average of a tensor stands, if it has one: those of the network, or all of a first stage."""
    if isinstance(module, LatentDiffusion) and not place.theirs.startswith(UNET_PREFIX):
        return place
    return place._replace(theirs=AVERAGES + place.theirs.removeprefix("model.").replace(".", ""))


def _check(
    path: Path,
    module: LatentDiffusion | Autoencoder,
    places: Mapping[str, Place],
    found: Mapping[str, Tensor],
) -> None:
    """Require that the file has all that the module needs, and nothing beside that and `LEFTOVERS`."""
    state = module.state_dict()
    wanted = {place.theirs: (*state[key].shape, *(1,) * place.axes) for key, place in places.items()}
    passed_over = [*LEFTOVERS, SCALE]
    if isinstance(module, LatentDiffusion) and is_first_stage(module.condition_encoder):
        passed_over.append(ENCODER)
    raw = {place.theirs for place in module_places(module).values()}  # beside their averages
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in found.items()
        if name in wanted or not (name in raw or name.startswith(tuple(passed_over)))
    }
    check_fit(path, "its configuration", wanted, shapes)


def _has_null(module: LatentDiffusion | Autoencoder) -> bool:
    """Whether a published model learned what no condition is: the empty prompt, or a class for none."""
    encoder = module.condition_encoder if isinstance(module, LatentDiffusion) else None
    return isinstance(encoder, TextEncoder) or (isinstance(encoder, ClassEncoder) and encoder.null_kind == "learned")


def _check_writable(module: LatentDiffusion | Autoencoder, places: Mapping[str, Place]) -> None:
    """Require that the layout has a place for all that the module has learned."""
    own = ("null_trained", "latent_scaling", "latent_shift")
    homeless = [key for key in module.state_dict() if key not in places and key.rpartition(".")[2] not in own]
    if homeless:
        raise ValueError(f"model must have no parts without a place in the CompVis layout, got {', '.join(homeless)}")
    autoencoder = module.autoencoder if isinstance(module, LatentDiffusion) else module
    if autoencoder.shift_factor != 0 or isinstance(autoencoder.scaling_factor, list):
        raise ValueError(
            "model must have one scaling_factor and shift_factor=0, as the CompVis layout holds nothing else, got "
            f"{autoencoder.scaling_factor} and {autoencoder.shift_factor}"
        )


def _scale_buffer(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The latents' scale factor, where the original would hold it in the checkpoint rather than in the YAML file.

    That is where it measured it, in float32; a factor from a YAML file is a decimal number that float32 does not hold.
    """
    factor = torch.tensor(autoencoder.scaling_factor, dtype=torch.float64)
    if factor.ndim or factor == 1 or factor.float().double() != factor:
        return {}
    return {SCALE: factor.float()}


def _averages(module: nn.Module, ema: nn.Module, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The weights of `ema` as averages of those of `module`."""
    state = ema.state_dict()
    if type(ema) is not type(module) or state.keys() != module.state_dict().keys():
        raise ValueError("ema must be the same model with averaged weights, got another one")
    tensors: dict[str, Tensor] = {
        f"{AVERAGES}decay": torch.tensor(0.9999),
        f"{AVERAGES}num_updates": torch.tensor(0, dtype=torch.int32),
    }
    for key, place in places.items():
        averaged = _averaged(place, module)
        if averaged != place:
            tensors[averaged.theirs] = _with_axes(state[key], place.axes)
    return tensors


def _with_axes(tensor: Tensor, axes: int) -> Tensor:
    """`tensor` with `axes` more axes of size 1 at its end."""
    return tensor.reshape(*tensor.shape, *(1,) * axes)
