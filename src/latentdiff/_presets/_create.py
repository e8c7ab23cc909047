"""The published architectures by name."""

from __future__ import annotations

from latentdiff._autoencoder import Autoencoder
from latentdiff._latent_diffusion import LatentDiffusion
from latentdiff._presets._diffusion import DIFFUSION, Diffusion
from latentdiff._presets._first_stages import FIRST_STAGES, FirstStage


def presets() -> dict[str, str]:
    """What `create` can build.

    Returns:
        A line about each architecture, with the name of its published checkpoint, by the architecture's name.
    """
    return {name: f"{preset.about} ({preset.published})" for name, preset in _all().items()}


def create(name: str) -> LatentDiffusion | Autoencoder:
    """Build a published architecture, untrained: a latent diffusion model with all its parts, or a first stage alone.

    Under `torch.device("meta")` it takes no memory. Weights of the same architecture come from `load`.

    Args:
        name: One of `presets()`, or the name of a published checkpoint, such as `"celeba256"`.

    Returns:
        The module, in training mode.

    Raises:
        ValueError: If there is no such name.

    Example:
        >>> from latentdiff import create
        >>> create("kl-8").downsampling_factor
        8
    """
    known = _all()
    for key, preset in known.items():
        if name in {key, preset.published}:
            return preset.build()
    raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")


def _all() -> dict[str, FirstStage | Diffusion]:
    return {**FIRST_STAGES, **DIFFUSION}
