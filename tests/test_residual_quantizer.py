from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor

from latentdiff import ResidualQuantizer, VectorQuantizer
from latentdiff._quantized import CodeGradient


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantizer(
    stages: int = 3,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    decay: float | None = None,
    restart_below: float = 0.0,
    gradient: CodeGradient = "straight_through",
) -> ResidualQuantizer:
    made = ResidualQuantizer(
        stages=stages,
        codebook_size=11,
        dim=2,
        commitment_weight=commitment_weight,
        codebook_weight=codebook_weight,
        decay=decay,
        restart_below=restart_below,
        gradient=gradient,
    ).double()
    for index, stage in enumerate(made.quantizers):
        assert isinstance(stage, VectorQuantizer)
        with torch.no_grad():
            stage.codebook.copy_(randn(11, 2, seed=index) / 2**index)
        if stage.average is not None:
            stage.average.start(stage.codebook)
    return made


def by_hand(rq: ResidualQuantizer, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Indices and partial sums of each stage, one vector after the other."""
    residual, total = z.movedim(1, -1).reshape(-1, 2), torch.zeros(z.numel() // 2, 2, dtype=z.dtype)
    indices, sums = [], []
    for stage in rq.quantizers:
        codebook = stage.codebook.detach()
        nearest = (residual[:, None] - codebook).square().sum(2).argmin(1)
        residual, total = residual - codebook[nearest], total + codebook[nearest]
        indices.append(nearest)
        sums.append(total)
    return indices, sums


def as_map(vectors: Tensor, like: Tensor) -> Tensor:
    return vectors.reshape(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)


def test_each_stage_quantizes_what_those_before_it_left() -> None:
    rq, z = quantizer(), randn(2, 2, 5, 4, seed=9)
    out = rq(z)
    indices, sums = by_hand(rq, z)
    assert out.indices.shape == (2, 3, 5, 4)
    for stage in range(3):
        assert torch.equal(out.indices[:, stage].flatten(), indices[stage])
        torch.testing.assert_close(rq.lookup(out.indices[:, : stage + 1]), as_map(sums[stage], z))
    torch.testing.assert_close(out.latents, as_map(sums[-1], z))


@pytest.mark.parametrize(("commitment", "codebook"), [(0.25, 1.0), (1.0, 0.25)])
def test_loss_and_gradients_are_the_formulas(commitment: float, codebook: float) -> None:
    rq = quantizer(commitment_weight=commitment, codebook_weight=codebook)
    z, upstream = randn(2, 2, 5, 4, seed=9).requires_grad_(), randn(2, 2, 5, 4, seed=10)
    out = rq(z)
    ((out.latents * upstream).sum() + out.loss).backward()
    indices, sums = by_hand(rq, z.detach())
    differences = [z.detach() - as_map(total, z) for total in sums]
    expected = sum((commitment + codebook) * difference.square().mean() for difference in differences)
    torch.testing.assert_close(out.loss.detach(), expected)
    torch.testing.assert_close(z.grad, upstream + commitment * 2 * sum(differences) / z.numel())
    for stage, index, difference in zip(rq.quantizers, indices, differences, strict=True):
        moved = torch.zeros(11, 2, dtype=z.dtype).index_add_(0, index, -difference.movedim(1, -1).reshape(-1, 2))
        torch.testing.assert_close(stage.codebook.grad, codebook * 2 * moved / z.numel())


def test_one_stage_is_a_vector_quantizer() -> None:
    rq, z = quantizer(1), randn(2, 2, 5, 4, seed=9)
    stage = rq.quantizers[0]
    assert isinstance(stage, VectorQuantizer)
    ours, theirs = rq(z), stage(z)
    assert torch.equal(ours.indices[:, 0], theirs.indices)
    for name in ("latents", "loss", "perplexity", "usage"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))


def test_more_stages_come_closer() -> None:
    z = randn(4, 2, 5, 4, seed=9)
    rq = quantizer(4, decay=0.9)
    rq.initialize(z, generator=torch.Generator().manual_seed(0))
    indices = rq.quantize(z).indices
    errors = [(rq.lookup(indices[:, : n + 1]) - z).square().mean().item() for n in range(4)]
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(errors))


def test_each_stage_learns_from_its_own_residuals() -> None:
    rq, z = quantizer(decay=0.5), randn(2, 2, 5, 4, seed=9)
    alone = copy.deepcopy(rq)
    out = rq(z)
    torch.testing.assert_close(out.latents, alone.lookup(out.indices))  # of the codebooks before the step
    residual = z
    for stage, learnt in zip(alone.quantizers, rq.quantizers, strict=True):
        left = residual - stage(residual).latents
        torch.testing.assert_close(learnt.codebook, stage.codebook)
        residual = left
    before = copy.deepcopy(rq.state_dict())
    rq.eval()(z)
    assert all(torch.equal(tensor, before[name]) for name, tensor in rq.state_dict().items())


def test_the_rotation_is_that_of_the_whole_vector_to_the_sum_of_codes() -> None:
    rq, z = quantizer(gradient="rotation", commitment_weight=0.0, codebook_weight=0.0), randn(2, 2, 7, seed=9)
    z.requires_grad_()
    codes = rq.lookup(rq.quantize(z).indices).detach()
    (gradient,) = torch.autograd.grad((rq(z).latents * codes).sum(), z)
    # the gradient along the code becomes one along the vector: |e|^2 / |z| on z's direction
    expected = z.detach() * (codes.square().sum(1, keepdim=True) / z.detach().square().sum(1, keepdim=True))
    torch.testing.assert_close(gradient, expected)


def test_what_does_not_fit_is_refused() -> None:
    rq = quantizer()
    with pytest.raises(ValueError, match="z must have dim=2, got dim=3"):
        rq(randn(2, 3, 4))
    with pytest.raises(ValueError, match="indices must have at most 3 stages, got 4"):
        rq.lookup(torch.zeros(2, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"indices must be in \[0, 10\], got values in \[11, 11\]"):
        rq.lookup(torch.full((2, 3, 5), 11))
    with pytest.raises(ValueError, match="stages must be at least 1, got 0"):
        ResidualQuantizer(stages=0, codebook_size=4, dim=2)
