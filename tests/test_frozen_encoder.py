"""Modules that are not trained: no gradients, no change of mode, no weights in the file; models of `transformers`."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latentdiff as ld
from conditions import assert_same, parts
from networks import normal, randomised

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "square", "circle"]
CAPTIONS = ["a red square", "a blue circle"]


class Features(nn.Module):
    """Some module of somebody: dropout, and an output of a given form."""

    def __init__(self, size: tuple[int, ...] = (2, 6)) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(3, 12)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.linear(x))
        return y.unflatten(1, self.size)


def encoder(**arguments: Any) -> ld.FrozenEncoder:
    return ld.FrozenEncoder(**{"module": randomised(Features()), "null_kind": "learned", "dim": 6, **arguments})


X = normal((4, 3), dtype=torch.float32)


def test_it_stays_in_evaluation_and_gets_no_gradient() -> None:
    module = Features()
    frozen = encoder(module=module).train()
    assert frozen.training
    assert not module.training
    assert_same(frozen(X), frozen(X))
    assert not parts(frozen(X.clone().requires_grad_()))["context"].requires_grad
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert [name for name, _ in frozen.named_parameters()] == ["null_vector"]


def test_the_file_holds_the_null_and_not_the_module(tmp_path: Path) -> None:
    frozen = encoder()
    nn.init.normal_(frozen.null_vector)  # type: ignore[arg-type]
    assert frozen.state_dict().keys() == {"null_trained", "null_vector"}
    ld.save(frozen, tmp_path / "frozen.safetensors")
    again = ld.load(tmp_path / "frozen.safetensors", classes=[ld.FrozenEncoder])
    assert isinstance(again, ld.FrozenEncoder)
    assert_same(again.null(2), frozen.null(2))
    with pytest.raises(ValueError, match="module must be attached before use, as the file it was loaded from does not"):
        again(X)
    assert frozen.module is not None
    assert_same(again.attach(frozen.module)(X), frozen(X))


def test_a_module_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    table = randomised(ld.Autoencoder(in_channels=1, latent_channels=6, base_channels=4, channel_multipliers=(1,)))

    class Encoded(ld.Module):
        def __init__(self, *, autoencoder: ld.Autoencoder) -> None:
            super().__init__()
            self.autoencoder = autoencoder

        def forward(self, images: Tensor) -> Tensor:
            return self.autoencoder.encode(images).mode()

    frozen = encoder(module=Encoded(autoencoder=table), routing="concat", keep_weights=True)
    images = normal((2, 1, 4, 6), dtype=torch.float32).tanh()
    ld.save(frozen, tmp_path / "frozen.safetensors")
    again = ld.load(tmp_path / "frozen.safetensors", classes=[ld.FrozenEncoder, Encoded])
    assert_same(again(images), frozen(images))
    assert len(frozen(images).cat(frozen.null(3))) == 5


def test_what_was_encoded_beforehand_passes_as_it_is(tmp_path: Path) -> None:
    for module in ("identity", nn.Identity()):
        frozen, y = encoder(module=module), normal((4, 2, 6))
        ld.save(frozen, tmp_path / "frozen.safetensors")
        again = ld.load(tmp_path / "frozen.safetensors", classes=[ld.FrozenEncoder])
        assert_same(again(y), ld.Condition(context=y))


@pytest.mark.parametrize(
    ("routing", "size", "shape"),
    [("context", (2, 6), (4, 2, 6)), ("embedding", (12,), (4, 12)), ("concat", (6, 1, 2), (4, 6, 1, 2))],
)
def test_the_output_goes_where_it_is_routed(routing: str, size: tuple[int, ...], shape: tuple[int, ...]) -> None:
    frozen = encoder(module=Features(size), routing=routing, dim=shape[1] if routing != "context" else 6)
    encoded, null = frozen(X), frozen.null(4)
    assert list(parts(encoded)) == list(parts(null)) == [routing]
    assert parts(encoded)[routing].shape == shape
    assert not parts(null)[routing].any()
    assert_same(frozen.drop(encoded, 1.0).where(torch.zeros(4, dtype=torch.bool), null), frozen.drop(encoded, 1.0))


def test_it_follows_the_encoder_to_a_dtype_and_a_device() -> None:
    frozen = encoder().double()
    assert frozen.module is not None
    assert next(frozen.module.parameters()).dtype == torch.float64
    assert parts(frozen(X.double()))["context"].dtype == torch.float64
    assert next(frozen.to("meta").module.parameters()).device.type == "meta"  # type: ignore[union-attr]
    again = encoder()
    assert_same(copy.deepcopy(again)(X), again(X))


@pytest.mark.parametrize(
    ("arguments", "failure", "message"),
    [
        ({"pretrained": "somewhere"}, ValueError, "module must be None where pretrained is given, got both"),
        ({"null_kind": "empty"}, ValueError, "null_kind must be 'zeros' or 'learned' for a module, .* got 'empty'"),
        ({"module": "Identity"}, TypeError, "module must be a torch.nn.Module or 'identity', got 'Identity'"),
        ({"null_kind": "none"}, ValueError, "null_kind must be one of 'learned', 'zeros', 'empty', got 'none'"),
        ({"routing": "both"}, ValueError, "routing must be one of 'context', 'embedding', 'concat', got 'both'"),
        ({"dim": None}, ValueError, "dim must be given for null_kind='learned', got None"),
        ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
        ({"keep_weights": True}, TypeError, "module must be a latentdiff.Module to be kept in a file, got Features"),
        (
            {"module": None, "pretrained": "somewhere", "routing": "concat"},
            ValueError,
            "routing must be 'context' or 'embedding' for a text encoder, got 'concat'",
        ),
    ],
)
def test_a_wrong_encoder_is_refused(arguments: dict[str, Any], failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        encoder(**arguments)


def test_a_module_must_return_a_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(TypeError, match=r"module must return a torch\.Tensor, got tuple"):
        encoder(module=Pair())(X)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="transformers must be installed for this: pip install"):
        encoder(module=None, pretrained="somewhere")


# Models of `transformers`, tiny and random, from a folder.


@pytest.fixture(scope="module", params=["clip", "t5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained text encoder with its tokenizer, as `save_pretrained` leaves them."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp(request.param)
    ids = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    if request.param == "clip":
        config = transformers.CLIPTextConfig(
            vocab_size=8, hidden_size=6, intermediate_size=10, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=7, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        )  # fmt: skip
        transformers.CLIPTextModel(config).save_pretrained(path)
    else:
        config = transformers.T5Config(vocab_size=8, d_model=6, d_kv=3, d_ff=10, num_layers=2, num_heads=2)
        transformers.T5EncoderModel(config).save_pretrained(path)
    return path


def pretrained(folder: Path, **arguments: Any) -> ld.FrozenEncoder:
    return ld.FrozenEncoder(**{"pretrained": str(folder), "null_kind": "empty", "max_length": 7, **arguments})


def test_a_pretrained_text_encoder_gives_its_last_states_and_their_mask(folder: Path) -> None:
    frozen = pretrained(folder)
    encoded = frozen(CAPTIONS)
    assert parts(encoded)["context"].shape == (2, 7, 6)
    assert parts(encoded)["context_mask"].tolist() == [[True] * 4 + [False] * 3] * 2
    ids = torch.tensor([[3, 4, 6, 1, 0, 0, 0], [3, 5, 7, 1, 0, 0, 0]])
    assert frozen.module is not None
    expected = frozen.module(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    assert torch.equal(parts(encoded)["context"], expected)
    assert_same(frozen({"ids": ids, "mask": ids != 0}), encoded)
    assert_same(frozen.null(1), frozen([""]))
    assert_same(frozen.null(2)[1:], frozen.null(1))
    assert pretrained(folder, mask_padding=False)(CAPTIONS).context_mask is None
    assert not list(frozen.parameters())


def test_its_pooled_output_is_an_embedding_where_it_has_one(folder: Path) -> None:
    frozen = pretrained(folder, routing="embedding")
    if "t5" in folder.name:
        with pytest.raises(ValueError, match=r"routing must be 'context' for .*, which has no pooled output"):
            frozen(CAPTIONS)
    else:
        assert parts(frozen(CAPTIONS))["embedding"].shape == (2, 6)


@pytest.mark.parametrize("keep_weights", [False, True])
def test_a_file_names_it_and_it_is_read_again(folder: Path, keep_weights: bool, tmp_path: Path) -> None:
    frozen = pretrained(folder, keep_weights=keep_weights, null_kind="learned", dim=6)
    if keep_weights:
        randomised(frozen)
    ld.save(frozen, tmp_path / "frozen.safetensors")
    again = ld.load(tmp_path / "frozen.safetensors", classes=[ld.FrozenEncoder])
    assert (len(again.state_dict()) > 2) is keep_weights
    assert_same(again(CAPTIONS), frozen(CAPTIONS))


@pytest.mark.parametrize(
    ("y", "failure", "message"),
    [
        ("a red square", TypeError, "y must be a list of strings, one a sample, or a mapping, got 'a red square'"),
        ([1], TypeError, "y must be a list of strings"),
        (1, TypeError, "y must be a mapping with 'ids', 'mask', got int"),
        ({"ids": [1], "mask": [True]}, TypeError, "ids and mask must be tensors, the mask bool"),
    ],
)
def test_what_is_no_prompt_is_refused(folder: Path, y: object, failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        pretrained(folder)(y)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises((OSError, ValueError)):
        pretrained(tmp_path / "nothing")
