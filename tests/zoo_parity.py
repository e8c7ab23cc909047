"""How far the models of the published zoo are from the code that published them.

`LATENTDIFF_ZOO=folder python tests/zoo_parity.py` prints a table: for each model its parameters, whether the names and
shapes of its checkpoint are met, and where there are recorded outputs the largest error over their standard deviation.
With `--write docs/zoo.md` the table of that page is replaced. The folder is that of `published`. The exit status says
whether all of it holds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import latentdiff as ld
from latentdiff._checkpoints._compvis import module_places, schedule_buffers
from published import TOLERANCE, error, facts, goldens, maker, zoo

CLOSE_CODES = 1e-5
"""Two codes whose squared distances differ by less may be told apart differently by another kernel."""

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def models() -> dict[str, str]:
    """The published name of each architecture, by ours."""
    return {name: line.rpartition("(")[2].rstrip(")") for name, line in ld.presets().items()}


def has_goldens(published: str) -> bool:
    return (zoo() / f"{published}.safetensors").is_file()


# The checkpoint, as it was.


def checkpoint(published: str, *, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a published checkpoint, with averages only where they are asked for."""
    known = facts(published)
    recorded = goldens(published) if has_goldens(published) else {}
    fixed = {key: recorded[f"fixed/{key}"] for key in known["fixed_keys"] if f"fixed/{key}" in recorded}
    state: dict[str, Tensor] = maker().deterministic_state_dict(known["keys"], fixed, known["aliases"])
    if ema:
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(0, dtype=torch.int32)}
        for key, averaged in known["ema_keys"].items():
            state[averaged] = maker().deterministic_tensor(averaged, known["keys"][key][1])
    return state


def loaded(published: str, *, ema: bool = False) -> Any:
    """A model as `ld.load` reads it from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(checkpoint(published, ema=ema), path)
        return ld.load(path, config=facts(published)["config"])


def wanted_shapes(published: str) -> dict[str, list[int]]:
    """Shapes that a model must have, by the names of its checkpoint; without those of training and of the schedule."""
    known = facts(published)
    left = {*known["fixed_keys"], "scale_factor"}
    aliases = tuple(known["aliases"])
    return {
        key: shape
        for key, (_, shape) in known["keys"].items()
        if key not in left and not key.startswith(("loss.", *aliases))
    }


def found_shapes(model: Any) -> dict[str, list[int]]:
    """The same of a model of ours."""
    state = model.state_dict()
    return {place.theirs: [*state[key].shape, *[1] * place.axes] for key, place in module_places(model).items()}


# Outputs.


@torch.no_grad()
def errors(published: str, model: Any) -> dict[str, float]:
    """The largest error of each recorded output over its standard deviation, by its name; of a number, over itself."""
    recorded = goldens(published)
    if isinstance(model, ld.Autoencoder):
        return dict(_first_stage(model, recorded))
    return dict(_whole(model, recorded, facts(published)))


def _first_stage(model: ld.Autoencoder, recorded: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    for tag in ("sq", "ns", "lo"):
        posterior = model.encode(recorded[f"{tag}/x"])
        if f"{tag}/h" in recorded:
            yield f"{tag}/h", error(posterior.mean, recorded[f"{tag}/h"])
        if f"{tag}/moments" in recorded and isinstance(posterior, ld.DiagonalGaussian):
            moments = torch.cat([posterior.mean, posterior.log_variance], dim=1)
            yield f"{tag}/moments", error(moments, recorded[f"{tag}/moments"])
        if f"{tag}/kl" in recorded:
            yield f"{tag}/kl", _relative(posterior.kl(), recorded[f"{tag}/kl"])
        if f"{tag}/idx" in recorded and model.quantizer is not None:
            quantized = model.quantizer(recorded[f"{tag}/h"])
            yield f"{tag}/idx", _flipped(quantized.indices, recorded[f"{tag}/idx"], recorded[f"{tag}/margin"])
            yield f"{tag}/emb_loss", _relative(quantized.loss, recorded[f"{tag}/emb_loss"])
        latents = next(recorded[f"{tag}/{name}"] for name in ("z", "zq", "mean") if f"{tag}/{name}" in recorded)
        yield f"{tag}/dec", error(model.decode(latents, quantize=False), recorded[f"{tag}/dec"])


def _whole(
    model: ld.LatentDiffusion, recorded: Mapping[str, Tensor], known: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    autoencoder = model.autoencoder
    yield "fs/z", error(autoencoder.encode(recorded["fs/x"]).mode(), recorded["fs/z"])
    if "fs/dec" in recorded:
        yield "fs/dec", error(autoencoder.decode(recorded["fs/z_in"]), recorded["fs/dec"])
    if "fs/dec_no_quantize" in recorded:
        decoded = autoencoder.decode(recorded["fs/z_in"], quantize=False)
        yield "fs/dec_no_quantize", error(decoded, recorded["fs/dec_no_quantize"])
    for tag in ("unet", "ns", "lo"):
        condition = _condition(model, recorded, known, tag)
        for name, part in _parts(condition).items():
            yield f"{tag}/{name}", error(part, recorded[f"{tag}/{name}"])
        yield (
            f"{tag}/eps",
            error(model.unet(recorded[f"{tag}/x"], recorded[f"{tag}/t"], condition), recorded[f"{tag}/eps"]),
        )
    for name, table in schedule_buffers(model.schedule).items():
        if f"fixed/{name}" in recorded:
            yield f"fixed/{name}", error(table, recorded[f"fixed/{name}"])
    noisy = model.schedule.add_noise(recorded["ns/x"], recorded["loss/noise"], recorded["ns/t"])
    yield "loss/x_noisy", error(noisy, recorded["loss/x_noisy"])
    kind = known["config"]["model"]["params"].get("loss_type", "l2")
    loss = ld.losses.DiffusionLoss(kind="l1" if kind == "l1" else "mse")(
        model.denoiser,
        recorded["ns/x"],
        _condition(model, recorded, known, "ns"),
        t=recorded["ns/t"],
        noise=recorded["loss/noise"],
    )
    yield "loss/loss_simple", _relative(loss.loss, recorded["loss/loss_simple"])


ENCODED = ("tokens", "class_label", "labels")
"""What the encoders of the zoo are given; one that is the identity, what it makes of it."""

PARTS = {"c_concat": "concat", "c_crossattn": "context"}
"""Recorded parts of a condition, and ours."""


def _condition(
    model: ld.LatentDiffusion, recorded: Mapping[str, Tensor], known: Mapping[str, Any], tag: str
) -> ld.Condition | None:
    """What the model's encoder makes of the recorded input; where that was not recorded, the condition that was."""
    encoder = model.condition_encoder
    if encoder is None:
        return None
    names = (*ENCODED, *PARTS) if "conditioner: identity" in known["recipe"] else ENCODED
    for name in names:
        if f"{tag}/{name}" in recorded:
            condition: ld.Condition = encoder(recorded[f"{tag}/{name}"])
            return condition
    return ld.Condition(
        **{ours: recorded[f"{tag}/{theirs}"] for theirs, ours in PARTS.items() if f"{tag}/{theirs}" in recorded}
    )


def _parts(condition: ld.Condition | None) -> dict[str, Tensor]:
    """The parts of a condition that are there, by the names of the recorded ones."""
    parts = {theirs: getattr(condition, ours, None) for theirs, ours in PARTS.items()}
    return {name: part for name, part in parts.items() if part is not None}


@torch.no_grad()
def averaged_error(published: str) -> dict[str, float]:
    """The error of the output of averaged weights, for models of which it was recorded."""
    recorded = goldens(published)
    if "ns/eps_ema" not in recorded:
        return {}
    model = loaded(published, ema=True)
    found = model.unet(recorded["ns/x"], recorded["ns/t"], _condition(model, recorded, facts(published), "ns"))
    return {"ns/eps_ema": error(found, recorded["ns/eps_ema"])}


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.flatten() - wanted.flatten()).abs() / wanted.flatten().abs()).max().item()


def _flipped(found: Tensor, wanted: Tensor, margin: Tensor) -> float:
    """The share of codes that are others without being as near."""
    return ((found.flatten() != wanted) & (margin > CLOSE_CODES)).float().mean().item()


# The table.


def table(names: list[str]) -> tuple[str, list[str]]:
    """The table in Markdown, and the models that do not hold; each row is printed as it comes."""
    failing: list[str] = []
    rows = ["| model | checkpoint | parameters | names and shapes | largest relative error |", "|---|---|--:|---|--:|"]
    for name in names:
        published = models()[name]
        with torch.device("meta"):
            model = ld.create(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        fits = found_shapes(model) == wanted_shapes(published)
        measured = errors(published, loaded(published)) | averaged_error(published) if has_goldens(published) else {}
        worst = max(measured.values(), default=0.0)
        if not (fits and worst <= TOLERANCE):
            failing.append(name)
        cells = "all" if fits else "not all", f"{worst:.1e}" if measured else "not recorded"
        rows.append(f"| `{name}` | `{published}` | {count:,} | {cells[0]} | {cells[1]} |")
        print(rows[-1], flush=True)
    return "\n".join(rows), failing


def main() -> None:
    """Print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of ld.presets(); all if left out")
    parser.add_argument("--write", type=Path, help="a page with a table between its markers")
    arguments = parser.parse_args()
    result, failing = table(arguments.names or list(models()))
    if arguments.write is not None:
        page = arguments.write.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        arguments.write.write_text(f"{before}{BEGIN}\n\n{result}\n\n{END}{after}")
    if failing:
        raise SystemExit(f"these do not hold: {', '.join(failing)}")


if __name__ == "__main__":
    main()
