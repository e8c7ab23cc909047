"""What one optimiser minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from latentdiff._checks import check_positive
from latentdiff.training._learning_rate import LearningRate

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], Optimizer]


class Objective:
    """A loss, the parameters that are to make it small, and how they are moved.

    The loss is a module, so that PyTorch's engines for several processes can take hold of it: `module(batch, step)`,
    `step` being a `Step`, returns one of

    - a loss `[]`, the mean over the samples of the batch;
    - a mapping with such a `"loss"` and other figures `[]` that are to be logged;
    - None: it sits this step out.

    The module holds, as its own parts, all that it trains. What it only looks at is better kept out of it, in a tuple
    for example.

    Attributes:
        module: Maps a batch and a step to a loss.
        name: Under which its figures are logged and its state is kept.
        learning_rate: Over the steps.
        parameter_names: Those of the parameters that are trained.
        clip: Largest norm of the gradient; None for any.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        learning_rate: float | LearningRate = 1e-4,
        parameters: Iterable[nn.Parameter] | None = None,
        name: str = "",
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float | None = 1.0,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        """Take the parts.

        Args:
            module: Maps a batch and a step to a loss.
            learning_rate: A number for a constant one.
            parameters: Which of the module's are trained; None for all that require a gradient.
            name: Needed only where a step has several objectives.
            weight_decay: Of AdamW.
            betas: Of AdamW.
            clip: The gradient is made shorter where its norm is above this; None leaves it.
            optimizer: Makes another optimiser than fused AdamW; it gets its learning rate at each step.

        Raises:
            ValueError: If nothing is trained, a parameter is not the module's, or a number is out of range.
        """
        if clip is not None:
            check_positive("clip", clip)
        self.module = module
        self.name = name
        self.learning_rate: LearningRate = (
            learning_rate if isinstance(learning_rate, LearningRate) else LearningRate(learning_rate)
        )
        self.weight_decay: float = weight_decay
        self.betas: tuple[float, float] = betas
        self.clip: float | None = clip
        self._make_optimizer = optimizer
        owned = {id(weight): name for name, weight in module.named_parameters()}
        wanted = [p for p in module.parameters() if p.requires_grad] if parameters is None else list(parameters)
        if foreign := sum(id(weight) not in owned for weight in wanted):
            raise ValueError(f"parameters must be those of module, got {foreign} others")
        if not wanted:
            raise ValueError("module must have parameters that require a gradient, got none")
        self.parameter_names: tuple[str, ...] = tuple(owned[id(weight)] for weight in wanted)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, of any shape, in the order of `parameter_names`."""
        owned = dict(self.module.named_parameters())
        return [owned[name] for name in self.parameter_names]

    def make_optimizer(self) -> Optimizer:
        """A new optimiser of the parameters as they are now."""
        parameters = self.parameters
        if self._make_optimizer is not None:
            return self._make_optimizer(parameters)
        is_fused = all(
            weight.device.type in {"cpu", "cuda"} and torch.is_floating_point(weight) for weight in parameters
        )
        return AdamW(
            parameters, lr=self.learning_rate.at(0), betas=self.betas, weight_decay=self.weight_decay, fused=is_fused
        )
