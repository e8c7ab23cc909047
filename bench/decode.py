"""Decoding an image of 1024 x 1024 points, whole and in pieces, beside diffusers' `AutoencoderKL` with equal weights.

The decoder is the published one with a quarter of its channels. Seam errors are largest differences from the untiled
image over its largest value; weights are random, so they say little about a trained model, and that exact pieces have
none says the same for any. Sizes of pieces are chosen to take no more memory than the peer's tiles.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from bench.memory import peak_bytes
from bench.timing import compare
from latentdiff import Autoencoder, Tiling

CHANNELS = 32
MULTIPLIERS = (1, 2, 4, 4)
SIDE = 1024


def pair(device: str) -> tuple[Autoencoder, AutoencoderKL]:
    """Both models, decoders equal."""
    own = Autoencoder(base_channels=CHANNELS, channel_multipliers=MULTIPLIERS)
    levels = len(MULTIPLIERS)
    peer = AutoencoderKL(
        block_out_channels=tuple(CHANNELS * multiplier for multiplier in MULTIPLIERS),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=SIDE // 2,
    )
    state = peer.state_dict()
    for name, tensor in own.state_dict().items():
        if name.startswith(("decoder", "post_quant_conv")):
            state[peer_name(name)] = tensor
    peer.load_state_dict(state)
    return own.to(device).eval(), peer.to(device).eval()


def peer_name(name: str) -> str:
    """Diffusers' name of a parameter of our decoder."""
    for ours, theirs in (
        ("norm_out", "conv_norm_out"),
        ("middle.stages.0.block", "mid_block.resnets.0"),
        ("middle.stages.1.block", "mid_block.resnets.1"),
        ("middle.stages.0.attention.norm", "mid_block.attentions.0.group_norm"),
        ("middle.stages.0.attention.to_out", "mid_block.attentions.0.to_out.0"),
        ("middle.stages.0.attention", "mid_block.attentions.0"),
        (".up.", ".up_blocks."),
        (".stages.", ".resnets."),
        (".block.", "."),
        (".shortcut.", ".conv_shortcut."),
        (".resample.", ".upsamplers.0."),
    ):
        name = name.replace(ours, theirs)
    return name


@torch.no_grad()
def run(device: str, rounds: int) -> list[dict[str, object]]:
    """Print a table, and return its rows."""
    own, peer = pair(device)
    rounds = min(rounds, 5)  # of many seconds each
    peer_tiled = copy.deepcopy(peer)
    peer_tiled.enable_tiling()
    z = torch.randn(1, 4, SIDE // 8, SIDE // 8, device=device)
    whole = own.decode(z)
    torch.testing.assert_close(peer.decode(z).sample, whole, rtol=1e-4, atol=1e-5)
    calls: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "whole": (lambda: own.decode(z), lambda: peer.decode(z).sample),
        "exact, 256": (lambda: own.decode(z, tile=256), lambda: peer_tiled.decode(z).sample),
        "blended, 384": (lambda: own.decode(z, tile=Tiling(384, exact=False)), lambda: peer_tiled.decode(z).sample),
    }
    rows: list[dict[str, object]] = []
    print(f"{'pieces':<13} {'peer / ours (quartiles)':>24} {'ours, s':>8} {'MiB':>16} {'seam error':>20}   ours, peer")
    for name, (ours, theirs) in calls.items():
        ratio = compare(ours, theirs, rounds)
        memory = [peak_bytes(call) / 2**20 for call in (ours, theirs)]
        errors = [((call() - whole).abs().max() / whole.abs().max()).item() for call in (ours, theirs)]
        row = {"pieces": name, "ratio": ratio.median, "low": ratio.low, "high": ratio.high, "seconds": ratio.ours}
        rows.append(row | {"mib": memory[0], "mib_peer": memory[1], "error": errors[0], "error_peer": errors[1]})
        print(
            f"{name:<13} {ratio!s:>24} {ratio.ours:>8.2f} {memory[0]:>7.0f} {memory[1]:>8.0f}"
            f" {errors[0]:>10.1e} {errors[1]:>9.1e}"
        )
    return rows
