"""Captions: padding without influence, prompts as ids, a tokenizer that travels in the file, published numbers."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from conditions import assert_same, parts
from latentdiff._condition._token_transformer import EncoderBlock, TokenTransformer
from networks import normal, randomised
from published import TOLERANCE, error, facts, goldens, needs_zoo, text_keys, weights

CAPTIONS = ["a red square", "a blue circle on a red square that is far too long", ""]


def encoder(**arguments: Any) -> ld.TextEncoder:
    sizes = {"vocabulary_size": 13, "dim": 10, "depth": 2, "max_length": 7, "num_heads": 2, "head_dim": 3}
    torch.manual_seed(0)
    return randomised(ld.TextEncoder(**{**sizes, **arguments}))


def tokenizer() -> Any:
    """Words to ids: padding 0, begin 1, end 2."""
    library = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "blue", "square", "circle", "on"]
    built = library.Tokenizer(library.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    built.pre_tokenizer = library.pre_tokenizers.Whitespace()
    built.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return built


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_what_stands_in_the_padding_changes_no_bit_behind_the_cross_attention(lengths: list[int], seed: int) -> None:
    module, generator = encoder(), torch.Generator().manual_seed(seed)
    network = ld.CrossAttention(query_dim=4, context_dim=10, num_heads=2, head_dim=3)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 13, mask.shape, generator=generator)
    other = torch.where(mask, ids, torch.randint(1, 13, mask.shape, generator=generator))
    x = normal((len(lengths), 3, 4), seed, torch.float32)
    outputs = [
        network(x, one.context, one.context_mask) for one in (module({"ids": i, "mask": mask}) for i in (ids, other))
    ]
    assert outputs[0].isfinite().all()
    assert torch.equal(outputs[0], outputs[1])


def test_a_prompt_is_what_it_is_without_its_padding() -> None:
    module = encoder().double()
    ids = torch.tensor([[1, 5, 4, 2, 0, 0]])
    padded, bare = module(ids), module(ids[:, :4])
    assert parts(padded)["context_mask"].tolist() == [[True] * 4 + [False] * 2]
    torch.testing.assert_close(parts(padded)["context"][:, :4], parts(bare)["context"], rtol=1e-12, atol=1e-13)


def test_without_masking_padding_takes_part() -> None:
    module = encoder(mask_padding=False)
    ids = torch.tensor([[1, 5, 4, 2, 0, 0]])
    padded, bare = module(ids), module(ids[:, :4])
    assert padded.context_mask is None
    assert (parts(padded)["context"][:, :4] - parts(bare)["context"]).abs().max() > 1e-3


@given(masked=st.booleans())
def test_a_block_is_the_pre_norm_layer_of_torch(masked: bool) -> None:
    block = randomised(EncoderBlock(dim=12, num_heads=3, head_dim=4)).double().eval()
    layer = torch.nn.TransformerEncoderLayer(
        d_model=12, nhead=3, dim_feedforward=48, activation="gelu", batch_first=True, norm_first=True, dropout=0.0
    ).double()
    own = block.attention
    state = {
        "self_attn.in_proj_weight": torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight]),
        "self_attn.in_proj_bias": torch.zeros(36),
        **{f"self_attn.out_proj.{name}": part for name, part in own.to_out.state_dict().items()},
    }
    state |= {name: part for name, part in block.state_dict().items() if not name.startswith("attention")}
    layer.load_state_dict(state)
    x, mask = normal((2, 5, 12)), torch.tensor([[True] * 5, [True] * 3 + [False] * 2]) if masked else None
    expected = layer.train()(x, src_key_padding_mask=None if mask is None else ~mask)  # the fast path of eval differs
    seen = torch.ones(2, 5, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(block(x, mask)[seen], expected[seen], rtol=1e-10, atol=1e-12)


def test_strings_are_tokenized_cut_and_padded() -> None:
    module = encoder(tokenizer=tokenizer())
    tokens = module.tokenize(CAPTIONS)
    assert tokens["ids"].tolist() == [[1, 4, 5, 7, 2, 0, 0], [1, 4, 6, 8, 9, 4, 2], [1, 2, 0, 0, 0, 0, 0]]
    assert torch.equal(tokens["mask"], tokens["ids"] != 0)
    assert_same(module(CAPTIONS), module(tokens))
    assert_same(module(CAPTIONS), module(tokens["ids"]))
    assert_same(module.null(1), module([""]))
    assert_same(module.null(2)[1:], module.null(1))


def test_the_empty_prompt_may_be_given_as_ids() -> None:
    named, numbered = encoder(tokenizer=tokenizer()), encoder(empty_prompt=(1, 2))
    assert_same(named.null(2), numbered.null(2))
    numbered.tokenizer = tokenizer().to_str()
    assert_same(named(CAPTIONS), numbered(CAPTIONS))


def test_a_learned_null_is_one_token() -> None:
    module = encoder(null_kind="learned")
    assert module.null_token is not None
    assert torch.equal(parts(module.null(3))["context"], module.null_token.expand(3, 1, 10))
    dropped = module(torch.tensor([[1, 5, 2]])).where(torch.tensor([False]), module.null(1))
    assert parts(dropped)["context_mask"].tolist() == [[True, False, False]]


def test_the_file_holds_the_tokenizer(tmp_path: Path) -> None:
    module = encoder(tokenizer=tokenizer()).eval()
    ld.save(module, tmp_path / "text.safetensors")
    again = ld.load(tmp_path / "text.safetensors", classes=[ld.TextEncoder])
    assert isinstance(again, ld.TextEncoder)
    assert again.tokenizer == module.tokenizer
    assert_same(again(CAPTIONS), module(CAPTIONS))
    assert len(repr(again)) < 3000
    assert_same(copy.deepcopy(again)(CAPTIONS), module(CAPTIONS))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    module = encoder(tokenizer="{}")
    with pytest.raises(
        ImportError, match=r"tokenizers must be installed for this: pip install 'latentdiff\[interop\]'"
    ):
        module(["a"])


@pytest.mark.parametrize(
    ("y", "failure", "message"),
    [
        ("a red square", TypeError, "y must be a list of strings, one a sample, .* got 'a red square'"),
        ([], TypeError, r"y must be a list of strings, one a sample, .* got \[\]"),
        ([1, 2], TypeError, "y must be a list of strings"),
        (["a"], ValueError, "y must hold token ids where there is no tokenizer; set `tokenizer` to take strings"),
        (3, TypeError, "y must be a mapping with 'ids', 'mask', got int"),
        ({"ids": torch.ones(1, 2).long()}, ValueError, "y must have 'ids', 'mask', got 'ids'"),
        (torch.ones(1, 2), TypeError, "y must hold integer token ids, got torch.float32"),
        (torch.ones(2, dtype=torch.int64), ValueError, r"ids must have 2 axes \[batch, length\]"),
        (torch.ones(1, 8, dtype=torch.int64), ValueError, r"ids must have at most 7 tokens \(max_length\), got 8"),
        (torch.tensor([[1, 13]]), ValueError, r"ids must be in \[0, 12\], got values in \[1, 13\]"),
        ({"ids": [1], "mask": [True]}, TypeError, "ids must be a torch.Tensor of token ids, got list"),
        (
            {"ids": torch.ones(1, 2).long(), "mask": torch.ones(1, 2)},
            TypeError,
            "mask must be a bool tensor, True where there is a token, got torch.float32",
        ),
        (
            {"ids": torch.ones(1, 2).long(), "mask": torch.ones(1, 3).bool()},
            ValueError,
            "mask must have length=2, got length=3",
        ),
    ],
)
def test_what_is_no_prompt_is_refused(y: object, failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        encoder()(y)


@pytest.mark.parametrize(
    ("arguments", "failure", "message"),
    [
        ({"pad_id": 13}, ValueError, r"pad_id must be in \[0, 12\], got 13"),
        ({"empty_prompt": (1, 13)}, ValueError, r"empty_prompt must be up to 7 ids in \[0, 12\], got \(1, 13\)"),
        ({"empty_prompt": range(8)}, ValueError, "empty_prompt must be up to 7 ids"),
        ({"null_kind": "zeros"}, ValueError, "null_kind must be one of 'empty', 'learned', got 'zeros'"),
        ({"tokenizer": 3}, TypeError, "tokenizer must be a tokenizers.Tokenizer or its JSON, got int"),
        ({"vocabulary_size": -1, "pad_id": 0}, ValueError, "vocabulary_size must be at least 1, got -1"),
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
    ],
)
def test_a_wrong_encoder_is_refused(arguments: dict[str, Any], failure: type[Exception], message: str) -> None:
    with pytest.raises(failure, match=message):
        encoder(**arguments)


# Published numbers.


def small() -> TokenTransformer:
    module = TokenTransformer(vocabulary_size=50, max_length=12, dim=40, depth=2, vocabulary_head=True)
    module.load_state_dict(text_keys(weights("blocks", "text_transformer.")))
    return module


@needs_zoo
def test_it_is_the_published_transformer() -> None:
    golden, module = goldens("blocks"), small()
    found = module(golden["text_transformer/n/ids"])
    assert error(found, golden["text_transformer/n/out"]) <= TOLERANCE
    assert module.to_logits is not None
    assert error(module.to_logits(found), golden["text_transformer/n/logits"]) <= TOLERANCE


@needs_zoo
def test_it_masks_as_the_published_transformer_where_there_are_tokens() -> None:
    golden, mask = goldens("blocks"), goldens("blocks")["text_transformer/n/mask"]
    found = small()(golden["text_transformer/n/ids"], mask)
    assert error(found[mask], golden["text_transformer/n/out_masked"][mask]) <= TOLERANCE


@needs_zoo
@pytest.mark.parametrize("tag", ["n", "lo"])
def test_its_blocks_are_the_published_ones_at_small_amplitude_too(tag: str) -> None:
    golden = goldens("blocks")
    state = text_keys(weights("blocks", "text_encoder_layers."))
    blocks = torch.nn.ModuleList(EncoderBlock(dim=40, num_heads=8, head_dim=64) for _ in range(2))
    blocks.load_state_dict({key.removeprefix("blocks."): tensor for key, tensor in state.items()})
    x: Tensor = golden[f"text_encoder_layers/{tag}/x"]
    for block in blocks:
        x = block(x)
    assert error(x, golden[f"text_encoder_layers/{tag}/out"]) <= TOLERANCE


@needs_zoo
@pytest.mark.slow
def test_it_is_the_conditioner_of_text2img256() -> None:
    golden = goldens("text2img256")
    module = ld.TextEncoder(
        vocabulary_size=30522, dim=640, depth=32, mask_padding=False, empty_prompt=(101, 102), vocabulary_head=True
    )
    assert sum(p.numel() for p in module.parameters()) == facts("text2img256")["param_counts"]["cond_stage"]
    module.transformer.load_state_dict(text_keys(weights("text2img256", "cond_stage_model.transformer.")))
    with torch.no_grad():
        for tag in ("unet", "ns", "lo"):
            found = module(golden[f"{tag}/tokens"])
            assert found.context_mask is None
            assert error(parts(found)["context"], golden[f"{tag}/c_crossattn"]) <= TOLERANCE
        # The first prompts there are empty ones.
        assert error(parts(module.null(1))["context"], golden["unet/c_crossattn"][:1]) <= TOLERANCE


@needs_zoo
@pytest.mark.parametrize(
    ("name", "sizes"), [("txt2img-1p4B", (30522, 77, 1280, 32)), ("layout2img-openimages256", (8192, 92, 512, 16))]
)
def test_the_other_published_transformers_have_these_keys_and_shapes(
    name: str, sizes: tuple[int, int, int, int]
) -> None:
    vocabulary, length, dim, depth = sizes
    with torch.device("meta"):
        module = TokenTransformer(
            vocabulary_size=vocabulary, max_length=length, dim=dim, depth=depth, vocabulary_head=True
        )
        published = {
            key.removeprefix("cond_stage_model.transformer."): torch.empty(shape)
            for key, (_, shape) in facts(name)["keys"].items()
            if key.startswith("cond_stage_model.")
        }
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == {
        key: tensor.shape for key, tensor in text_keys(published).items()
    }
