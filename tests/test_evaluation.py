from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentdiff as ld
from latentdiff.evaluation import (
    codebook_use,
    frechet_distance,
    latent_statistics,
    precision_recall,
    psnr,
    ssim,
)
from latentdiff.training import EMA
from networks import normal


@given(error=st.floats(0.01, 1), data_range=st.floats(0.5, 3))
def test_psnr_of_a_constant_error(error: float, data_range: float) -> None:
    images = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    want = 20 * torch.log10(torch.tensor(data_range / error, dtype=torch.float64)).expand(3)
    torch.testing.assert_close(psnr(images + error, images, data_range), want)
    assert psnr(images, images).isinf().all()


@pytest.mark.parametrize("dims", [1, 2, 3])
@given(seed=st.integers(0, 2**32), more=st.integers(0, 5), data_range=st.floats(0.5, 3))
def test_ssim_equals_the_formula_by_scipy(dims: int, seed: int, more: int, data_range: float) -> None:
    """Wang et al. 2004, eq. 13, with scipy's Gaussian filter, cropped to where its window lies inside."""
    shape = (2, 3, *(n + more for n in (11, 12, 13)[:dims]))
    x, y = normal(shape, seed), normal(shape, seed + 1)

    def mean(
        values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        filtered = scipy.ndimage.gaussian_filter(values, 1.5, radius=5, axes=tuple(range(2, 2 + dims)))
        return filtered[(..., *(slice(5, -5),) * dims)]

    a, b = x.numpy(), y.numpy()
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    m_a, m_b = mean(a), mean(b)
    v_a, v_b, v_ab = mean(a * a) - m_a**2, mean(b * b) - m_b**2, mean(a * b) - m_a * m_b
    similarity = (2 * m_a * m_b + c_1) * (2 * v_ab + c_2) / ((m_a**2 + m_b**2 + c_1) * (v_a + v_b + c_2))
    want = torch.from_numpy(similarity).flatten(1).mean(1)
    torch.testing.assert_close(ssim(x, y, data_range), want)
    torch.testing.assert_close(ssim(y, x, data_range), want)
    torch.testing.assert_close(ssim(x, x, data_range), torch.ones(2, dtype=torch.float64))


def test_ssim_of_constants_is_their_luminance_and_of_an_inverted_image_negative() -> None:
    a, b = torch.full((1, 2, 8, 9), 0.5), torch.full((1, 2, 8, 9), -0.25)
    c_1 = 0.02**2
    want = (2 * 0.5 * -0.25 + c_1) / (0.5**2 + 0.25**2 + c_1)
    assert ssim(a, b, window=7).item() == pytest.approx(want)
    board = (torch.arange(12)[:, None] + torch.arange(13)) % 2 * 2.0 - 1  # its means are about 0, its variances 1
    assert ssim(board[None, None], -board[None, None]).item() == pytest.approx(-1, abs=0.01)


@given(seed=st.integers(0, 2**32), cut=st.integers(1, 5))
def test_codebook_use_does_not_depend_on_how_the_stream_is_cut(seed: int, cut: int) -> None:
    indices = torch.randint(7, (6, 2, 5), generator=torch.Generator().manual_seed(seed))
    use = codebook_use([indices[:cut], indices[cut:].int()], codebook_size=9)
    shares = np.bincount(indices.flatten(), minlength=9) / indices.numel()
    assert torch.equal(use.counts, torch.bincount(indices.flatten(), minlength=9))
    assert use.usage == pytest.approx((shares > 0).mean())
    assert use.entropy == pytest.approx(scipy.stats.entropy(shares, base=2))
    assert use.perplexity == pytest.approx(np.exp(scipy.stats.entropy(shares)))


def test_codebook_use_of_one_code_and_of_all() -> None:
    one, every = codebook_use([torch.full((4,), 2)], 8), codebook_use([torch.arange(8)], 8)
    assert (one.usage, one.entropy, one.perplexity) == (1 / 8, 0, 1)
    assert (every.usage, every.entropy, every.perplexity) == (1, 3, 8)


@given(seed=st.integers(0, 2**32), cut=st.integers(1, 5))
def test_latent_statistics_are_those_of_draws_however_the_stream_is_cut(seed: int, cut: int) -> None:
    mean, log_variance = 3 * normal((6, 2, 3, 5), seed) + 100, normal((6, 2, 3, 5), seed + 1)
    parts = [ld.DiagonalGaussian(m, v) for m, v in zip(mean.split(cut), log_variance.split(cut), strict=True)]
    got = latent_statistics(parts)
    means, noise = mean.movedim(1, 0).flatten(1), log_variance.exp().movedim(1, 0).flatten(1).mean(1)
    torch.testing.assert_close(got.mean, means.mean(1))
    torch.testing.assert_close(got.std, (means.var(1, correction=0) + noise).sqrt())
    torch.testing.assert_close(got.noise, noise.sqrt())
    known = latent_statistics(mean.split(cut))
    torch.testing.assert_close(known.std, means.std(1, correction=0))
    assert (known.noise == 0).all()


def test_latents_have_unit_size_after_calibration() -> None:
    autoencoder = ld.Autoencoder(base_channels=4, latent_channels=3, channel_multipliers=(1, 2), blocks_per_level=1)
    images = normal((8, 3, 8, 12), dtype=torch.float32).clamp(-1, 1)
    with torch.no_grad():
        autoencoder.eval().calibrate(images.split(3))
        got = latent_statistics(autoencoder.encode(part) for part in images.split(5))
    torch.testing.assert_close(got.mean, torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(got.std, torch.ones(3).double(), rtol=1e-5, atol=0)


@given(seed=st.integers(0, 2**32))
def test_frechet_distance_equals_the_formula_with_a_matrix_square_root(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(50, 4, generator=generator, dtype=torch.float64) @ torch.randn(4, 4, generator=generator).double()
    b = torch.randn(70, 4, generator=generator, dtype=torch.float64) + 1
    root = torch.from_numpy(scipy.linalg.sqrtm((a.T.cov() @ b.T.cov()).numpy())).real
    want = (a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(want.item(), rel=1e-7)
    # of an eigenvalue near 0, the root has half the digits
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a + 2, a) == pytest.approx(16, abs=1e-6)


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
    with pytest.raises(ValueError, match="reference must be finite"):
        frechet_distance(torch.randn(4, 3), torch.full((5, 3), torch.nan))
    with pytest.raises(ValueError, match=r"neighbours must be in \[1, 4\], got 5"):
        precision_recall(torch.randn(5, 3), torch.randn(6, 3), 5)
    with pytest.raises(ValueError, match="reconstruction must have shape"):
        psnr(torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(ValueError, match="reconstruction must have shape"):
        ssim(torch.randn(2, 3, 11), torch.randn(2, 3, 12))
    with pytest.raises(ValueError, match=r"spatial sizes of at least window=11, got \[12, 10\]"):
        ssim(torch.randn(2, 3, 12, 10), torch.randn(2, 3, 12, 10))
    with pytest.raises(ValueError, match="window=11, got \\[\\]"):
        ssim(torch.randn(2, 3), torch.randn(2, 3))
    with pytest.raises(ValueError, match="std must be positive"):
        ssim(torch.randn(2, 3, 12), torch.randn(2, 3, 12), std=0.0)
    with pytest.raises(ValueError, match="data_range must be positive"):
        ssim(torch.randn(2, 3, 12), torch.randn(2, 3, 12), 0.0)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        EMA(torch.nn.Linear(1, 1), 1.0)


def test_bad_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        codebook_use([], 3)
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        latent_statistics([])
    with pytest.raises(ValueError, match=r"indices must be in \[0, 2\], got values in \[0, 3\]"):
        codebook_use([torch.tensor([0, 3])], 3)
    with pytest.raises(ValueError, match=r"indices must be in \[0, 2\], got values in \[-1, 1\]"):
        codebook_use([torch.tensor([1, -1])], 3)
    with pytest.raises(TypeError, match=r"indices must be int64 or int32, got torch\.float32"):
        codebook_use([torch.zeros(2)], 3)
    with pytest.raises(ValueError, match="codebook_size must be positive"):
        codebook_use([torch.zeros(2).long()], 0)
    with pytest.raises(TypeError, match="latents must be floating"):
        latent_statistics([torch.zeros(2, 3).long()])
    with pytest.raises(ValueError, match="latents must have at least 2 axes"):
        latent_statistics([torch.zeros(2)])
