from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff.evaluation import frechet_distance, precision_recall, psnr
from latentdiff.training import EMA


@given(error=st.floats(0.01, 1), data_range=st.floats(0.5, 3))
def test_psnr_of_a_constant_error(error: float, data_range: float) -> None:
    images = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    want = 20 * torch.log10(torch.tensor(data_range / error, dtype=torch.float64)).expand(3)
    torch.testing.assert_close(psnr(images + error, images, data_range), want)
    assert psnr(images, images).isinf().all()


@given(seed=st.integers(0, 2**32))
def test_frechet_distance_equals_the_formula_with_a_matrix_square_root(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(50, 4, generator=generator, dtype=torch.float64) @ torch.randn(4, 4, generator=generator).double()
    b = torch.randn(70, 4, generator=generator, dtype=torch.float64) + 1
    root = torch.from_numpy(scipy.linalg.sqrtm((a.T.cov() @ b.T.cov()).numpy())).real
    want = (a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(want.item(), rel=1e-7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a + 2, a) == pytest.approx(16, rel=1e-9)


def test_precision_and_recall_of_known_sets() -> None:
    real = torch.arange(10.0)[:, None]
    assert precision_recall(real.clone(), real, 1) == (1, 1)
    assert precision_recall(real + 100, real, 1) == (0, 0)
    # one half of the range: all of it real, and it covers itself and the one neighbour within distance 1
    assert precision_recall(real[:5], real, 1) == (1.0, 0.6)


@given(decay=st.floats(0, 0.999), updates=st.integers(1, 30))
def test_ema_is_its_closed_form(decay: float, updates: int) -> None:
    module = torch.nn.Linear(3, 2).double()
    start = module.weight.detach().clone()
    ema = EMA(module, decay)
    weights = torch.randn(updates, 2, 3, dtype=torch.float64)
    for weight in weights:
        module.weight.data.copy_(weight)
        ema.update(module)
    decays = torch.tensor([min(decay, (1 + n) / (10 + n)) for n in range(updates)], dtype=torch.float64)
    left = torch.cat([decays.flip(0).cumprod(0).flip(0)[1:], torch.ones(1)])
    want = start * decays.prod() + ((1 - decays) * left).view(-1, 1, 1).mul(weights).sum(0)
    torch.testing.assert_close(ema.module.weight, want)
    assert ema.decay == decay
    assert ema.updates == updates


def test_ema_copies_buffers_and_gives_weights_back() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema = EMA(module, 0.9)
    module(torch.randn(5, 3))
    module[0].weight.data += 1
    ema.update(module)
    assert torch.equal(ema.module[1].running_mean, module[1].running_mean)
    own, average = module[0].weight.detach().clone(), ema.module[0].weight
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"), ema.swapped_into(module):  # noqa: PT012
        assert torch.equal(module[0].weight, average)
        EMA(module, 2.0)
    assert torch.equal(module[0].weight, own)
    ema.copy_to(module)
    assert torch.equal(module[0].weight, average)


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="features must hold at least two samples"):
        frechet_distance(torch.randn(1, 3), torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"neighbours must be in \[1, 4\], got 5"):
        precision_recall(torch.randn(5, 3), torch.randn(6, 3), 5)
    with pytest.raises(ValueError, match="reconstruction must have shape"):
        psnr(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        EMA(torch.nn.Linear(1, 1), 1.0)
