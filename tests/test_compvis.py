"""Checkpoints of the CompVis family: names, configurations, averages, scale factors, reports, and the way back."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import latentdiff as ld
from compvis import CONFIGS, built, config, exported, same
from latentdiff._checkpoints._compvis import schedule_buffers

# There and back.


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exported_model_is_loaded_as_it_was(name: str, tmp_path: Path) -> None:
    model, path = built(name), tmp_path / "model.safetensors"
    tensors = exported(model, path)
    again = ld.load(path, config=config(name))
    assert type(again) is type(model)
    assert not again.training
    assert again.config == model.config
    parameters = dict(again.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(parameters[key], value) for key, value in model.named_parameters())
    assert same(exported(again, tmp_path / "again.safetensors"), tensors)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_both_kinds_of_file_hold_the_same(suffix: str, tmp_path: Path) -> None:
    model, path = built("classes"), tmp_path / f"model.{suffix}"
    ld.export(model, path, layout="compvis")
    again = ld.load(path, config=config("classes"))
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_configuration_is_read_from_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    model = built("unconditional")
    ld.export(model, tmp_path / "model.ckpt", layout="compvis")
    # JSON is YAML, and numbers such as 1e-6 are what YAML 1.1 takes for text.
    (tmp_path / "config.yaml").write_text(json.dumps(config("unconditional")))
    again = ld.load(tmp_path / "model.ckpt", config=tmp_path / "config.yaml")
    assert again.config == model.config


def test_without_pyyaml_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("model: {}")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"needs PyYAML.*pip install 'latentdiff\[interop\]'"):
        ld.load(tmp_path / "model.ckpt", config=tmp_path / "config.yaml")


# Averages.


def test_averaged_weights_are_found_below_names_without_dots(tmp_path: Path) -> None:
    raw, averaged, path = built("classes"), built("classes", seed=1), tmp_path / "model.safetensors"
    tensors = exported(raw, path, ema=averaged)
    assert torch.equal(
        tensors["model_ema.diffusion_modelinput_blocks00weight"], averaged.state_dict()["unet.conv_in.weight"]
    )
    chosen, other = ld.load(path, config=config("classes")), ld.load(path, config=config("classes"), ema=False)
    for key, value in raw.state_dict().items():
        expected = averaged.state_dict()[key] if key.startswith("unet.") else value
        assert torch.equal(chosen.state_dict()[key], expected)
        assert torch.equal(other.state_dict()[key], value)
    assert same(exported(other, tmp_path / "again.safetensors", ema=chosen), tensors)


def test_a_first_stage_is_averaged_as_a_whole(tmp_path: Path) -> None:
    raw, averaged, path = built("vq"), built("vq", seed=1), tmp_path / "model.safetensors"
    tensors = exported(raw, path, ema=averaged)
    assert "model_ema.quantizeembeddingweight" in tensors
    chosen = ld.load(path, config=config("vq"))
    assert all(torch.equal(one, two) for one, two in zip(chosen.parameters(), averaged.parameters(), strict=True))


def test_averages_that_are_not_all_there_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = exported(built("unconditional"), path, ema=built("unconditional", seed=1))
    lost = tensors.pop("model_ema.diffusion_modelout2bias")
    assert lost.shape == (3,)
    save_file(tensors, path)
    with pytest.raises(ld.CheckpointError, match=r"missing: model_ema\.diffusion_modelout2bias"):
        ld.load(path, config=config("unconditional"))


# The latents' scale, the null, the schedule, dtypes.


def test_the_scale_of_the_latents_is_taken_over(tmp_path: Path) -> None:
    for name, factor, in_file in (("text", 0.18215, False), ("measured scale", float(torch.tensor(0.37)), True)):
        model = built(name)
        tensors = exported(model, tmp_path / "m.safetensors")
        assert ("scale_factor" in tensors) == in_file
        again = ld.load(tmp_path / "m.safetensors", config=config(name))
        assert isinstance(again, ld.LatentDiffusion)
        assert again.autoencoder.scaling_factor == factor
    del tensors["scale_factor"]
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(ld.CheckpointError, match="must hold scale_factor, as scale_by_std says"):
        ld.load(tmp_path / "m.safetensors", config=config("measured scale"))


@pytest.mark.parametrize(
    ("name", "trained"), [("classes", False), ("classes and none", True), ("text", True), ("layout", False)]
)
def test_guidance_is_allowed_where_a_null_was_published(name: str, trained: bool, tmp_path: Path) -> None:
    model = built(name)
    ld.export(model, tmp_path / "m.safetensors", layout="compvis")
    again = ld.load(tmp_path / "m.safetensors", config=config(name))
    assert isinstance(again, ld.LatentDiffusion)
    assert again.condition_encoder is not None
    assert again.condition_encoder.null_trained.item() is trained


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("linear", ld.NoiseSchedule.scaled_linear(1000, 0.0015, 0.0195)),
        ("sqrt_linear", ld.NoiseSchedule.linear(1000, 0.0015, 0.0195)),
        ("sqrt", ld.NoiseSchedule.sqrt(1000, 0.0015, 0.0195)),
        ("cosine", ld.NoiseSchedule.cosine(1000)),
    ],
)
def test_schedules_have_the_originals_names(kind: str, schedule: ld.NoiseSchedule, tmp_path: Path) -> None:
    changed = config("unconditional")
    changed["model"]["params"]["beta_schedule"] = kind
    ld.export(built("unconditional"), tmp_path / "m.safetensors", layout="compvis")
    model = ld.load(tmp_path / "m.safetensors", config=changed)
    assert isinstance(model, ld.LatentDiffusion)
    assert model.schedule == schedule


def test_fewer_steps_are_a_line_of_fewer_points(tmp_path: Path) -> None:
    """The original does not resample: the last beta of 5 steps is that of 1000."""
    changed = config("unconditional")
    changed["model"]["params"] |= {"timesteps": 5, "beta_schedule": "sqrt_linear"}
    ld.export(built("unconditional"), tmp_path / "m.safetensors", layout="compvis")
    model = ld.load(tmp_path / "m.safetensors", config=changed)
    assert isinstance(model, ld.LatentDiffusion)
    expected = torch.linspace(0.0015, 0.0195, 5, dtype=torch.float64)
    torch.testing.assert_close(model.schedule.betas, expected, rtol=1e-15, atol=0)


def test_the_tables_are_those_of_the_posterior() -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0) by our schedule, to float32's last bit."""
    schedule = ld.NoiseSchedule.cosine(20)
    tables = schedule_buffers(schedule)
    t = torch.arange(20)
    one, zero = torch.ones(20, 1, dtype=torch.float64), torch.zeros(20, 1, dtype=torch.float64)
    of_sample, of_noisy = schedule.posterior(one, zero, t), schedule.posterior(zero, one, t)
    for name, expected in (
        ("posterior_mean_coef1", of_sample.mean), ("posterior_mean_coef2", of_noisy.mean),
        ("posterior_variance", of_noisy.variance),
    ):  # fmt: skip
        torch.testing.assert_close(tables[name].double(), expected.expand(20, 1)[:, 0], rtol=2e-7, atol=1e-12)
    assert len(tables) == 12


def test_half_precision_files_make_a_float32_model(tmp_path: Path) -> None:
    model = built("unconditional")
    tensors = {key: value.half() for key, value in exported(model, tmp_path / "m.safetensors").items()}
    save_file(tensors, tmp_path / "m.safetensors")
    again = ld.load(tmp_path / "m.safetensors", config=config("unconditional"))
    for one, other in zip(again.parameters(), model.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other.half().float())


def test_inpainting_keeps_its_first_stage_twice(tmp_path: Path) -> None:
    tensors = exported(built("inpainting"), tmp_path / "m.safetensors")
    copies = {name for name in tensors if name.startswith("cond_stage_model.")}
    assert copies
    for name in copies:
        assert torch.equal(tensors[name], tensors[name.replace("cond_stage_model.", "first_stage_model.")])


# Reports.


def test_what_training_leaves_behind_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for name, left in (
        ("vq", ("loss.discriminator.main.0.weight", "loss.logvar", "colorize")),
        ("unconditional", ("first_stage_model.loss.perceptual_loss.lin0.model.1.weight", "lvlb_weights", "logvar")),
    ):
        tensors = exported(built(name), path)
        save_file(tensors | {key: torch.zeros(2) for key in left}, path)
        assert ld.load(path, config=config(name)).config == built(name).config


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = exported(built("unconditional"), path)
    tensors["model.diffusion_model.out.3.bias"] = tensors.pop("model.diffusion_model.out.2.bias")
    tensors["first_stage_model.quantize.embedding.weight"] = torch.zeros(12, 3)
    save_file(tensors, path)
    with pytest.raises(ld.CheckpointError, match="does not fit its configuration") as caught:
        ld.load(path, config=config("unconditional"))
    assert caught.value.missing == ("model.diffusion_model.out.2.bias",)
    assert caught.value.unexpected == ("model.diffusion_model.out.3.bias",)
    assert caught.value.misshapen == {"first_stage_model.quantize.embedding.weight": ((12, 3), (11, 3))}
    for part in ("missing: model.", "unexpected: model.", "embedding.weight: [12, 3] instead of [11, 3]"):
        assert part in str(caught.value)


def test_a_long_report_is_cut_in_the_message_only(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"something": torch.zeros(1)}, path)
    with pytest.raises(ld.CheckpointError, match=r"missing: .* and \d+ more; unexpected: something") as caught:
        ld.load(path, config=config("unconditional"))
    assert len(caught.value.missing) > 100


# Files that are not what they should be.


def test_the_state_of_a_trainer_that_is_not_installed_is_left_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old checkpoints have classes of their trainer beside the weights."""
    module = types.ModuleType("pytorch_lightning.callbacks")

    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    monkeypatch.setattr(module, "ModelCheckpoint", ModelCheckpoint, raising=False)
    path, model = tmp_path / "model.ckpt", built("vq")
    state = exported(model, tmp_path / "m.safetensors")
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        context.setitem(sys.modules, module.__name__, module)
        torch.save(
            {
                "epoch": 3,
                "state_dict": state,
                "callbacks": {ModelCheckpoint: {"best": ModelCheckpoint(), "score": np.float64(0.5)}},
            },
            path,
        )
    again = ld.load(path, config=config("vq"))
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": {"a": torch.zeros(1)}, "evil": Evil()}, tmp_path / "model.ckpt")
    with pytest.raises(ld.CheckpointError, match=r"must hold tensors and plain values only, .* got .*Path"):
        ld.load(tmp_path / "model.ckpt", config=config("vq"))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ld.CheckpointError, match="there is no such file"):
        ld.load(path, config=config("vq"))
    ld.export(built("vq"), path, layout="compvis")
    whole = path.read_bytes()
    for content in (whole[:100], whole[:-50], b"", b"what?"):
        path.write_bytes(content)
        with pytest.raises(ld.CheckpointError, match="damaged or truncated"):
            ld.load(path, config=config("vq"))


@pytest.mark.parametrize("content", [["weights"], {"state_dict": 3}, torch.zeros(2)])
def test_a_file_without_a_mapping_of_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ld.CheckpointError, match="must hold a mapping of tensors, got"):
        ld.load(tmp_path / "model.ckpt", config=config("vq"))


def test_files_of_old_torch_are_read_too(tmp_path: Path) -> None:
    model = built("vq")
    state = exported(model, tmp_path / "m.safetensors")
    torch.save(state, tmp_path / "model.ckpt", _use_new_zipfile_serialization=False)
    again = ld.load(tmp_path / "model.ckpt", config=config("vq"))
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\t- {"])
def test_a_configuration_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ld.CheckpointError, match=r"must hold a mapping|is no YAML"):
        ld.load(tmp_path / "model.ckpt", config=tmp_path / "config.yaml")
    with pytest.raises(ld.CheckpointError, match="there is no file"):
        ld.load(tmp_path / "model.ckpt", config=tmp_path / "other.yaml")
    for given in ([1], 3):
        kind = type(given).__name__
        with pytest.raises(TypeError, match=f"config must be a YAML file or what it holds, a mapping, got {kind}"):
            ld.load(tmp_path / "model.ckpt", config=given)  # type: ignore[arg-type]


# Configurations.

UNET_PARAMS, MODEL, CODERS = "unet_config.params", "", "first_stage_config.params.ddconfig"


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        (UNET_PARAMS, {"conv_resample": 0}, "unet_config.params.conv_resample must be true or false, got 0"),
        (UNET_PARAMS, {"num_heads_upsample": 3}, "built: num_heads_up times head_dim must be the 16 channels"),
        (UNET_PARAMS, {"n_embed": 4}, "n_embed must be left out to be built here, got 4"),
        (UNET_PARAMS, {"flavour": "new"}, "must have no entries of unknown meaning, got flavour"),
        (UNET_PARAMS, {"channel_mult": "1,2"}, "channel_mult must be a list of whole numbers, got '1,2'"),
        (UNET_PARAMS, {"channel_mult": [1, 2.5]}, "channel_mult must be a list of whole numbers"),
        (UNET_PARAMS, {"model_channels": True}, "model_channels must be a whole number, got True"),
        (UNET_PARAMS, {"model_channels": None}, "must have an entry 'model_channels'"),
        (UNET_PARAMS, {"dropout": "high"}, "dropout must be a number, got 'high'"),
        (UNET_PARAMS, {"resblock_updown": 1}, "resblock_updown must be true or false, got 1"),
        (UNET_PARAMS, {"num_heads": None}, "must have an entry 'num_heads'"),
        (UNET_PARAMS, {"num_heads": 3}, "cannot be built: num_heads times head_dim must be the 16 channels"),
        (UNET_PARAMS, {"dims": 3}, "dims must be 2 to be built here, got 3"),
        (CODERS, {"attn_type": "memory-efficient"}, "attn_type must be 'vanilla' or 'none'"),
        (CODERS, {"give_pre_end": True}, "give_pre_end must be False to be built here"),
        (CODERS, {"double_z": True}, "double_z must be False to be built here, got True"),
        ("first_stage_config.params", {"remap": "used.npy"}, "remap must be left out to be built here"),
        ("first_stage_config", {"target": "x.GumbelVQ"}, "first_stage_config.target must be one of AutoencoderKL"),
        (MODEL, {"beta_schedule": "wavy"}, "beta_schedule must be linear, sqrt_linear, sqrt or cosine, got wavy"),
        (MODEL, {"parameterization": "w"}, "parameterization must be one of eps, x0, v, got w"),
        (MODEL, {"given_betas": [0.1]}, "given_betas must be left out"),
        (MODEL, {"linear_start": "high"}, "linear_start must be a number, got 'high'"),
        (MODEL, {"unet_config": 3}, "unet_config must be a mapping, got 3"),
        (MODEL, {"unet_config": {"target": 3}}, "unet_config.target must be text, got 3"),
        (MODEL, {"unet_config": {"target": "x.DiT"}}, "unet_config.target must be UNetModel, got DiT"),
        (MODEL, {"cond_stage_config": {"target": "x.Clip"}}, "cond_stage_config.target must be Identity, .* got Clip"),
        (
            MODEL,
            {"cond_stage_config": {"target": "x.SpatialRescaler", "params": {"method": "magic"}}},
            "method must be one of bilinear, .* got magic",
        ),
        (
            MODEL,
            {"cond_stage_config": {"target": "BERTEmbedder", "params": {"use_tokenizer": False, "max_seq_len": 7}}},
            "max_seq_len must be three tokens an object, or two more for the crop, got 7",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_named(where: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    changed = config("unconditional")
    node = changed["model"]["params"]
    for part in where.split(".") if where else []:
        node = node[part]
    node |= change
    with pytest.raises(ld.CheckpointError, match=message):
        ld.load(tmp_path / "model.ckpt", config=changed)


def test_arguments_without_a_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ema must be left out without config, as files of save have no averages"):
        ld.load(tmp_path / "model.safetensors", ema=False)
    with pytest.raises(ValueError, match="classes must be left out with config, which names none of them, got UNet"):
        ld.load(tmp_path / "model.safetensors", config=config("vq"), classes=[ld.UNet])


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ld.CheckpointError, match=r"model\.target must be one of AutoencoderKL, .* got Transformer"):
        ld.load(tmp_path / "model.ckpt", config={"model": {"target": "taming.Transformer"}})
    with pytest.raises(ld.CheckpointError, match="must have an entry 'target'"):
        ld.load(tmp_path / "model.ckpt", config={})


# What has no place in the layout.


def test_what_the_layout_cannot_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(TypeError, match="model must be a LatentDiffusion or an Autoencoder, got CrossAttention"):
        ld.export(ld.CrossAttention(query_dim=4), path, layout="compvis")
    with pytest.raises(ValueError, match="layout must be one of 'compvis', got 'tar'"):
        ld.export(built("vq"), path, layout="tar")  # type: ignore[arg-type]
    averaged = ld.Autoencoder(
        base_channels=4, channel_multipliers=(1,), bottleneck="vq", codebook_size=5, codebook_decay=0.9
    )
    with pytest.raises(ValueError, match=r"no parts without a place .*, got quantizer\.average"):
        ld.export(averaged, path, layout="compvis")
    for factors in ({"shift_factor": 0.5}, {"scaling_factor": [1.0, 2.0, 3.0, 4.0]}):
        shifted = ld.Autoencoder(base_channels=4, channel_multipliers=(1,), **factors)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="model must have one scaling_factor and shift_factor=0"):
            ld.export(shifted, path, layout="compvis")
    with pytest.raises(ValueError, match="ema must be the same model with averaged weights, got another one"):
        ld.export(built("vq"), path, layout="compvis", ema=built("vqgan"))
    parts = built("unconditional")
    assert isinstance(parts, ld.LatentDiffusion)
    dit = ld.DiT(in_channels=3, dim=4, depth=1, num_heads=1)
    with pytest.raises(TypeError, match="unet must be a UNet to have names in the CompVis layout, got DiT"):
        ld.export(
            ld.LatentDiffusion(autoencoder=parts.autoencoder, unet=dit, schedule=parts.schedule), path, layout="compvis"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the highest memory of a process is read from /proc")
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_loading_takes_no_more_memory_than_the_model(suffix: str, tmp_path: Path) -> None:
    """A file with averages beside the weights, of which half is needed: its memory is mapped, not read."""
    path = tmp_path / f"model.{suffix}"
    ld.export(ld.create("vq-4"), path, layout="compvis", ema=ld.create("vq-4"))
    coders = {"ch": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2, "attn_resolutions": [], "resolution": 256}
    described = {
        "target": "VQModel",
        "params": {
            "embed_dim": 3, "n_embed": 8192, "ddconfig": {"in_channels": 3, "out_ch": 3, "z_channels": 3, **coders},
        },
    }  # fmt: skip
    code = (
        "import json, sys, torch, latentdiff as ld;"  # getrusage would tell the peak of the process that began this one
        "peak = lambda: 1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]);"
        "before = peak(); m = ld.load(sys.argv[1], config=json.loads(sys.argv[2]));"
        "total = sum(float(p.detach().sum()) for p in m.parameters()); print(peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), json.dumps(described)], capture_output=True, text=True, check=True
    )
    model = 4 * sum(parameter.numel() for parameter in ld.create("vq-4").parameters())
    assert 0.9 * model < int(run.stdout) < 1.2 * model


# The whole way.

GIVEN: dict[str, Any] = {
    "unconditional": None,
    "measured scale": None,
    "classes": torch.tensor([3, 999]),
    "classes and none": torch.tensor([3, -1]),
    "text": torch.arange(18).reshape(2, 9),
    "layout": torch.arange(22).reshape(2, 11),
    "semantic": torch.arange(2 * 16 * 16).reshape(2, 16, 16) % 6,
    "super-resolution": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8),
    "inpainting": {"image": torch.zeros(2, 3, 8, 8), "mask": torch.ones(2, 1, 16, 16)},
    "retrieval": torch.linspace(-1, 1, 2 * 4 * 12).reshape(2, 4, 12),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_loaded_model_draws_images_of_its_condition(name: str, tmp_path: Path) -> None:
    ld.export(built(name), tmp_path / "model.safetensors", layout="compvis")
    model = ld.load(tmp_path / "model.safetensors", config=config(name))
    assert isinstance(model, ld.LatentDiffusion)
    scale = 2.0 if name in {"text", "classes and none"} else 1.0
    images = model.generate(
        GIVEN[name],
        batch=2 if GIVEN[name] is None else None,
        sampler=ld.Sampler("ddim", 2),
        guidance_scale=scale,
        generator=ld.CounterNoise(0),
    )
    assert images.shape == (2, 3, *(8 * model.autoencoder.downsampling_factor,) * 2)
    assert images.isfinite().all()
