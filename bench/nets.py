"""The networks that are compared: ours, and peers of the same size, with the same weights where they can be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from bench.settings import Settings
from latentdiff import Autoencoder, UNet
from latentdiff._checkpoints._compvis import key_map
from latentdiff._checkpoints._places import autoencoder_places, unet_places


@dataclass(frozen=True, slots=True)
class UNetSize:
    """A UNet with text: a transformer after each block of all levels but the last.

    Attributes:
        base: Channels at full size.
        multipliers: Channels of each level over `base`.
        heads: Of attention.
        context: Size and number of the context's tokens.
        side: Of the latent.
    """

    base: int
    multipliers: tuple[int, ...]
    heads: int
    context: tuple[int, int]
    side: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.base * multiplier for multiplier in self.multipliers)


SMALL = UNetSize(64, (1, 2, 4, 4), 8, (256, 77), 32)
SD1 = UNetSize(320, (1, 2, 4, 4), 8, (768, 77), 64)
TINY = UNetSize(32, (1, 2), 2, (8, 5), 8)


def unet(size: UNetSize, settings: Settings) -> UNet:
    """Ours, with weights that keep activations near unit size, those that begin at zero too."""
    network = UNet(
        in_channels=4,
        base_channels=size.base,
        channel_multipliers=size.multipliers,
        attention_levels=range(len(size.multipliers) - 1),
        num_heads=size.heads,
        context_dim=size.context[0],
    )
    randomise(network)
    return network.to(settings.device, settings.dtype).eval()


def randomise(module: nn.Module) -> None:
    """Give those weights random values that begin at zero, so that no branch is left out of a comparison."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=(parameter.shape[0] / parameter.numel()) ** 0.5)


def inputs(size: UNetSize, batch: int, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and context."""
    generator = torch.Generator().manual_seed(0)
    dim, length = size.context
    x = torch.randn(batch, 4, size.side, size.side, generator=generator)
    context = torch.randn(batch, length, dim, generator=generator)
    t = torch.linspace(900, 100, batch)
    return x.to(settings.device, settings.dtype), t.to(settings.device), context.to(settings.device, settings.dtype)


def diffusers_unet(size: UNetSize, ours: UNet) -> nn.Module:
    """Diffusers' network with our very weights, without a copy where it names them alike."""
    import diffusers
    from diffusers.loaders import single_file_utils

    plain = len(size.multipliers) - 1
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=size.widths,
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * plain + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * plain,
            attention_head_dim=size.heads,  # the number of heads, there
            cross_attention_dim=size.context[0],
        )
    state = ours.state_dict()
    names = key_map(state, unet_places(ours), "model.diffusion_model.")
    published = {place.theirs: state[key] for key, place in names.items()}
    config = {**theirs.config}
    theirs.load_state_dict(single_file_utils.convert_ldm_unet_checkpoint(published, config), assign=True)
    return theirs.to(next(ours.parameters()).device).eval()


def diffusers_autoencoder(ours: Autoencoder) -> nn.Module:
    """Diffusers' `AutoencoderKL` with our weights."""
    import diffusers
    from diffusers.loaders import single_file_utils

    levels = len(ours.channel_multipliers)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=tuple(ours.base_channels * multiplier for multiplier in ours.channel_multipliers),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=512,
    )
    state = ours.state_dict()
    names = key_map(state, autoencoder_places(ours), "first_stage_model.")
    published = {
        place.theirs: state[key].reshape(*state[key].shape, *(1,) * place.axes) for key, place in names.items()
    }
    theirs.load_state_dict(single_file_utils.convert_ldm_vae_checkpoint(published, dict(theirs.config)))
    return theirs.to(next(ours.parameters()).device, next(ours.parameters()).dtype).eval()


def monai_unet(size: UNetSize, settings: Settings) -> nn.Module:
    """MONAI's network at the same widths, with its own weights."""
    nets: ModuleType = __import__("monai.networks.nets", fromlist=["nets"])
    levels = len(size.multipliers)
    network: nn.Module = nets.DiffusionModelUNet(
        spatial_dims=2,
        in_channels=4,
        out_channels=4,
        num_res_blocks=2,
        channels=size.widths,
        attention_levels=(True,) * (levels - 1) + (False,),
        num_head_channels=tuple(width // size.heads for width in size.widths),
        with_conditioning=True,
        cross_attention_dim=size.context[0],
    )
    return network.to(settings.device, settings.dtype).eval()


def plain_unet(size: UNetSize, settings: Settings) -> nn.Module:
    """The network of denoising-diffusion-pytorch at the same widths, without context, with its own weights."""
    import denoising_diffusion_pytorch

    network: nn.Module = denoising_diffusion_pytorch.Unet(
        dim=size.base, dim_mults=size.multipliers, channels=4, flash_attn=True
    )
    return network.to(settings.device, settings.dtype).eval()


class Peer:
    """Diffusers' network with our weights, built when it is first asked for; an ImportError where it is missing."""

    def __init__(self, size: UNetSize, ours: UNet) -> None:
        self._size, self._ours = size, ours
        self._network: nn.Module | None = None

    def __call__(self) -> nn.Module:
        """The network."""
        if self._network is None:
            self._network = diffusers_unet(self._size, self._ours)
        return self._network


def inference(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`call` without gradients."""

    def run() -> Tensor:
        with torch.inference_mode():
            return call()

    return run


def channels_last(module: nn.Module) -> nn.Module:
    """A copy whose weights lie channels last, as torch's tuning guide recommends."""
    return copy.deepcopy(module).to(memory_format=torch.channels_last)


def millions(module: nn.Module) -> str:
    """How many parameters, for a note."""
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.1f} M parameters"
