"""The loss of the first stage: reconstruction, perception, regularisation and an adversary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, Self, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from latentdiff._autoencoder import AutoencoderOutput
from latentdiff._checks import check_choice, check_count, check_floating, check_shape, working_dtype
from latentdiff._distributions import DiagonalGaussian
from latentdiff._module import Module
from latentdiff._typing import Images
from latentdiff.losses._adversarial import ADVERSARIAL, Adversarial, adaptive_weight, discriminator_loss

Distance: TypeAlias = Literal["l1", "l2"]
Reduction: TypeAlias = Literal["sample", "element"]

ADVERSARIAL_OPTIONS: Final = {"adversarial": "hinge", "discriminator_weight": 0.5, "adaptive": True, "start_step": 0}
"""The arguments that only a discriminator has a use for, and their defaults."""


class Perceptual(Protocol):
    """A perceptual distance, such as `LPIPS` or `PyramidLoss`."""

    def __call__(self, reconstruction: Images, images: Images, /) -> Tensor:
        """The distances `[batch]` of two batches `[batch, channels, *spatial]`, the second one real."""
        ...  # pragma: no cover


class ParameterGroups(NamedTuple):
    """What each of the two optimisers is to train.

    Attributes:
        generator: Those of the autoencoder, and the log-variance of the reconstruction.
        discriminator: Those of the discriminator; none without one.
    """

    generator: list[Tensor]
    discriminator: list[Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class AutoencoderLossOutput:
    """The autoencoder's loss, and its parts without their weights and without gradients.

    Attributes:
        loss: What the generator's step minimises, `[]`.
        reconstruction: Mean absolute or squared error of an element, `[]`.
        perceptual: Mean perceptual distance of a sample, `[]`; 0 without one.
        nll: Reconstruction and perception under the log-variance, per sample or per element, `[]`.
        kl: Nats per sample or per element of the latents, `[]`; 0 without a Gaussian posterior.
        codebook: The codebook's loss, `[]`; 0 without one.
        adversarial: Minus the discriminator's mean answer, `[]`; 0 before its start.
        adversarial_weight: What `adversarial` was multiplied with, `[]`.
    """

    loss: Tensor
    reconstruction: Tensor
    perceptual: Tensor
    nll: Tensor
    kl: Tensor
    codebook: Tensor
    adversarial: Tensor
    adversarial_weight: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DiscriminatorLossOutput:
    """The discriminator's loss, and what it answered.

    Attributes:
        loss: What the discriminator's step minimises, `[]`; 0, with zero gradients, before the start.
        real: Its mean answer for real images, `[]`.
        fake: Its mean answer for reconstructions, `[]`.
    """

    loss: Tensor
    real: Tensor
    fake: Tensor


class AutoencoderLoss(Module):
    r"""What the first stage is trained with: reconstruction, perception, regularisation and an adversary.

    With \(|x - \hat x|\) absolute or squared errors, \(P\) a perceptual distance and \(s\) a learned log-variance, the
    reconstruction costs, in each element,

    \[ \mathrm{nll} = (|x - \hat x| + w_P P(\hat x, x))\, e^{-s} + s, \]

    summed or averaged as `reduction` says: without \(P\) and up to constants, the negative log density of a Laplace
    distribution (`"l1"`), or twice that of a normal one (`"l2"`). Then

    \[ L = \mathrm{nll} + w_\mathrm{KL}\, \mathrm{KL} + w_\mathrm{codes} L_\mathrm{codes} - w_D \lambda
    \overline{D(\hat x)} \]

    with \(\lambda\) of `adaptive_weight`, and \(D\) from `start_step` on (Esser et al. 2021, arXiv:2012.09841, eq. 6;
    Rombach et al. 2022, arXiv:2112.10752, appendix G).

    A step of training is a step for the generator and one for the discriminator, as below. Neither reaches the other's
    parameters: the generator's loss gives the discriminator no gradients and leaves its running statistics alone.
    Nothing is counted here: the caller says which step it is. A perceptual distance that is a module stays in
    evaluation mode, whatever `train` says.

    The published KL models have `reduction="sample"`, `kl_reduction="sample"` and `kl_weight=1e-6`; the published VQ
    models `reduction="element"` and no log-variance (`learn_log_variance=False`).

    Example:
        >>> import latentdiff as ld
        >>> autoencoder = ld.Autoencoder(base_channels=8, channel_multipliers=(1, 2))
        >>> adversary = ld.PatchDiscriminator(num_layers=1, base_channels=8)
        >>> loss = AutoencoderLoss(perceptual=ld.losses.PyramidLoss(), discriminator=adversary)
        >>> optimizers = [torch.optim.Adam(group, lr=1e-4) for group in loss.parameter_groups(autoencoder)]
        >>> images = torch.rand(2, 3, 16, 24) * 2 - 1
        >>> for step in range(2):
        ...     output = autoencoder(images)
        ...     generator = loss.generator_loss(images, output, step=step, last_layer=autoencoder.last_layer)
        ...     discriminator = loss.discriminator_loss(images, output, step=step)
        ...     for part, optimizer in zip((generator, discriminator), optimizers, strict=True):
        ...         optimizer.zero_grad()
        ...         part.loss.backward()
        ...         optimizer.step()
    """

    log_variance: Tensor

    def __init__(
        self,
        *,
        reconstruction: Distance = "l1",
        reduction: Reduction = "element",
        learn_log_variance: bool = True,
        initial_log_variance: float = 0.0,
        perceptual: Perceptual | None = None,
        perceptual_weight: float = 1.0,
        kl_weight: float = 1e-6,
        kl_reduction: Reduction = "element",
        codebook_weight: float = 1.0,
        discriminator: nn.Module | None = None,
        adversarial: Adversarial = "hinge",
        discriminator_weight: float = 0.5,
        adaptive: bool = True,
        start_step: int = 0,
    ) -> None:
        r"""Take the parts.

        Args:
            reconstruction: `"l1"`: absolute errors; `"l2"`: squared ones.
            reduction: Of the reconstruction: `"sample"`, a sum over the elements of an image, which grows with its
                size; `"element"`, their mean. Then the mean over the batch.
            learn_log_variance: Whether \(s\) is a parameter, to be trained with the autoencoder's; else it stays.
            initial_log_variance: \(s\) at the start.
            perceptual: A distance of images; None for none.
            perceptual_weight: On it.
            kl_weight: On the divergence of a Gaussian posterior from its prior.
            kl_reduction: Its unit: `"sample"`, nats of all latents of an image; `"element"`, nats of one of their
                elements. Then the mean over the batch.
            codebook_weight: On the codebook's loss as a whole, `AutoencoderOutput.regularization`; the balance of its
                two terms is the quantizer's.
            discriminator: Maps images to answers `[batch, ...]`, such as `PatchDiscriminator`; None for no adversary.
                The next four are for it only.
            adversarial: What it minimises: `"hinge"` or `"vanilla"`. The generator's side is the same for both.
            discriminator_weight: On the adversary in the generator's loss.
            adaptive: Whether that is multiplied with `adaptive_weight` too.
            start_step: The first step that has an adversary.

        Raises:
            ValueError: If a name is unknown, a number out of range, or an argument has no use.
        """
        super().__init__()
        check_choice("reconstruction", reconstruction, get_args(Distance))
        check_choice("reduction", reduction, get_args(Reduction))
        check_choice("kl_reduction", kl_reduction, get_args(Reduction))
        check_choice("adversarial", adversarial, ADVERSARIAL)
        self.reconstruction: Distance = reconstruction
        self.reduction: Reduction = reduction
        self.learn_log_variance = learn_log_variance
        self.initial_log_variance = initial_log_variance
        self.perceptual: Perceptual | None = perceptual
        self.perceptual_weight = perceptual_weight
        self.kl_weight = kl_weight
        self.kl_reduction: Reduction = kl_reduction
        self.codebook_weight = codebook_weight
        self.discriminator: nn.Module | None = discriminator
        self.adversarial: Adversarial = adversarial
        self.discriminator_weight = discriminator_weight
        self.adaptive = adaptive
        self.start_step = start_step
        self._check_arguments()
        log_variance = torch.tensor(float(initial_log_variance))
        if learn_log_variance:
            self.log_variance = nn.Parameter(log_variance)
        else:
            self.register_buffer("log_variance", log_variance)
        self.train(self.training)

    def _check_arguments(self) -> None:
        for name in ("perceptual", "kl", "codebook", "discriminator"):
            weight: float = getattr(self, f"{name}_weight")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name}_weight must not be negative, got {weight}")
        check_count("start_step", self.start_step, least=0)
        if not math.isfinite(self.initial_log_variance):
            raise ValueError(f"initial_log_variance must be finite, got {self.initial_log_variance}")
        if self.perceptual is None and self.perceptual_weight != 1:
            raise ValueError(f"perceptual_weight must be left at 1 without perceptual, got {self.perceptual_weight}")
        if self.discriminator is None:
            for name, default in ADVERSARIAL_OPTIONS.items():
                if (value := getattr(self, name)) != default:
                    raise ValueError(f"{name} must be left at {default!r} without discriminator, got {value!r}")

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the discriminator; the perceptual distance stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.perceptual, nn.Module):
            self.perceptual.eval()
        return self

    def parameter_groups(self, autoencoder: nn.Module) -> ParameterGroups:
        """The parameters of each of the two optimisers: together, all that are trained.

        Args:
            autoencoder: What the generator's steps train; parameters without gradient are left out.
        """
        own = [self.log_variance] if isinstance(self.log_variance, nn.Parameter) else []
        adversary = [] if self.discriminator is None else list(self.discriminator.parameters())
        return ParameterGroups(
            [p for p in (*autoencoder.parameters(), *own) if p.requires_grad],
            [p for p in adversary if p.requires_grad],
        )

    def is_adversarial(self, step: int) -> bool:
        """Whether there is an adversary at this step."""
        return self.discriminator is not None and step >= self.start_step

    def generator_loss(
        self,
        images: Images,
        output: AutoencoderOutput,
        *,
        step: int | None = None,
        last_layer: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> AutoencoderLossOutput:
        """What the autoencoder's step minimises.

        Args:
            images: `[batch, channels, *spatial]`, what was encoded.
            output: What the autoencoder made of them.
            step: Number of steps made before this one; needed with a discriminator.
            last_layer: The decoder's last weight, any shape, at which `adaptive_weight` compares gradients
                (`Autoencoder.last_layer`, as published); None compares them at the reconstruction.
            weights: Of each sample's reconstruction, `[batch]`; None for 1.

        Returns:
            The loss and its parts, in float32 at least.

        Raises:
            ValueError: If a shape does not fit, or `step` is missing.
            TypeError: If `images` are not floating.
        """
        images, reconstruction = _pair(images, output)
        errors, perceived = self._errors(images, reconstruction)
        elements = images[0].numel() if self.reduction == "sample" else 1
        costs = (errors + self.perceptual_weight * perceived) * (-self.log_variance).exp() + self.log_variance
        nll = elements * costs.mean()
        weighted = nll
        if weights is not None:
            check_shape("weights", weights, "batch", batch=len(images))
            weighted = elements * (weights * costs).mean()
        kl, codebook = self._regularization(output)
        adversarial, adversarial_weight = torch.zeros_like(nll), torch.zeros_like(nll)
        if self.is_adversarial(self._step(step)):
            adversarial = -self._judge(reconstruction).mean()
            adversarial_weight = torch.full_like(nll, self.discriminator_weight)
            if self.adaptive:
                adversarial_weight *= adaptive_weight(nll, adversarial, reconstruction, last_layer)
        loss = weighted + self.kl_weight * kl + self.codebook_weight * codebook + adversarial_weight * adversarial
        parts = (errors.mean(), perceived.mean(), nll, kl, codebook, adversarial, adversarial_weight)
        return AutoencoderLossOutput(loss, *(part.detach() for part in parts))

    def discriminator_loss(
        self, images: Images, output: AutoencoderOutput, *, step: int, weights: Tensor | None = None
    ) -> DiscriminatorLossOutput:
        """What the discriminator's step minimises; the autoencoder gets no gradient.

        Args:
            images: `[batch, channels, *spatial]`, what was encoded.
            output: What the autoencoder made of them.
            step: Number of steps made before this one.
            weights: Of each sample in the mean, `[batch]`; None for equal ones.

        Returns:
            The loss and the mean answers, in float32 at least.

        Raises:
            ValueError: If there is no discriminator or a shape does not fit.
            TypeError: If `images` are not floating.
        """
        if self.discriminator is None:
            raise ValueError("discriminator must be given to a loss that is to train one, got None")
        images, reconstruction = _pair(images, output)
        real: Tensor = self.discriminator(images.detach())
        fake: Tensor = self.discriminator(reconstruction.detach())
        loss = discriminator_loss(real, fake, self.adversarial, weights)
        if not self.is_adversarial(step):
            loss = 0 * loss
        return DiscriminatorLossOutput(loss, real.detach().mean(), fake.detach().mean())

    def _errors(self, images: Images, reconstruction: Images) -> tuple[Tensor, Tensor]:
        """Mean error of an element and perceptual distance of each sample: `[batch]` both."""
        differences = images - reconstruction
        errors = differences.abs() if self.reconstruction == "l1" else differences.square()
        errors = errors.flatten(1).mean(1)
        if self.perceptual is None:
            return errors, torch.zeros_like(errors)
        perceived = self.perceptual(reconstruction, images)
        check_shape("perceptual", perceived, "batch", batch=len(images))
        return errors, perceived.to(errors.dtype)

    def _regularization(self, output: AutoencoderOutput) -> tuple[Tensor, Tensor]:
        """The divergence in its unit, and the codebook's loss: of these two, a bottleneck has at most one."""
        if isinstance(output.posterior, DiagonalGaussian):
            kl = output.posterior.kl(reduction=self.kl_reduction).mean()
            return kl, torch.zeros_like(kl)
        return torch.zeros_like(output.regularization), output.regularization

    def _judge(self, images: Images) -> Tensor:
        """The discriminator's answers `[batch, ...]`, without gradients to its weights or change of its buffers."""
        discriminator = cast(nn.Module, self.discriminator)
        weights = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
        answers: Tensor = functional_call(discriminator, weights | buffers, (images,))
        return answers.to(working_dtype(answers.dtype))

    def _step(self, step: int | None) -> int:
        if step is None and self.discriminator is not None:
            raise ValueError("step must be given to a loss with a discriminator, got None")
        return step or 0


def _pair(images: Images, output: AutoencoderOutput) -> tuple[Images, Images]:
    """Images and reconstruction, checked, in float32 at least."""
    reconstruction = output.reconstruction
    check_floating("images", images)
    check_shape("images", images, "batch channels ...")
    if images.shape != reconstruction.shape:
        raise ValueError(
            f"images must have the reconstruction's shape {list(reconstruction.shape)}, got {list(images.shape)}"
        )
    return images.to(working_dtype(images.dtype)), reconstruction.to(working_dtype(reconstruction.dtype))
