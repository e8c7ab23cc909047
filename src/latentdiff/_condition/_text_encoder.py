"""Captions through a transformer of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_count, check_shape
from latentdiff._condition._condition import Condition
from latentdiff._condition._encoder import ConditionEncoder, check_integers, check_mask, named_parts
from latentdiff._condition._extras import import_extra
from latentdiff._condition._token_transformer import TokenTransformer


@runtime_checkable
class _Serializable(Protocol):
    """A tokenizer that writes itself as JSON, as `tokenizers.Tokenizer` does."""

    def to_str(self) -> str:
        """The JSON."""
        ...  # pragma: no cover


class _Encoding(Protocol):
    ids: list[int]
    attention_mask: list[int]


class _Tokenizer(Protocol):
    """What is used of `tokenizers.Tokenizer`."""

    def encode_batch(self, texts: list[str]) -> list[_Encoding]: ...  # pragma: no cover

    def enable_truncation(self, max_length: int) -> None: ...  # pragma: no cover

    def enable_padding(self, *, length: int, pad_id: int) -> None: ...  # pragma: no cover


class TextEncoder(ConditionEncoder):
    """Captions to tokens for cross-attention, by a transformer that is trained together with the denoising network.

    The tokenizer is one of the `tokenizers` library (extra `interop`); its JSON is kept in the configuration, and so
    in the saved file. It is needed for strings only: token ids are taken too. Every prompt is cut or padded to
    `max_length` tokens.

    The published text-to-image models are `dim=640` (text2img256) or `dim=1280` (txt2img-1p4B), `depth=32`,
    `vocabulary_size=30522`, `mask_padding=False`, `empty_prompt=(101, 102)`, `vocabulary_head=True`, with the
    tokenizer of `bert-base-uncased`. Their keys, below `cond_stage_model.transformer.`, are found here below
    `transformer.`:

    | published | here |
    | --- | --- |
    | `token_emb.weight` | `token_embedding.weight` |
    | `pos_emb.emb.weight` | `position_embedding.weight` |
    | `attn_layers.layers.{2 i}.0.*` | `blocks.{i}.norm1.*` |
    | `attn_layers.layers.{2 i}.1.*` | `blocks.{i}.attention.*` |
    | `attn_layers.layers.{2 i + 1}.0.*` | `blocks.{i}.norm2.*` |
    | `attn_layers.layers.{2 i + 1}.1.net.0.0.*` | `blocks.{i}.linear1.*` |
    | `attn_layers.layers.{2 i + 1}.1.net.2.*` | `blocks.{i}.linear2.*` |
    | `norm.*`, `to_logits.*` | the same |

    References:
        Rombach et al. 2022, arXiv:2112.10752, section 4.3.1 and appendix E.2.1.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        dim: int,
        depth: int,
        max_length: int = 77,
        num_heads: int = 8,
        head_dim: int = 64,
        tokenizer: str | _Serializable | None = None,
        pad_id: int = 0,
        empty_prompt: Sequence[int] = (),
        mask_padding: bool = True,
        null_kind: Literal["empty", "learned"] = "empty",
        vocabulary_head: bool = False,
        dropout: float = 0.1,
    ) -> None:
        """Build the transformer.

        Args:
            vocabulary_size: Token ids are 0 ... vocabulary_size - 1.
            dim: Size of the context's tokens.
            depth: Number of transformer blocks.
            max_length: Tokens of a prompt, those that begin and end it included.
            num_heads: Heads of each block.
            head_dim: Channels of a head; `num_heads * head_dim` may differ from `dim`.
            tokenizer: A `tokenizers.Tokenizer`, or its JSON; None for an encoder that is given token ids.
            pad_id: The id that fills short prompts up.
            empty_prompt: Ids of the empty prompt, without padding; used where there is no tokenizer to say it.
            mask_padding: Whether attention, here and in the denoising network, leaves the padding out. The published
                models look at it.
            null_kind: What stands for no prompt: the encoding of the empty one, or a learned token.
            vocabulary_head: Whether there is an unused linear layer to scores of all ids, as in published checkpoints.
            dropout: Share of the samples whose prompt training drops, in [0, 1].

        Raises:
            TypeError: If `tokenizer` is neither a string nor a tokenizer.
            ValueError: If a number is out of range, or `null_kind` is unknown.
        """
        super().__init__(dropout=dropout)
        check_choice("null_kind", null_kind, ("empty", "learned"))
        for name, value in (("vocabulary_size", vocabulary_size), ("max_length", max_length)):
            check_count(name, value)
        if not 0 <= pad_id < vocabulary_size:
            raise ValueError(f"pad_id must be in [0, {vocabulary_size - 1}], got {pad_id}")
        if len(empty_prompt) > max_length or any(not 0 <= token < vocabulary_size for token in empty_prompt):
            raise ValueError(
                f"empty_prompt must be up to {max_length} ids in [0, {vocabulary_size - 1}], got {tuple(empty_prompt)}"
            )
        self.vocabulary_size = vocabulary_size
        self.dim = dim
        self.depth = depth
        self.max_length = max_length
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.pad_id = pad_id
        self.empty_prompt: tuple[int, ...] = tuple(empty_prompt)
        self.mask_padding = mask_padding
        self.null_kind: Literal["empty", "learned"] = null_kind
        self.vocabulary_head = vocabulary_head
        self.tokenizer: str | None = _to_json(tokenizer)
        self._built: tuple[str, _Tokenizer] | None = None
        self.transformer: TokenTransformer = TokenTransformer(
            vocabulary_size=vocabulary_size,
            max_length=max_length,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            head_dim=head_dim,
            vocabulary_head=vocabulary_head,
        )
        self.null_token: nn.Parameter | None = None
        if null_kind == "learned":
            self.null_token = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, y: object) -> Condition:
        """Encode prompts.

        Args:
            y: A list of strings; or token ids `[batch, length]`, integer, where `pad_id` is padding; or a mapping with
                such `ids` and their `mask` `[batch, length]`, bool, True where there is a token.

        Returns:
            A condition with context `[batch, length, dim]`, and with `mask_padding` its mask; `length` is `max_length`
            for strings.

        Raises:
            ImportError: If the `tokenizers` library is needed and not installed.
            TypeError: If `y` is something else.
            ValueError: If there are strings and no tokenizer, or a shape or an id is out of range.
        """
        ids, tokens = self._ids(y)
        mask = tokens.to(self.null_trained.device) if self.mask_padding else None
        return Condition(context=self.transformer(ids, mask), context_mask=mask)

    def null(self, batch: int) -> Condition:
        """No prompt, `batch` times: context `[batch, max_length, dim]`, or `[batch, 1, dim]` where it is learned."""
        if self.null_token is not None:
            return Condition(context=self.null_token.expand(batch, 1, -1))
        one: Condition = self(self.tokenize([""]) if self.tokenizer is not None else self._padded(self.empty_prompt))
        mask = one.context_mask
        context = cast("Tensor", one.context)
        return Condition(
            context=context.expand(batch, -1, -1), context_mask=None if mask is None else mask.expand(batch, -1)
        )

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids of prompts, cut or padded to `max_length`.

        Args:
            texts: A list of strings.

        Returns:
            A mapping that `forward` takes: `ids` `[batch, max_length]`, int64, and `mask` `[batch, max_length]`, bool.

        Raises:
            ImportError: If the `tokenizers` library is not installed.
            ValueError: If there is no tokenizer.
        """
        encodings = self._tokenizer().encode_batch(list(texts))
        return {
            "ids": torch.tensor([encoding.ids for encoding in encodings]),
            "mask": torch.tensor([encoding.attention_mask for encoding in encodings]).bool(),
        }

    def extra_repr(self) -> str:
        """The configuration, with the first characters of the tokenizer's JSON."""
        config = {**self.config, "tokenizer": None if self.tokenizer is None else f"{self.tokenizer[:20]}..."}
        return ", ".join(f"{name}={value!r}" for name, value in config.items())

    def _ids(self, y: object) -> tuple[Tensor, Tensor]:
        """Token ids `[batch, length]`, and where they are no padding."""
        if isinstance(y, list | tuple) and y and all(isinstance(text, str) for text in y):
            y = self.tokenize(y)
        if isinstance(y, Tensor):
            return check_integers("y", y, "token ids"), y != self.pad_id
        if isinstance(y, str | list | tuple):
            raise TypeError(f"y must be a list of strings, one a sample, token ids or a mapping, got {y!r}")
        parts = named_parts(y, {"ids", "mask"})
        ids = check_integers("ids", parts["ids"], "token ids")
        check_shape("ids", ids, "batch length")
        return ids, check_mask(parts["mask"], ids, "a token")

    def _padded(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        missing = self.max_length - len(tokens)
        return {
            "ids": torch.tensor([[*tokens, *[self.pad_id] * missing]]),
            "mask": torch.tensor([[*[True] * len(tokens), *[False] * missing]]),
        }

    def _tokenizer(self) -> _Tokenizer:
        """The tokenizer of the JSON, built once."""
        if self.tokenizer is None:
            raise ValueError("y must hold token ids where there is no tokenizer; set `tokenizer` to take strings")
        if self._built is None or self._built[0] != self.tokenizer:
            tokenizer = cast("_Tokenizer", import_extra("tokenizers").Tokenizer.from_str(self.tokenizer))
            tokenizer.enable_truncation(max_length=self.max_length)
            tokenizer.enable_padding(length=self.max_length, pad_id=self.pad_id)
            self._built = self.tokenizer, tokenizer
        return self._built[1]


def _to_json(tokenizer: object) -> str | None:
    if isinstance(tokenizer, str) and not tokenizer.lstrip().startswith("{"):
        raise ValueError(
            "tokenizer must be the JSON of a tokenizers.Tokenizer, as in a tokenizer.json, got the text "
            f"{tokenizer[:20]!r}"
        )
    if tokenizer is None or isinstance(tokenizer, str):
        return tokenizer
    if isinstance(tokenizer, _Serializable):
        return tokenizer.to_str()
    raise TypeError(f"tokenizer must be a tokenizers.Tokenizer or its JSON, got {type(tokenizer).__name__}")
