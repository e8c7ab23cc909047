"""The adversary's losses, and the weight that balances it with the reconstruction."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff._checks import check_choice, check_shape, working_dtype

Adversarial: TypeAlias = Literal["hinge", "vanilla"]
"""What a discriminator minimises."""
ADVERSARIAL: Final[tuple[Adversarial, ...]] = get_args(Adversarial)


def discriminator_loss(
    real: Tensor, fake: Tensor, kind: Adversarial = "hinge", weights: Tensor | None = None
) -> Tensor:
    r"""What a discriminator minimises: half of what it misses on real images and half of what it misses on others.

    With \(r\) and \(f\) its answers (logits), `"hinge"` is

    \[ \tfrac12 \left(\overline{\max(0, 1 - r)} + \overline{\max(0, 1 + f)}\right) \]

    (Lim and Ye 2017, arXiv:1705.02894), and `"vanilla"` is binary cross-entropy (Goodfellow et al. 2014,
    arXiv:1406.2661, eq. 1),

    \[ \tfrac12 \left(\overline{\log(1 + e^{-r})} + \overline{\log(1 + e^{f})}\right), \]

    means over the answers of an image, then over images.

    Args:
        real: Answers for real images, `[batch, ...]`.
        fake: Answers for reconstructions, `[batch, ...]`.
        kind: `"hinge"` or `"vanilla"`.
        weights: Of each image in the mean, `[batch]`, not negative; None for equal ones.

    Returns:
        `[]`, float32 at least.

    Raises:
        ValueError: If there is no such kind or a shape does not fit.
    """
    check_choice("kind", kind, ADVERSARIAL)
    check_shape("real", real, "batch ...")
    check_shape("fake", fake, "batch ...", batch=len(real))
    real, fake = real.to(working_dtype(real.dtype)), fake.to(working_dtype(fake.dtype))
    match kind:
        case "hinge":
            missed = F.relu(1 - real), F.relu(1 + fake)
        case "vanilla":
            missed = F.softplus(-real), F.softplus(fake)
    missed_real, missed_fake = (part.reshape(len(real), -1).mean(1) for part in missed)
    by_sample = 0.5 * (missed_real + missed_fake)
    if weights is None:
        return by_sample.mean()
    check_shape("weights", weights, "batch", batch=len(real))
    return (weights * by_sample).sum() / weights.sum()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    reconstruction: Tensor,
    last_layer: Tensor | None = None,
    *,
    delta: float = 1e-4,
    maximum: float = 1e4,
) -> Tensor:
    r"""The weight at which the adversary pulls at the decoder's last layer as hard as the reconstruction does.

    \[ \lambda = \frac{\lVert\nabla_{G_L} L_\mathrm{rec}\rVert}{\lVert\nabla_{G_L} L_\mathrm{GAN}\rVert + \delta} \]

    (Esser et al. 2021, arXiv:2012.09841, eq. 7). Each gradient is taken to the reconstruction in float32 at least,
    scaled to length 1, led on to the last layer and scaled back: its length neither overflows nor vanishes under
    autocast, however small the losses are. Where the last layer has no gradient, as in a frozen decoder, or is not
    given, the gradients are compared at the reconstruction.

    Args:
        reconstruction_loss: `[]`, a function of `reconstruction`.
        adversarial_loss: `[]`, likewise.
        reconstruction: `[batch, channels, *spatial]`, from which both losses were computed.
        last_layer: Weight of the layer that made `reconstruction`, any shape.
        delta: Keeps the quotient finite; the published code has 1e-4, the paper 1e-6.
        maximum: The largest weight.

    Returns:
        `[]`, in [0, maximum], without gradient; 0 where nothing has a gradient, as in evaluation.

    Raises:
        ValueError: If `reconstruction` was not computed from `last_layer`.
    """
    if not (torch.is_grad_enabled() and reconstruction.requires_grad):
        return torch.zeros((), dtype=working_dtype(reconstruction.dtype), device=reconstruction.device)
    if last_layer is not None and not last_layer.requires_grad:
        last_layer = None
    reference = _gradient_norm(reconstruction_loss, reconstruction, last_layer)
    adversary = _gradient_norm(adversarial_loss, reconstruction, last_layer)
    weight: Tensor = (reference / (adversary + delta)).clamp(max=maximum)
    return weight


def _gradient_norm(loss: Tensor, reconstruction: Tensor, last_layer: Tensor | None) -> Tensor:
    """Length of the gradient of `loss` `[]` at `last_layer`, or at `reconstruction`."""
    (gradient,) = torch.autograd.grad(loss, reconstruction, retain_graph=True)
    gradient = gradient.to(working_dtype(gradient.dtype))
    length: Tensor = torch.linalg.vector_norm(gradient)
    if last_layer is None:
        return length
    direction = gradient / length.clamp(min=torch.finfo(length.dtype).tiny)
    found = torch.autograd.grad(
        reconstruction, last_layer, direction.to(reconstruction.dtype), retain_graph=True, allow_unused=True
    )
    led_on = cast("Tensor | None", found[0])
    if led_on is None:
        raise ValueError("last_layer must be a weight from which reconstruction was computed, got one that was not")
    factor: Tensor = torch.linalg.vector_norm(led_on.to(working_dtype(led_on.dtype)))
    return length * factor
