"""What stands between encoder and decoder: a prior, codes, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args

from latentdiff._checks import check_choice
from latentdiff._quantized import Quantizer

Bottleneck: TypeAlias = Literal["kl", "vq", "none"]
"""What holds the latents together: a prior, a codebook, nothing."""

CODEBOOK_OPTIONS: Final[Mapping[str, float | None]] = {
    "codebook_size": None,
    "commitment_weight": 0.25,
    "codebook_weight": 1.0,
    "codebook_decay": None,
    "restart_below": 0.0,
    "cosine_codes": False,
}
"""The arguments of an autoencoder that only `"vq"` has a use for, and their defaults."""


def check_bottleneck(
    bottleneck: Bottleneck | Quantizer, options: Mapping[str, float | None], latent_channels: int
) -> None:
    """Require a known bottleneck that fits the latents, and no options that it has no use for.

    Args:
        bottleneck: A name, or a quantizer.
        options: Values of `CODEBOOK_OPTIONS`.
        latent_channels: Channels of the latents.

    Raises:
        ValueError: If one of these does not hold.
    """
    if isinstance(bottleneck, Quantizer):
        if bottleneck.dim != latent_channels:
            raise ValueError(f"bottleneck must have dim={latent_channels}, the latent_channels, got {bottleneck.dim}")
        name = type(bottleneck).__name__
    else:
        check_choice("bottleneck", bottleneck, get_args(Bottleneck))
        name = repr(bottleneck)
    if bottleneck == "vq":
        if options["codebook_size"] is None:
            raise ValueError("codebook_size must be given with bottleneck='vq', got None")
        return
    for option, default in CODEBOOK_OPTIONS.items():
        if options[option] != default:
            raise ValueError(f"{option} must be {default} with bottleneck={name}, got {options[option]}")
