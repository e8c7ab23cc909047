"""Blocks for latent diffusion models: any rank, any channels, any size, each usable alone."""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from latentdiff import guidance as guidance
from latentdiff import likelihood as likelihood
from latentdiff import losses as losses
from latentdiff import solvers as solvers
from latentdiff._accelerate import accelerate as accelerate
from latentdiff._attention import CrossAttention as CrossAttention
from latentdiff._autoencoder import Autoencoder as Autoencoder
from latentdiff._autoencoder import AutoencoderOutput as AutoencoderOutput
from latentdiff._brownian import BrownianNoise as BrownianNoise
from latentdiff._checkpoints import export as export
from latentdiff._checkpoints import load as load
from latentdiff._checkpoints import save as save
from latentdiff._code_subset import CodeSubset as CodeSubset
from latentdiff._condition import ClassEncoder as ClassEncoder
from latentdiff._condition import Condition as Condition
from latentdiff._condition import ConditionEncoder as ConditionEncoder
from latentdiff._condition import FrozenEncoder as FrozenEncoder
from latentdiff._condition import LayoutEncoder as LayoutEncoder
from latentdiff._condition import MultiEncoder as MultiEncoder
from latentdiff._condition import SpatialEncoder as SpatialEncoder
from latentdiff._condition import TextEncoder as TextEncoder
from latentdiff._denoised import Denoise as Denoise
from latentdiff._denoised import Denoised as Denoised
from latentdiff._denoiser import Denoiser as Denoiser
from latentdiff._discriminator import PatchDiscriminator as PatchDiscriminator
from latentdiff._distributions import DiagonalGaussian as DiagonalGaussian
from latentdiff._distributions import Gaussian as Gaussian
from latentdiff._distributions import PointMass as PointMass
from latentdiff._dit import DiT as DiT
from latentdiff._doctor import Finding as Finding
from latentdiff._doctor import Report as Report
from latentdiff._doctor import doctor as doctor
from latentdiff._errors import CheckpointError as CheckpointError
from latentdiff._latent_diffusion import LatentDiffusion as LatentDiffusion
from latentdiff._lpips import LPIPS as LPIPS
from latentdiff._module import Module as Module
from latentdiff._noise import CounterNoise as CounterNoise
from latentdiff._noise import draw_noise as draw_noise
from latentdiff._prediction import convert_prediction as convert_prediction
from latentdiff._prediction import denoised_from_prediction as denoised_from_prediction
from latentdiff._prediction import prediction_target as prediction_target
from latentdiff._presets import create as create
from latentdiff._presets import presets as presets
from latentdiff._quantized import Quantized as Quantized
from latentdiff._quantized import Quantizer as Quantizer
from latentdiff._quantizer import VectorQuantizer as VectorQuantizer
from latentdiff._residual_quantizer import ResidualQuantizer as ResidualQuantizer
from latentdiff._sampler import Sampler as Sampler
from latentdiff._sampler import Step as Step
from latentdiff._scalar_quantizer import FiniteScalarQuantizer as FiniteScalarQuantizer
from latentdiff._schedule import NoiseSchedule as NoiseSchedule
from latentdiff._schedule import Point as Point
from latentdiff._tiled_denoiser import TiledDenoiser as TiledDenoiser
from latentdiff._tiling import Tiling as Tiling
from latentdiff._unet import UNet as UNet

if TYPE_CHECKING:
    from latentdiff import evaluation as evaluation
    from latentdiff import testing as testing
    from latentdiff import training as training
else:  # a type checker that saw this would take every name for one of this package

    def __getattr__(name: str) -> object:
        """Import what stands beside the face when it is first asked for (PEP 562)."""
        if name in ("evaluation", "testing", "training"):
            return _import_module(f"latentdiff.{name}")
        raise AttributeError(f"module 'latentdiff' has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "Autoencoder",
    "AutoencoderOutput",
    "BrownianNoise",
    "CheckpointError",
    "ClassEncoder",
    "CodeSubset",
    "Condition",
    "ConditionEncoder",
    "CounterNoise",
    "CrossAttention",
    "Denoise",
    "Denoised",
    "Denoiser",
    "DiT",
    "DiagonalGaussian",
    "Finding",
    "FiniteScalarQuantizer",
    "FrozenEncoder",
    "Gaussian",
    "LPIPS",
    "LatentDiffusion",
    "LayoutEncoder",
    "Module",
    "MultiEncoder",
    "NoiseSchedule",
    "PatchDiscriminator",
    "Point",
    "PointMass",
    "Quantized",
    "Quantizer",
    "Report",
    "ResidualQuantizer",
    "Sampler",
    "SpatialEncoder",
    "Step",
    "TextEncoder",
    "TiledDenoiser",
    "Tiling",
    "UNet",
    "VectorQuantizer",
    "__version__",
    "accelerate",
    "convert_prediction",
    "create",
    "denoised_from_prediction",
    "doctor",
    "draw_noise",
    "evaluation",
    "export",
    "guidance",
    "likelihood",
    "load",
    "losses",
    "prediction_target",
    "presets",
    "save",
    "solvers",
    "testing",
    "training",
]


def __dir__() -> list[str]:
    """The face, with what is imported when it is first asked for."""
    return list(__all__)
