"""The architectures of the published zoo, untrained: what each is, as data, and how it is built.

Names say first stage, downsampling factor and data: `vq-4`, `kl-8`, `ldm-vq-4-celebahq`. The names under which the
checkpoints were published (`vq-f4`, `celeba256`, ...) are taken too.
"""

from __future__ import annotations

from latentdiff._presets._create import create as create
from latentdiff._presets._create import presets as presets

__all__ = ["create", "presets"]
