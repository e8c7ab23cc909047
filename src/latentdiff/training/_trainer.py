"""The loop of a training: steps, checkpoints, averages, what is shown meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import nn

from latentdiff._checks import check_choice, check_count
from latentdiff._errors import CheckpointError
from latentdiff.training import _checkpoint as files
from latentdiff.training._average import Average
from latentdiff.training._batches import count, to_device
from latentdiff.training._engine import Engine, NonFiniteError
from latentdiff.training._loader import LoaderBatches
from latentdiff.training._objective import Objective
from latentdiff.training._parallel import Parallel, Replicated
from latentdiff.training._progress import Progress
from latentdiff.training._state import load, tensors_of

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

HISTORY: Final = "history/"


class Trainer:
    """Trains: takes steps, keeps checkpoints from which it goes on bit for bit, shows how it goes.

    Nothing here is needed to train a model of this library, whose losses are functions; this is the loop that most
    would write, with what is easily got wrong. A step takes a batch, lets each objective add its gradient to the
    parameters it owns, and then moves all of them; the objectives see the same weights.

    Chance is a function of seed and step: nothing of it needs to be kept. `Step.generator` and torch's global
    generators begin anew at each step, and the caller gets the latter back as they were.

    Started with `torchrun`, after `join_processes`, it shares each batch among the processes.

    Attributes:
        step: Steps made.
        steps: Steps in all.
        history: Figures of the steps by name, lists of `step` numbers; NaN where there was none.
        seconds: Spent in steps, those before the last stop included.
        folder: Where checkpoints are.
        batches: A function of the step.

    Example:
        >>> import latentdiff as ld
        >>> model = ld.UNet(in_channels=1, base_channels=8, channel_multipliers=(1,), attention_levels=())
        >>> denoiser = ld.Denoiser(model, ld.NoiseSchedule.cosine())
        >>> class Denoising(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = model
        ...     def forward(self, batch, step):
        ...         return ld.losses.DiffusionLoss()(denoiser, batch, generator=step.generator).loss
        >>> batches = ld.training.Batches(torch.randn(12, 1, 8, 8), batch_size=4)
        >>> trainer = Trainer(Objective(Denoising(), learning_rate=1e-3), batches, steps=3, progress=False)
        >>> history = trainer.train()
        >>> trainer.step, len(history["loss"])
        (3, 3)
    """

    def __init__(
        self,
        objectives: Objective | Sequence[Objective],
        batches: Callable[[int], Any] | Iterable[Any],
        *,
        steps: int,
        folder: str | os.PathLike[str] | None = None,
        averages: Sequence[tuple[Average[Any], nn.Module]] = (),
        seed: int = 0,
        save_every: int = 1000,
        keep: int = 2,
        accumulate: int = 1,
        precision: Precision = "auto",
        gradient_checkpointing: bool | None = None,
        parallel: Parallel | None = None,
        progress: bool = True,
        tensorboard: bool = False,
    ) -> None:
        """Take the parts. Modules are on the device where they are trained, and are put into training mode.

        Args:
            objectives: What is made small; several of them have names of their own.
            batches: A function of the step, such as `Batches`, or a `DataLoader` or other iterable, which is gone
                through as often as needed. Tensors are moved to the device. On several processes each gets its share.
            steps: Steps in all.
            folder: For checkpoints; None keeps none.
            averages: Pairs of an average and the module whose weights it takes after each step.
            seed: Of all chance in the steps.
            save_every: Steps between checkpoints; there is one at the end, too.
            keep: Checkpoints that are kept.
            accumulate: Equal parts in which a batch is taken, one after the other, to save memory.
            precision: `"bfloat16"`: under autocast. `"auto"`: that on CUDA, float32 elsewhere.
            gradient_checkpointing: Sets the attribute of this name in all parts that have it; None leaves it.
            parallel: How several processes share the work; None is `Replicated()`.
            progress: Whether a bar shows loss and samples per second.
            tensorboard: Whether figures are logged to `folder`, for TensorBoard, which must be installed.

        Raises:
            ValueError: If a number is out of range, a name unknown, or two objectives share a name or a parameter.
            ImportError: If `tensorboard` is asked for and not installed.
        """
        for name, value in {"steps": steps, "save_every": save_every, "keep": keep, "accumulate": accumulate}.items():
            check_count(name, value)
        check_choice("precision", precision, PRECISIONS)
        objectives = [objectives] if isinstance(objectives, Objective) else list(objectives)
        _check_objectives(objectives)
        device = objectives[0].parameters[0].device
        autocast = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
        self.step: int = 0
        self.steps = steps
        self.seed = seed
        self.save_every: int = save_every
        self.keep: int = keep
        self.history: dict[str, list[float]] = {}
        self.seconds: float = 0.0
        self.folder: Path | None = None if folder is None else Path(folder)
        self.batches: Callable[[int], Any] = batches if callable(batches) else LoaderBatches(batches, seed)
        if gradient_checkpointing is not None:
            _switch(objectives, gradient_checkpointing)
        self._engine = Engine(
            objectives,
            averages,
            parallel=parallel or Replicated(),
            autocast=autocast,
            accumulate=accumulate,
            seed=seed,
        )
        self._progress = Progress(self.folder, bar=progress, tensorboard=tensorboard)
        self._saved = -1

    @property
    def averages(self) -> tuple[Average[Any], ...]:
        """The averages, in the order given."""
        return tuple(ema for ema, _ in self._engine.averages)

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimisers, in the order of the objectives."""
        return tuple(self._engine.optimizers)

    def train(
        self,
        until: int | None = None,
        *,
        resume: bool = True,
        every: Mapping[int, Callable[[Trainer], object]] | None = None,
    ) -> dict[str, list[float]]:
        """Take steps, to the end or until so many are made, and keep a checkpoint then.

        Args:
            until: Number of steps made at which to stop; None is `steps`.
            resume: Whether to go on from the newest checkpoint in `folder`, if it is further than this trainer.
            every: By a number of steps, what is called with this trainer each time that so many were made, such as
                one that draws pictures. It finds the global random state of the caller, and modules in training mode,
                where they are put again after it.

        Returns:
            `history`.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite. The state before that step is in a checkpoint then.
            FileExistsError: If there are checkpoints, and no `resume`.
            CheckpointError: If a checkpoint does not fit.
        """
        if resume:
            self.resume()
        elif self.step == 0 and self.folder is not None and files.checkpoints(self.folder):
            raise FileExistsError(f"folder must hold no checkpoints to begin anew, got {self.folder}; or resume=True")
        until = self.steps if until is None else min(until, self.steps)
        self._mode()
        with self._progress.running(self.step, until):
            while self.step < until:
                self._one_step()
                for number, call in (every or {}).items():
                    if self.step % number == 0:
                        call(self)
                        self._mode()
                if self.step % self.save_every == 0:
                    self.save()
        self.save()
        return self.history

    def save(self) -> Path | None:
        """Write a checkpoint, complete or not there; on several processes, to be called on each.

        Returns:
            Its folder; None if there is no `folder` for checkpoints.
        """
        if self.folder is None:
            return None
        path = files.path_of(self.folder, self.step)
        if self._saved == self.step and path.exists():
            return path
        tensors, plain = tensors_of(self._engine)
        for name, values in self.history.items():
            tensors[HISTORY + name] = torch.tensor(values, dtype=torch.float64)
        plain |= {"step": self.step, "seed": self.seed, "seconds": self.seconds}
        loader = self.batches.state() if isinstance(self.batches, LoaderBatches) else None
        files.write(self.folder, self.step, files.State(tensors, plain, loader), self.keep)
        self._saved = self.step
        return path

    def resume(self) -> bool:
        """Go on from the newest checkpoint in `folder`, if there is one further than this trainer.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: If it is damaged or does not fit what is trained.
        """
        found = files.checkpoints(self.folder) if self.folder is not None else []
        if not found:
            return False
        plain = files.read_plain(found[-1])
        if plain["step"] <= self.step:
            return False
        if plain["seed"] != self.seed:
            raise CheckpointError(f"{found[-1]} was made with seed={plain['seed']}, not {self.seed}")
        history = load(self._engine, found[-1], plain, HISTORY)
        self.history = {name.removeprefix(HISTORY): values.tolist() for name, values in history.items()}
        self.step = self._saved = plain["step"]
        self.seconds = plain["seconds"]
        if isinstance(self.batches, LoaderBatches) and (state := files.read_loader(found[-1])) is not None:
            self.batches.restore(state)
        return True

    def _one_step(self) -> None:
        started = time.perf_counter()
        batch = to_device(self.batches(self.step), self._engine.device)
        try:
            figures = self._engine.advance(batch, self.step)
        except NonFiniteError as error:
            path = self.save()
            kept = "there is no folder for checkpoints" if path is None else f"the state before this step is in {path}"
            raise NonFiniteError(f"{error}; {kept}", error.step, error.figures) from None
        for name, value in figures.items():
            self.history.setdefault(name, [math.nan] * self.step).append(value)
        self.step += 1
        for values in self.history.values():
            values.extend([math.nan] * (self.step - len(values)))
        self.seconds += time.perf_counter() - started
        self._progress.show(self.step, figures, count(batch))

    def _mode(self) -> None:
        for objective in self._engine.objectives:
            objective.module.train()


def _check_objectives(objectives: Sequence[Objective]) -> None:
    """Each has a name and parameters of its own."""
    if not objectives:
        raise ValueError("objectives must hold at least one, got none")
    names = [objective.name for objective in objectives]
    if len(set(names)) < len(names):
        raise ValueError(f"objectives must have names of their own, got {names}")
    seen: dict[int, str] = {}
    for objective in objectives:
        for name, weight in zip(objective.parameter_names, objective.parameters, strict=True):
            if id(weight) in seen:
                raise ValueError(f"objectives must train parameters of their own, but two train {name}")
            seen[id(weight)] = name


def _switch(objectives: Sequence[Objective], on: bool) -> None:
    found = [part for one in objectives for part in one.module.modules() if hasattr(part, "gradient_checkpointing")]
    if not found:
        raise ValueError("gradient_checkpointing must be None for modules that have no such attribute")
    for part in found:
        part.gradient_checkpointing = on  # type: ignore[assignment]
