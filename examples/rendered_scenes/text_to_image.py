"""Train a text-to-image model of rendered scenes from scratch, and count how many of the words its pictures obey.

    python examples/rendered_scenes/text_to_image.py --preset cpu --output out/text_to_image

The text encoder learns together with the denoising network. Training never sees some combinations of words, nor their
pictures: red triangles, three crosses, a triangle left of a square, ... (`captions.py` has them all); they are asked
for in the end. A GPU is used if there is one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import figures
import torch
import training
from captions import KINDS, PLACES, RELATIONS, Caption, Kind, compose, draw_caption, obeyed, role
from check import find, find_all
from scenes import COLOURS, SHAPES, SIZE, Scenes, Thing, render
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

import latentdiff as ld

GUIDANCE_SCALE = 2.0
COLUMNS = 8
"""Pictures of each kind of caption that are shown."""


def draw_captions(kind: Kind, count: int, seed: int) -> list[Caption]:
    """Captions of a kind."""
    draw = random.Random(seed)
    return [draw_caption(kind, draw) for _ in range(count)]


def render_all(captions: Sequence[Caption], seed: int) -> Tensor:
    """A picture for each caption."""
    draw = random.Random(seed)
    return render(Scenes.of([compose(caption, draw) for caption in captions]), seed)


def build_tokenizer() -> Tokenizer:
    """One token for each word that captions have."""
    plurals = (f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES)
    phrases = ("two three a at the", *COLOURS, *SHAPES, *plurals, *PLACES, *RELATIONS)
    words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
    tokenizer = Tokenizer(WordLevel({"[none]": 0, **{word: i + 1 for i, word in enumerate(words)}}, unk_token="[none]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def build_encoder(dim: int) -> ld.TextEncoder:
    """A transformer of two blocks over words."""
    tokenizer = build_tokenizer()
    return ld.TextEncoder(
        vocabulary_size=tokenizer.get_vocab_size(),
        dim=dim,
        depth=2,
        max_length=8,
        num_heads=4,
        head_dim=dim // 4,
        tokenizer=tokenizer,
        null_kind="learned",
        dropout=0.1,
    )


def count_words(captions: Sequence[Caption], pictures: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """The shares of words that pictures obey, by what is found in them: all words, whole captions, each role."""
    right, total, whole = Counter[str](), Counter[str](), 0
    for caption, found in zip(captions, pictures, strict=True):
        words = obeyed(caption, found)
        whole += all(words.values())
        for word, is_obeyed in words.items():
            for name in ("words", role(word)):
                total[name] += 1
                right[name] += is_obeyed
    return {name: right[name] / total[name] for name in total} | {"whole captions": whole / len(captions)}


def evaluate(model: ld.LatentDiffusion, encoder: ld.TextEncoder, each: int) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of words obeyed, on captions of each kind, and their mean over the kinds that are unseen.

    Beside samples with and without guidance there are real pictures of the same captions, these after the first
    stage, and as chance real pictures of other captions of the same kind.
    """
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for number, kind in enumerate(KINDS):
        captions = draw_captions(kind, each, seed=100 + number)
        real = render_all(captions, seed=200 + number)
        tokens = tokenize(encoder, captions)
        pictures = {
            "guided": training.draw(model, tokens, GUIDANCE_SCALE, seed=300 + number),
            "unguided": training.draw(model, tokens, 1.0, seed=400 + number),
            "reconstructed": training.reconstruct(model, real),
            "real": real,
        }
        found = {way: find_all(images) for way, images in pictures.items()}
        found["chance"] = [*found["real"][1:], found["real"][0]]
        shares[kind] = {way: count_words(captions, things) for way, things in found.items()}
    unseen = [shares[kind] for kind in KINDS[1:]]
    shares["unseen"] = {
        way: {name: sum(part[way][name] for part in unseen) / len(unseen) for name in ("words", "whole captions")}
        for way in unseen[0]
    }
    return shares


def tokenize(encoder: ld.TextEncoder, captions: Sequence[Caption]) -> Tensor:
    """Token ids `[captions, tokens]`."""
    return encoder.tokenize([caption.text for caption in captions])["ids"]


def write_samples(model: ld.LatentDiffusion, encoder: ld.TextEncoder, path: Path) -> None:
    """A row of pictures for each kind of caption, none chosen."""
    captions = [draw_captions(kind, COLUMNS, seed=500 + number) for number, kind in enumerate(KINDS)]
    images = torch.stack(
        [training.draw(model, tokenize(encoder, row), GUIDANCE_SCALE, seed=600 + i) for i, row in enumerate(captions)]
    )
    pairs = (zip(row, line, strict=True) for row, line in zip(captions, images, strict=True))
    right = [[all(obeyed(caption, find(image)).values()) for caption, image in pair] for pair in pairs]
    names = [kind if kind == "seen" else f"unseen {kind}" for kind in KINDS]
    figures.captioned(names, images, [[caption.text for caption in row] for row in captions], right, path)


def main() -> None:
    """Render, train, draw, measure, save."""
    parsed, preset = training.parse(__doc__)
    training.prepare()
    clock, output = training.Clock(), parsed.output
    captions = draw_captions("seen", preset.scenes, seed=0)
    images = render_all(captions, seed=1)
    clock.lap("rendering")
    autoencoder = training.first_stage(parsed.first_stage, images, preset, output)
    clock.lap("first stage")
    encoder = build_encoder(preset.dim)
    model = training.build_model(autoencoder, encoder, preset, SIZE)
    training.fit(model, images, tokenize(encoder, captions), preset, output / "diffusion")
    clock.lap("diffusion")
    ld.save(model, output / "model.safetensors")
    write_samples(model, encoder, output / "samples.png")
    shares = evaluate(model, encoder, preset.evaluated)
    clock.lap("drawing and measuring")
    training.write_metrics(
        {"preset": parsed.preset, "guidance_scale": GUIDANCE_SCALE, "shares": shares, "seconds": clock.seconds}, output
    )


if __name__ == "__main__":
    main()
