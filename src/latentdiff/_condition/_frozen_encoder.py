"""Encoders that were trained before, and stay as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Final, Literal, Protocol, Self, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_count
from latentdiff._condition._condition import Condition
from latentdiff._condition._encoder import ConditionEncoder, NullKind, named_parts
from latentdiff._condition._extras import import_extra
from latentdiff._module import Module, describe
from latentdiff._typing import JSON, SpatialDims

FrozenRouting: TypeAlias = Literal["context", "embedding", "concat"]
"""By which way a module's output reaches the network."""

TEXT_MODELS: Final = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "mt5": "MT5EncoderModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
"""Which class of `transformers` is the text encoder, where it is not the one of the whole model."""


class _Output(Protocol):
    """What is used of the outputs of `transformers`."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None


class _Tokenizer(Protocol):
    def __call__(
        self, texts: list[str], *, padding: str, truncation: bool, max_length: int, return_tensors: str
    ) -> dict[str, Tensor]: ...  # pragma: no cover


class FrozenEncoder(ConditionEncoder):
    """A module that is not trained: any one, or a text encoder (CLIP, T5, ...) of the `transformers` library.

    It stays in evaluation mode and gets no gradient. It is no submodule, so its weights are not among the parameters
    and not in the saved file: `pretrained` is read again when the file is loaded, and a `module` is given again by
    `attach`. With `keep_weights` it is a submodule, and the file holds its weights too. Either way it moves to the
    encoder's device and dtype by `to`. A name that is no folder is fetched from the hub of `transformers`, when a file
    that names it is loaded too.
    """

    def __init__(
        self,
        *,
        module: nn.Module | Literal["identity"] | None = None,
        pretrained: str | None = None,
        null_kind: NullKind,
        routing: FrozenRouting = "context",
        dim: int | None = None,
        max_length: int = 77,
        mask_padding: bool = True,
        spatial_dims: SpatialDims = 2,
        keep_weights: bool = False,
        dropout: float = 0.1,
    ) -> None:
        """Take the module, or read it.

        Args:
            module: Called with what the encoder is given; its output is a tensor: `[batch, length, dim]`, `[batch,
                dim]` or `[batch, dim, *spatial]` as `routing` says. `"identity"` (or `nn.Identity()`) passes on what
                was encoded beforehand.
            pretrained: Name or folder of a text encoder of `transformers` (extra `interop`) and its tokenizer.
            null_kind: What stands for no condition: `"empty"`, the empty prompt, for `pretrained` only; or zeros, or a
                learned vector of `dim`.
            routing: Which part of the condition the output is. Of a text encoder `"context"` is its last hidden
                states, `"embedding"` its pooled output.
            dim: Size of the output, for a null of zeros or a learned one; None where the empty prompt says it.
            max_length: Tokens of a prompt, for `pretrained`.
            mask_padding: Whether the text encoder and the network leave padding out. Stable Diffusion's CLIP looks at
                it.
            spatial_dims: 1, 2 or 3, for `"concat"`.
            keep_weights: Whether a saved file holds the weights; a `module` must then be one of latentdiff, or a
                `Module` of one's own, as the file must say how to build it.
            dropout: Share of the samples whose condition training drops, in [0, 1].

        Raises:
            ImportError: If `transformers` is needed and not installed.
            OSError: If there is no such pretrained model.
            TypeError: If `module` cannot be built again from a file and `keep_weights` asks for that.
            ValueError: If both `module` and `pretrained` are given, or two other arguments do not fit together.
        """
        super().__init__(dropout=dropout)
        check_choice("null_kind", null_kind, get_args(NullKind))
        check_choice("routing", routing, get_args(FrozenRouting))
        check_choice("spatial_dims", spatial_dims, (1, 2, 3))
        check_count("max_length", max_length)
        if module is not None and pretrained is not None:
            raise ValueError("module must be None where pretrained is given, got both")
        if null_kind == "empty" and pretrained is None:
            raise ValueError("null_kind must be 'zeros' or 'learned' for a module, as it has no prompt, got 'empty'")
        if pretrained is not None and routing == "concat":
            raise ValueError("routing must be 'context' or 'embedding' for a text encoder, got 'concat'")
        if null_kind != "empty" and dim is None:
            raise ValueError(f"dim must be given for null_kind={null_kind!r}, got None")
        if keep_weights and pretrained is None and not isinstance(module, Module):
            raise TypeError(
                f"module must be a latentdiff.Module to be kept in a file, got {type(module).__name__}; "
                "set keep_weights=False and give it again by attach"
            )
        self.pretrained = pretrained
        self.null_kind: NullKind = null_kind
        self.routing: FrozenRouting = routing
        self.dim = dim
        self.max_length = max_length
        self.mask_padding = mask_padding
        self.spatial_dims: SpatialDims = spatial_dims
        self.keep_weights = keep_weights
        self.module: nn.Module | None
        self.tokenizer: _Tokenizer | None = None
        if pretrained is not None:
            module, self.tokenizer = _read(pretrained)
        self.attach(module)
        self.null_vector: nn.Parameter | None = None
        if null_kind == "learned":
            self.null_vector = nn.Parameter(torch.zeros(dim or 0))

    @property
    def config(self) -> dict[str, JSON]:
        """The arguments that build this encoder again; a module that is not kept is None, to be attached again."""
        module: JSON = None
        if isinstance(self.module, nn.Identity):
            module = "identity"
        elif self.keep_weights and self.pretrained is None:
            module = describe(self.module)
        names = inspect.signature(type(self)).parameters.keys() - {"module"}
        return {"module": module, **{name: describe(getattr(self, name)) for name in sorted(names)}}

    def attach(self, module: nn.Module | Literal["identity"] | None) -> Self:
        """Set the module, frozen and in evaluation mode, and return the encoder.

        Args:
            module: What the constructor takes as `module`.
        """
        if module == "identity":
            module = nn.Identity()
        if module is not None:
            if not isinstance(module, nn.Module):
                raise TypeError(f"module must be a torch.nn.Module or 'identity', got {module!r}")
            module = module.requires_grad_(False).eval()
        if self.keep_weights:
            self.module = module
        else:
            object.__setattr__(self, "module", module)  # past nn.Module, which would make it a submodule
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the encoder, never of the frozen module."""
        super().train(mode)
        if self.module is not None:
            self.module.eval()
        return self

    def forward(self, y: object) -> Condition:
        """Encode, without gradients.

        Args:
            y: What the module takes; for a text encoder a list of strings, or a mapping with `ids` `[batch, length]`,
                integer, and their `mask` `[batch, length]`, bool, True where there is a token.

        Returns:
            A condition with context `[batch, length, dim]` (and its mask, with `mask_padding`), embedding `[batch,
            dim]` or concat `[batch, dim, *spatial]`.

        Raises:
            TypeError: If `y` or the module's output is something else.
            ValueError: If no module is attached, or its output has another size than `dim`.
        """
        if self.module is None:
            raise ValueError("module must be attached before use, as the file it was loaded from does not hold it")
        self._settle(self.module)
        with torch.no_grad():
            if self.tokenizer is not None:
                return self._encode_text(self.module, y)
            output = self.module(y)
        if not isinstance(output, Tensor):
            raise TypeError(f"module must return a torch.Tensor, got {type(output).__name__}")
        return self._condition(output)

    def null(self, batch: int) -> Condition:
        """No condition, `batch` times: one token `[batch, 1, dim]`, a vector or a point, or the empty prompt."""
        if self.null_kind == "empty":
            one: Condition = self([""])
            return one[torch.zeros(batch, dtype=torch.int64, device=self.null_trained.device)]
        vector = torch.zeros(self.dim or 0, device=self.null_trained.device)
        if self.null_vector is not None:
            vector = self.null_vector
        match self.routing:
            case "context":
                return Condition(context=vector.expand(batch, 1, -1))
            case "embedding":
                return Condition(embedding=vector.expand(batch, -1))
            case "concat":
                points = (1,) * self.spatial_dims
                return Condition(concat=vector.reshape(1, -1, *points).expand(batch, -1, *points))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `to`, `half` and the like reach the module where it is no submodule."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.module is not None and not self.keep_weights:
            self.module._apply(fn, recurse)
        return self

    def _settle(self, module: nn.Module) -> None:
        """Move the module to the encoder's device, where loading a file put the encoder."""
        first = next(module.parameters(), None)
        if first is not None and first.device != self.null_trained.device:
            module.to(self.null_trained.device)

    def _condition(self, output: Tensor, mask: Tensor | None = None) -> Condition:
        axis = 1 if self.routing == "concat" else -1
        if self.dim is not None and output.ndim > 1 and output.shape[axis] != self.dim:
            raise ValueError(f"module must return vectors of dim={self.dim}, got {list(output.shape)}")
        match self.routing:
            case "context":
                return Condition(context=output, context_mask=mask)
            case "embedding":
                return Condition(embedding=output)
            case "concat":
                return Condition(concat=output)

    def _encode_text(self, model: nn.Module, y: object) -> Condition:
        """Tokens of prompts, or their pooled output."""
        ids, mask = self._ids(y)
        output = cast("_Output", model(input_ids=ids, attention_mask=mask.long() if self.mask_padding else None))
        if self.routing == "context":
            return self._condition(output.last_hidden_state, mask if self.mask_padding else None)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"routing must be 'context' for {self.pretrained}, which has no pooled output")
        return self._condition(pooled)

    def _ids(self, y: object) -> tuple[Tensor, Tensor]:
        """Token ids `[batch, length]` and their mask, on the encoder's device."""
        device = self.null_trained.device
        if isinstance(y, list | tuple) and self.tokenizer is not None and all(isinstance(text, str) for text in y):
            tokens = self.tokenizer(
                list(y), padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            return tokens["input_ids"].to(device), tokens["attention_mask"].to(device).bool()
        if isinstance(y, str | list | tuple):
            raise TypeError(f"y must be a list of strings, one a sample, or a mapping, got {y!r}")
        parts = named_parts(y, {"ids", "mask"})
        ids, mask = parts["ids"], parts["mask"]
        if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError("ids and mask must be tensors, the mask bool, True where there is a token")
        return ids.to(device), mask.to(device)


def _read(pretrained: str) -> tuple[nn.Module, _Tokenizer]:
    """A text encoder of `transformers` and its tokenizer, on the CPU whatever device is the default."""
    transformers: ModuleType = import_extra("transformers")
    with torch.device("cpu"):  # a file is loaded with the default device "meta", which holds no weights
        kind = transformers.AutoConfig.from_pretrained(pretrained).model_type
        cls = getattr(transformers, TEXT_MODELS.get(kind, "AutoModel"))
        model = cast("nn.Module", cls.from_pretrained(pretrained))
        return model, cast("_Tokenizer", transformers.AutoTokenizer.from_pretrained(pretrained))
