from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import latentdiff as ld
from latentdiff._typing import SpatialDims
from latentdiff.losses import AutoencoderLoss, PyramidLoss, adaptive_weight
from networks import normal, randomised
from zoo import assert_published, golden


def mean_of_squares(reconstruction: Tensor, images: Tensor) -> Tensor:
    """A perceptual distance that can be written down."""
    return (reconstruction - images).square().flatten(1).mean(1)


def small(bottleneck: Literal["kl", "vq"] = "kl", dims: SpatialDims = 2, channels: int = 3) -> ld.Autoencoder:
    return randomised(
        ld.Autoencoder(
            in_channels=channels,
            base_channels=4,
            latent_channels=2,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            bottleneck=bottleneck,
            codebook_size=5 if bottleneck == "vq" else None,
            spatial_dims=dims,
        )
    )


def adversary(dims: SpatialDims = 2, channels: int = 3) -> ld.PatchDiscriminator:
    return randomised(
        ld.PatchDiscriminator(in_channels=channels, base_channels=3, num_layers=1, spatial_dims=dims), seed=5
    )


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(shape or (2, 3, 8, 12), seed, dtype).clamp(-1, 1)


def made(x: Tensor, bottleneck: Literal["kl", "vq"] = "kl", seed: int = 0) -> ld.AutoencoderOutput:
    """An output of random tensors in float64."""
    reconstruction = normal(x.shape, seed + 1)
    if bottleneck == "vq":
        point = ld.PointMass(normal((len(x), 3, 2), seed + 2))
        return ld.AutoencoderOutput(
            reconstruction, point, normal((1,), seed + 3).abs().sum(), torch.zeros(len(x), 2).long()
        )
    posterior = ld.DiagonalGaussian(normal((len(x), 3, 2), seed + 2), normal((len(x), 3, 2), seed + 3))
    return ld.AutoencoderOutput(reconstruction, posterior, posterior.kl().mean())


# Parity


@pytest.mark.parametrize("case", ["g_before_start", "g_after_start", "g_after_start_weights", "val_g"])
def test_generator_loss_equals_the_published_code(case: str) -> None:
    want = golden("loss-kl")
    tensors = want.tensors
    loss, last_layer, output = published(want)
    loss.train(case != "val_g")
    step = 50000 if case == "g_before_start" else 50001
    weights = tensors["weights"].flatten() if case.endswith("weights") else None
    with torch.set_grad_enabled(case != "val_g"):
        got = loss.generator_loss(tensors["x"], output(), step=step, last_layer=last_layer, weights=weights)
    log = {name.split("/")[-1]: t for name, t in tensors.items() if name.startswith(f"{case}/log")}
    assert_published(got.loss.detach(), tensors[f"{case}/loss"])
    assert_published(got.nll, log["nll_loss"])
    assert_published(got.kl, log["kl_loss"])
    assert_published(got.reconstruction + got.perceptual, log["rec_loss"])
    assert_published(got.adversarial, log["g_loss"] * log["disc_factor"])
    assert_published(got.adversarial_weight, log["d_weight"] * log["disc_factor"])
    if case != "val_g":
        got.loss.backward()
        assert last_layer.grad is not None
        assert loss.log_variance.grad is not None
        assert_published(last_layer.grad, tensors[f"{case}/grad/last_layer.weight"])
        assert_published(loss.log_variance.grad, tensors[f"{case}/grad/loss.logvar"])


@pytest.mark.parametrize("case", ["d_before_start", "d_after_start", "val_d"])
def test_discriminator_loss_equals_the_published_code(case: str) -> None:
    want = golden("loss-kl")
    tensors = want.tensors
    loss, _, output = published(want)
    loss.train(case != "val_d")
    got = loss.discriminator_loss(tensors["x"], output(), step=50000 if case == "d_before_start" else 50001)
    kind = "val" if case == "val_d" else "train"
    assert_published(got.loss.detach(), tensors[f"{case}/loss"])
    assert_published(got.real, tensors[f"{case}/log/{kind}/logits_real"])
    assert_published(got.fake, tensors[f"{case}/log/{kind}/logits_fake"])
    if case != "val_d":
        got.loss.backward()
        assert loss.discriminator is not None
        first = loss.discriminator.get_parameter("main.0.weight").grad
        assert first is not None
        assert_published(first, tensors[f"{case}/grad/loss.discriminator.main.0.weight"])


def published(want: Any) -> tuple[AutoencoderLoss, nn.Parameter, Callable[[], ld.AutoencoderOutput]]:
    """The published loss with its weights, the last layer, and what makes the output."""
    loss = AutoencoderLoss(
        reduction="sample",
        kl_reduction="sample",
        perceptual=ld.LPIPS(),
        discriminator=ld.PatchDiscriminator(),
        start_step=50001,
    )
    rename = {"logvar": "log_variance"}
    weights = {rename.get(n, n).replace("perceptual_loss.", "perceptual."): t for n, t in want.weights("loss.").items()}
    loss.load_state_dict(weights)
    tensors = want.tensors
    last_layer = nn.Parameter(tensors["last_layer.weight"])
    posterior = ld.DiagonalGaussian(*tensors["moments"].chunk(2, 1))

    def output() -> ld.AutoencoderOutput:
        reconstruction = F.conv2d(tensors["h"], last_layer, tensors["last_layer.bias"], padding=1)
        return ld.AutoencoderOutput(reconstruction, posterior, posterior.kl().mean())

    return loss, last_layer, output


# The formula, in float64


@pytest.mark.parametrize("reduction", ["sample", "element"])
@pytest.mark.parametrize("kl_reduction", ["sample", "element"])
@pytest.mark.parametrize("kind", ["l1", "l2"])
@given(seed=st.integers(0, 2**32), log_variance=st.floats(-2, 2))
def test_kl_loss_is_the_formula(kind: Any, kl_reduction: Any, reduction: Any, seed: int, log_variance: float) -> None:
    x = normal((2, 3, 4, 5), seed)
    output = made(x, seed=seed)
    loss = AutoencoderLoss(
        reconstruction=kind,
        reduction=reduction,
        initial_log_variance=log_variance,
        perceptual=mean_of_squares,
        perceptual_weight=0.7,
        kl_weight=0.3,
        kl_reduction=kl_reduction,
    ).double()
    got = loss.generator_loss(x, output)
    r = (x - output.reconstruction).abs() ** (1 if kind == "l1" else 2)
    p = mean_of_squares(output.reconstruction, x).view(2, 1, 1, 1)
    s = loss.log_variance.detach()
    costs = (r + 0.7 * p) / s.exp() + s
    mean, variance = output.posterior.mean, output.posterior.variance
    nats = 0.5 * (mean**2 + variance - 1 - variance.log())
    nll = costs.sum() / 2 if reduction == "sample" else costs.mean()
    kl = nats.sum() / 2 if kl_reduction == "sample" else nats.mean()
    for part, expected in (
        (got.loss, nll + 0.3 * kl),
        (got.nll, nll),
        (got.kl, kl),
        (got.reconstruction, r.mean()),
        (got.perceptual, p.mean()),
    ):
        torch.testing.assert_close(part.detach(), expected)
    assert got.codebook == got.adversarial == got.adversarial_weight == 0


@given(seed=st.integers(0, 2**32))
def test_vq_loss_is_the_formula_with_hand_computed_adaptive_weight(seed: int) -> None:
    x, decoder, hidden = normal((2, 3, 8, 9), seed), nn.Conv2d(2, 3, 3, padding=1).double(), normal((2, 2, 8, 9), seed)
    discriminator = adversary().double()
    output = made(x, "vq", seed)
    output = ld.AutoencoderOutput(decoder(hidden), output.posterior, output.regularization, output.indices)
    loss = AutoencoderLoss(
        learn_log_variance=False,
        perceptual=mean_of_squares,
        codebook_weight=0.9,
        discriminator=discriminator,
        adversarial="vanilla",
        discriminator_weight=0.6,
        start_step=7,
    ).double()
    got = loss.generator_loss(x, output, step=7, last_layer=decoder.weight)
    again = decoder(hidden)
    rec = ((x - again).abs() + mean_of_squares(again, x).view(2, 1, 1, 1)).mean()
    gan = -discriminator(again).mean()
    norms = [torch.autograd.grad(term, decoder.weight, retain_graph=True)[0].norm() for term in (rec, gan)]
    weight = 0.6 * norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(got.adversarial_weight, weight)
    torch.testing.assert_close(got.loss, rec + 0.9 * output.regularization + weight.detach() * gan)
    torch.testing.assert_close(got.codebook, output.regularization)
    assert got.kl == 0


def test_element_wise_terms_do_not_depend_on_the_size_of_the_image() -> None:
    loss = AutoencoderLoss(kl_weight=0.5)
    small_parts, large_parts = (
        loss.generator_loss(x, ld.AutoencoderOutput(x + 0.25, ld.DiagonalGaussian(z + 1, z), z.sum()))
        for x, z in ((torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, 3)), (torch.zeros(2, 3, 8, 10), torch.zeros(2, 2, 6)))
    )
    assert small_parts.loss.item() == large_parts.loss.item() == pytest.approx(0.25 + 0.5 * 0.5)


def test_sample_weights_scale_the_reconstruction_of_each_sample() -> None:
    x = normal((2, 3, 4, 5))
    output = made(x)
    loss = AutoencoderLoss(kl_weight=0.0).double()
    first = loss.generator_loss(x, output, weights=torch.tensor([2.0, 0.0]))
    alone = ld.AutoencoderOutput(output.reconstruction[:1], ld.DiagonalGaussian(*normal((2, 1, 3))), torch.zeros(()))
    torch.testing.assert_close(first.loss, loss.generator_loss(x[:1], alone).loss)


# The log-variance (it is trained), and who moves when


def test_log_variance_finds_the_error_of_the_reconstruction() -> None:
    """Of error / e^s + s the minimum is at e^s = error."""
    autoencoder, loss = nn.Conv2d(3, 3, 1), AutoencoderLoss(kl_weight=0.0)
    optimizer = torch.optim.Adam(loss.parameter_groups(autoencoder).generator, lr=0.05)
    x = images()
    output = ld.AutoencoderOutput(x + 0.1, ld.PointMass(x), torch.zeros(()))
    for _ in range(150):
        optimizer.zero_grad()
        loss.generator_loss(x, output).loss.backward()
        optimizer.step()
    assert loss.log_variance.exp().item() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("learn", [True, False])
def test_the_two_groups_are_all_that_is_trained_and_share_nothing(learn: bool) -> None:
    autoencoder, lpips = small(), ld.LPIPS()
    loss = AutoencoderLoss(perceptual=lpips, discriminator=adversary(), learn_log_variance=learn)
    autoencoder.decoder.conv_in.bias.requires_grad_(False)
    generator, discriminator = loss.parameter_groups(autoencoder)
    modules = (autoencoder, loss)
    trained = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
    ids = [id(p) for p in (*generator, *discriminator)]
    assert len(ids) == len(set(ids))
    assert set(ids) == trained
    assert (id(loss.log_variance) in ids) == learn
    assert AutoencoderLoss().parameter_groups(autoencoder).discriminator == []


def snapshot(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [{name: t.clone() for name, t in module.state_dict().items()} for module in modules]


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_each_step_moves_its_own_parameters_only(bottleneck: Literal["kl", "vq"]) -> None:
    """Even when nobody zeroes gradients in between."""
    autoencoder = small(bottleneck)
    loss = AutoencoderLoss(perceptual=PyramidLoss(levels=2), discriminator=adversary(), kl_weight=0.1)
    assert isinstance(loss.discriminator, nn.Module)
    optimizers = [torch.optim.Adam(group, lr=0.01) for group in loss.parameter_groups(autoencoder)]
    x = images()
    output = autoencoder(x)
    before = snapshot(autoencoder, loss.discriminator, loss)
    loss.generator_loss(x, output, step=0, last_layer=autoencoder.last_layer).loss.backward()
    assert all(p.grad is None for p in loss.discriminator.parameters())
    optimizers[0].step()
    parameters = {name for name, p in autoencoder.named_parameters() if p.requires_grad}
    if bottleneck == "vq":
        # codes that no vector chose have no gradient
        assert parameters - moved(autoencoder, before[0]) <= {"quantizer.codebook"}
    else:
        assert moved(autoencoder, before[0]) == parameters
    assert moved(loss, before[2]) == {"log_variance"}  # the discriminator's running statistics have stayed, too
    before = snapshot(autoencoder, loss.discriminator, loss)
    gradients = [None if p.grad is None else p.grad.clone() for p in autoencoder.parameters()]
    loss.discriminator_loss(x, output, step=0).loss.backward()
    optimizers[1].step()
    assert not moved(autoencoder, before[0])
    for p, gradient in zip(autoencoder.parameters(), gradients, strict=True):
        assert (p.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(p.grad, gradient)
    # where no answer has reached the hinge's margin, the last bias pulls real and fake answers alike: its gradient is 0
    names = {name for name, _ in loss.discriminator.named_parameters()} - {"main.5.bias"}
    assert names <= moved(loss.discriminator, before[1])
    assert all(name.startswith("discriminator.") for name in moved(loss, before[2]))


def test_there_is_no_adversary_before_its_start() -> None:
    autoencoder, x = small(), images()
    loss = AutoencoderLoss(discriminator=adversary(), start_step=3)
    output = autoencoder(x)
    assert [loss.is_adversarial(step) for step in (0, 2, 3, 9)] == [False, False, True, True]
    early = loss.generator_loss(x, output, step=2, last_layer=autoencoder.last_layer)
    assert early.adversarial == early.adversarial_weight == 0
    assert loss.generator_loss(x, output, step=3, last_layer=autoencoder.last_layer).adversarial_weight > 0
    discriminator = loss.discriminator_loss(x, output, step=2)
    assert discriminator.loss == 0
    discriminator.loss.backward()
    assert loss.discriminator is not None
    assert all(p.grad is not None and (p.grad == 0).all() for p in loss.discriminator.parameters())
    assert loss.discriminator_loss(x, output, step=3).loss > 0


def test_a_fixed_weight_is_just_that() -> None:
    x, autoencoder = images(), small()
    loss = AutoencoderLoss(discriminator=adversary(), discriminator_weight=0.25, adaptive=False)
    got = loss.generator_loss(x, autoencoder(x), step=0)
    assert got.adversarial_weight == 0.25
    torch.testing.assert_close(got.loss, got.nll + 1e-6 * got.kl + 0.25 * got.adversarial)


def test_a_perceptual_network_stays_in_evaluation_mode() -> None:
    lpips = ld.LPIPS()
    loss = AutoencoderLoss(perceptual=lpips, discriminator=adversary()).train()
    assert isinstance(loss.discriminator, nn.Module)
    assert loss.discriminator.training
    assert not any(module.training for module in lpips.modules())
    assert not loss.eval().discriminator.training  # type: ignore[union-attr]


# The adaptive weight


def test_adaptive_weight_is_zero_for_a_perfect_reconstruction_and_bounded_for_an_idle_adversary() -> None:
    layer = nn.Parameter(normal((3, 2)))
    x = normal((4, 2)) @ layer.T
    perfect, other = (x - x.detach()).square().sum(), x.square().sum()
    assert adaptive_weight(perfect, other, x, layer) == 0
    assert adaptive_weight(other, 0 * x.sum(), x, layer) == 1e4
    assert adaptive_weight(other, 0 * x.sum(), x, layer, maximum=3.0) == 3
    assert adaptive_weight(perfect, 0 * x.sum(), x, layer) == 0


def test_adaptive_weight_of_a_frozen_layer_compares_at_the_reconstruction() -> None:
    layer = nn.Parameter(normal((3, 2)))
    x = normal((4, 2)).requires_grad_() @ layer.T
    first, second = x.square().sum(), x.sin().sum()
    want = (2 * x).norm() / (x.cos().norm() + 1e-4)
    torch.testing.assert_close(adaptive_weight(first, second, x), want)
    torch.testing.assert_close(adaptive_weight(first, second, x, layer.detach()), want)
    with torch.no_grad():
        assert adaptive_weight(first, second, x, layer) == 0
    assert adaptive_weight(first, second, x.detach(), layer) == 0


def test_a_frozen_decoder_still_has_an_adversary() -> None:
    autoencoder, x = small(), images()
    autoencoder.decoder.requires_grad_(False)
    loss = AutoencoderLoss(discriminator=adversary())
    got = loss.generator_loss(x, autoencoder(x), step=0, last_layer=autoencoder.last_layer)
    assert 0 < got.adversarial_weight < math.inf
    got.loss.backward()
    assert autoencoder.encoder.conv_in.weight.grad is not None
    autoencoder.requires_grad_(False)  # nothing of it is trained: the loss is that of evaluation
    assert loss.generator_loss(x, autoencoder(x), step=0, last_layer=autoencoder.last_layer).adversarial_weight == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e4])
def test_adaptive_weight_neither_vanishes_nor_overflows_under_autocast(scale: float, dtype: torch.dtype) -> None:
    """Gradients of 1e-7 / 864 are below float16's smallest number, sums of 1e4 * |h| above its largest."""
    h, layer = images(2, 4, 12, 9), nn.Conv2d(4, 3, 3, padding=1)

    def weight() -> Tensor:
        x = layer(h)
        wide = x.float()
        terms = scale * (wide - 1).square().sum(), scale * wide.sin().sum()
        return adaptive_weight(*terms, wide, layer.weight, delta=0.0)

    want = weight()
    with torch.autocast("cpu", dtype):
        got = weight()
    assert got.isfinite()
    torch.testing.assert_close(got, want, rtol=0.02, atol=0)  # layers of 8-bit mantissas


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_float32_and_finite_under_autocast(dtype: torch.dtype) -> None:
    autoencoder, x = small(), images()
    loss = AutoencoderLoss(perceptual=PyramidLoss(levels=2), discriminator=adversary())
    want = loss.generator_loss(x, autoencoder.eval()(x), step=0, last_layer=autoencoder.last_layer)
    with torch.autocast("cpu", dtype):
        output = autoencoder(x)
        got = loss.generator_loss(x, output, step=0, last_layer=autoencoder.last_layer)
        discriminator = loss.discriminator_loss(x, output, step=0)
    assert got.loss.dtype == discriminator.loss.dtype == torch.float32
    assert got.adversarial_weight.isfinite()
    torch.testing.assert_close(got.nll, want.nll, rtol=0.02, atol=0)
    torch.testing.assert_close(got.adversarial_weight, want.adversarial_weight, rtol=0.3, atol=0)
    got.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in autoencoder.parameters())


# Every rank


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_rank_and_channel_count_trains_saves_and_loads(dims: SpatialDims, channels: int, tmp_path: Path) -> None:
    autoencoder = small(dims=dims, channels=channels)
    discriminator = adversary(dims, channels)
    loss = AutoencoderLoss(perceptual=PyramidLoss(levels=2), discriminator=discriminator, initial_log_variance=0.5)
    x = images(2, channels, *(6, 8, 10)[:dims])
    output = autoencoder(x, torch.Generator().manual_seed(0))
    got = loss.generator_loss(x, output, step=0, last_layer=autoencoder.last_layer)
    got.loss.backward()
    loss.discriminator_loss(x, output, step=0).loss.backward()
    for group in loss.parameter_groups(autoencoder):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in group)
    ld.save(loss, tmp_path / "loss.safetensors")
    again = ld.load(tmp_path / "loss.safetensors")
    assert isinstance(again, AutoencoderLoss)
    assert again.config == loss.config
    for name, tensor in loss.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_one_graph_of_the_loss_without_an_adversary_compiles() -> None:
    x = images()
    with torch.no_grad():
        output = small()(x)
    loss = AutoencoderLoss(perceptual=PyramidLoss(levels=2))

    def total(x: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        posterior = ld.DiagonalGaussian(mean, log_variance)
        return loss.generator_loss(x, ld.AutoencoderOutput(reconstruction, posterior, mean.sum())).loss

    parts = (output.reconstruction, output.posterior.mean, output.posterior.variance.log())
    want = total(x, *parts)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(total, backend="eager", fullgraph=True)(x, *parts), want)


# What is refused

CASES: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: AutoencoderLoss(reconstruction="l3"), ValueError, "reconstruction must be one of 'l1', 'l2'"),  # type: ignore[arg-type]
    (lambda: AutoencoderLoss(reduction="none"), ValueError, "reduction must be one of 'sample', 'element'"),  # type: ignore[arg-type]
    (lambda: AutoencoderLoss(kl_reduction="sum"), ValueError, "kl_reduction must be one of 'sample', 'element'"),  # type: ignore[arg-type]
    (lambda: AutoencoderLoss(adversarial="w"), ValueError, "adversarial must be one of 'hinge', 'vanilla'"),  # type: ignore[arg-type]
    (lambda: AutoencoderLoss(kl_weight=-1.0), ValueError, "kl_weight must not be negative, got -1"),
    (lambda: AutoencoderLoss(codebook_weight=math.inf), ValueError, "codebook_weight must not be negative, got inf"),
    (
        lambda: AutoencoderLoss(initial_log_variance=math.inf),
        ValueError,
        "initial_log_variance must be finite, got inf",
    ),
    (lambda: AutoencoderLoss(discriminator=adversary(), start_step=math.nan), TypeError, "start_step must be an int"),  # type: ignore[arg-type]
    (lambda: AutoencoderLoss(discriminator=adversary(), start_step=-1), ValueError, "start_step must be at least 0"),
    (
        lambda: AutoencoderLoss(perceptual_weight=2.0),
        ValueError,
        "perceptual_weight must be left at 1 without perceptual",
    ),
    (lambda: AutoencoderLoss(start_step=5), ValueError, "start_step must be left at 0 without discriminator, got 5"),
    (lambda: AutoencoderLoss(adaptive=False), ValueError, "adaptive must be left at True without discriminator"),
    (
        lambda: AutoencoderLoss(discriminator=adversary()).generator_loss(images(), small()(images())),
        ValueError,
        "step must be given to a loss with a discriminator",
    ),
    (
        lambda: AutoencoderLoss().discriminator_loss(images(), small()(images()), step=0),
        ValueError,
        "discriminator must be given to a loss that is to train one",
    ),
    (
        lambda: AutoencoderLoss().generator_loss(images(2, 3, 4, 12), small()(images())),
        ValueError,
        r"images must have the reconstruction's shape \[2, 3, 8, 12\], got \[2, 3, 4, 12\]",
    ),
    (lambda: AutoencoderLoss().generator_loss(images().int(), small()(images())), TypeError, "images must be floating"),
    (
        lambda: AutoencoderLoss().generator_loss(images(), small()(images()), weights=torch.ones(3)),
        ValueError,
        "weights must have batch=2, got batch=3",
    ),
    (
        lambda: AutoencoderLoss(perceptual=lambda a, b: (a - b).abs().mean()).generator_loss(
            images(), small()(images())
        ),
        ValueError,
        "perceptual must have 1 axes",
    ),
    (
        lambda: AutoencoderLoss(discriminator=adversary()).generator_loss(
            images(), small()(images()), step=0, last_layer=nn.Parameter(torch.ones(2))
        ),
        ValueError,
        "last_layer must be a weight from which reconstruction was computed",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), CASES)
def test_what_does_not_fit_is_refused(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
