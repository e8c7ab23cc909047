"""The published zoo: names, shapes and numbers of all 24 models, and outputs of those that were recorded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import latentdiff as ld
import zoo_parity
from compvis import same
from latentdiff._checkpoints._compvis_config import build_module
from latentdiff._checkpoints._node import Node
from published import FOLDER, TOLERANCE, facts, needs_zoo

MODELS = {name: line.rpartition("(")[2].rstrip(")") for name, line in ld.presets().items()}
RECORDED = [
    name for name, published in MODELS.items() if FOLDER and (Path(FOLDER) / f"{published}.safetensors").is_file()
]


def test_there_are_the_24_models_of_the_zoo_under_two_names_each() -> None:
    assert len(set(MODELS) | set(MODELS.values())) == 48
    with torch.device("meta"):
        for name, published in (("vq-8", "vq-f8"), ("ldm-vq-4-ffhq", "ffhq256")):
            assert ld.create(name).config == ld.create(published).config
    with pytest.raises(ValueError, match=r"name must be one of kl-4, .*ldm-kl-16-retrieval, got 'sd-9'"):
        ld.create("sd-9")


@needs_zoo
@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_has_the_counts_and_the_names_of_its_checkpoint(name: str) -> None:
    known = facts(MODELS[name])
    with torch.device("meta"):
        model = ld.create(name)
        described = build_module(Node(known["config"], ""))
    assert model.config == described.config
    assert zoo_parity.found_shapes(model) == zoo_parity.wanted_shapes(MODELS[name])
    counts = known["param_counts"]
    if isinstance(model, ld.Autoencoder):
        assert _count(model) == counts["autoencoder"]
        assert model.downsampling_factor == known["downsampling_factor"]
    else:
        parts = (model.unet, model.autoencoder, model.condition_encoder)
        assert [_count(part) for part in parts] == [counts[key] for key in ("unet", "first_stage", "cond_stage")]
        assert _count(model) == counts["total_without_ema"]
        assert model.autoencoder.downsampling_factor == known["downsampling_factor"]
        assert model.schedule.num_timesteps == known["num_timesteps"]


@needs_zoo
@pytest.mark.parametrize("name", MODELS)
def test_a_narrow_variant_of_each_model_goes_out_and_comes_back_key_for_key(name: str, tmp_path: Path) -> None:
    known = facts(MODELS[name])
    narrow = narrowed(known["config"])
    model: Any = build_module(Node(narrow, ""))
    if "scale_factor" in known["keys"]:
        model.autoencoder.scaling_factor = 0.4375  # a number that float32 holds: as if it had been measured
    ld.export(model, tmp_path / "one.safetensors", layout="compvis")
    again = ld.load(tmp_path / "one.safetensors", config=narrow)
    ld.export(again, tmp_path / "two.safetensors", layout="compvis")
    one, two = (load_file(tmp_path / f"{number}.safetensors") for number in ("one", "two"))
    assert same(one, two)
    assert one.keys() == {key for key in known["keys"] if not key.startswith("loss.")}


@pytest.mark.slow
@needs_zoo
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_outputs_are_met(name: str) -> None:
    measured = zoo_parity.errors(MODELS[name], zoo_parity.loaded(MODELS[name])) | zoo_parity.averaged_error(
        MODELS[name]
    )
    assert len(measured) >= 8
    assert {quantity: value for quantity, value in measured.items() if value > TOLERANCE} == {}


def narrowed(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture with few channels and short tables: as many layers, hardly any numbers."""
    config = copy.deepcopy(config)
    params = config["model"]["params"]
    first_stage = params.get("first_stage_config", {"params": params})["params"]
    first_stage["ddconfig"]["ch"] = 4
    if "n_embed" in first_stage:
        first_stage["n_embed"] = 5
    if "unet_config" not in params:
        return config
    unet = params["unet_config"]["params"]
    unet["model_channels"] = 8
    if "num_head_channels" in unet:
        unet["num_head_channels"] = 8
    if "context_dim" in unet:
        unet["context_dim"] = 6
    encoder = params["cond_stage_config"]
    if isinstance(encoder, dict) and "embed_dim" in encoder.get("params", {}):
        encoder["params"]["embed_dim"] = 6
    if isinstance(encoder, dict) and "n_layer" in encoder.get("params", {}):
        encoder["params"] |= {"n_embed": 6, "vocab_size": 120}
    return config


def _count(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
