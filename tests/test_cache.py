"""Latents computed once: what a cache gives is what the encoder would give, and a stale or broken one is refused."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

import latentdiff as ld
from latentdiff.training import Fingerprint, LatentCache, cache_latents
from models import small_model
from networks import normal

WORDS = "centre crop, 2 x - 1"


def autoencoder(bottleneck: str = "kl", seed: int = 0) -> ld.Autoencoder:
    """One with random weights and factors of its own, f = 2, 1 channel to 3."""
    if bottleneck == "kl":
        return small_model(seed=seed).autoencoder
    quantizer = ld.FiniteScalarQuantizer(levels=(5, 4, 3)) if bottleneck == "fsq" else bottleneck
    torch.manual_seed(seed)
    return ld.Autoencoder(
        in_channels=1, latent_channels=3, base_channels=4, channel_multipliers=(1, 2), blocks_per_level=1,
        bottleneck=quantizer, codebook_size=7 if bottleneck == "vq" else None, scaling_factor=(0.5, 2.0, 3.0),
    ).eval()  # fmt: skip


def images(count: int = 7, seed: int = 1) -> Tensor:
    return normal((count, 1, 8, 12), seed).float().clamp(-1, 1)


def write(folder: Path, first_stage: ld.Autoencoder, count: int = 7, dtype: torch.dtype = torch.float32) -> LatentCache:
    return cache_latents(
        first_stage, images(count).split(3), folder, preprocessing=WORDS, shard_size=4, dtype=dtype, overwrite=True
    )


@pytest.mark.parametrize("bottleneck", ["kl", "vq", "none", "fsq"])
def test_cached_posteriors_are_those_of_the_encoder_bit_for_bit(tmp_path: Path, bottleneck: str) -> None:
    first_stage = autoencoder(bottleneck)
    cache = write(tmp_path, first_stage)
    with torch.no_grad():
        parts = [first_stage.encode(part) for part in images().split(3)]  # cut alike: arithmetic depends on it
    cached = cache.posterior(range(7))
    assert len(cache) == 7
    assert type(cached) is type(parts[0])
    assert torch.equal(cached.mean, torch.cat([part.mean for part in parts]))
    assert torch.equal(cached.variance, torch.cat([part.variance for part in parts]))
    assert torch.equal(cached.kl(), torch.cat([part.kl() for part in parts]))


@given(size=st.integers(1, 9), shard=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_what_a_cache_holds_does_not_depend_on_batches_and_shards(
    tmp_path_factory: pytest.TempPathFactory, size: int, shard: int, seed: int
) -> None:
    """In float64 the encoder's results of batches of other sizes agree to rounding."""
    first_stage, folder = autoencoder().double(), tmp_path_factory.mktemp("cache")
    x, y = normal((8, 1, 8, 12), seed).clamp(-1, 1), torch.arange(8) ** 2
    batches = zip(x.split(size), y.split(size), strict=True)
    cache = cache_latents(
        first_stage, batches, folder, preprocessing="", shard_size=shard, dtype=torch.float64, seed=seed
    )
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()
    with torch.no_grad():
        whole = first_stage.encode(x)
    torch.testing.assert_close(cache.posterior(order).mean, whole.mean[order])
    torch.testing.assert_close(cache.posterior(order).variance, whole.variance[order])
    found = cache.y(order)
    assert found is not None
    assert torch.equal(found, y[order])
    assert len(list(folder.glob("*.safetensors"))) == -(-8 // shard)


def test_draws_are_a_function_of_seed_sample_and_epoch(tmp_path: Path) -> None:
    cache = write(tmp_path, autoencoder())
    all_at_once = cache.latents(range(7), epoch=3)
    assert torch.equal(cache.latents([5, 1], epoch=3), all_at_once[[5, 1]])
    cache.epoch = 3
    assert torch.equal(torch.stack([item for item in cache if isinstance(item, Tensor)]), all_at_once)
    assert torch.equal(cache.latents([-1]), all_at_once[6:])
    again = LatentCache(tmp_path, autoencoder(), preprocessing=WORDS, seed=1)
    others = (cache.latents(range(7), epoch=4), again.latents(range(7), epoch=3), all_at_once.roll(1, 0))
    for other in others:
        assert (other != all_at_once).all()


def test_draws_over_epochs_have_the_mean_and_variance_of_the_posterior(tmp_path: Path) -> None:
    """Of 1000 draws of 144 numbers: within 6 standard errors for every one of them."""
    cache = write(tmp_path, autoencoder(), count=2)
    posterior = cache.posterior([0, 1])
    draws = torch.stack([cache.latents([0, 1], epoch=epoch) for epoch in range(1000)]).double()
    score = (draws.mean(0) - posterior.mean) / posterior.std * 1000**0.5
    assert score.abs().max() < 6
    assert ((draws.var(0) / posterior.variance).log().abs() < 6 * (2 / 1000) ** 0.5).all()


def test_a_loader_gives_batches_of_latents_and_labels_from_worker_processes(tmp_path: Path) -> None:
    labels = torch.tensor([4, 2, 0, 3, 1])
    batches = [(images(5)[:2], labels[:2]), (images(5)[2:], labels[2:])]
    cache = cache_latents(autoencoder(), batches, tmp_path, preprocessing=WORDS)
    _ = cache.latents([0])  # maps a shard, which another process does for itself
    context = multiprocessing.get_context("fork")
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        cache, batch_size=3, num_workers=1, multiprocessing_context=context
    )
    latents, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(latents, cache.latents(range(5)))
    assert torch.equal(y, labels)
    copied: LatentCache = pickle.loads(pickle.dumps(cache))  # noqa: S301
    assert torch.equal(copied.latents(range(5)), latents)


def test_the_loss_of_cached_latents_is_that_of_images(tmp_path: Path) -> None:
    """A codebook's posterior draws nothing, so that both losses see the same random numbers."""
    model = small_model()
    model.autoencoder = autoencoder("vq")
    model.train()
    cache = cache_latents(model.autoencoder, [images(5)], tmp_path, preprocessing=WORDS)
    labels = torch.arange(5)
    of_images = model.loss(images(5), labels, generator=torch.Generator().manual_seed(3))
    of_latents = model.loss_of_latents(cache.latents(range(5)), labels, generator=torch.Generator().manual_seed(3))
    assert torch.equal(of_images, of_latents)
    with pytest.raises(ValueError, match="y must be given to a model with a condition_encoder"):
        model.loss_of_latents(cache.latents([0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_moments_and_halves_the_space(tmp_path: Path, dtype: torch.dtype) -> None:
    first_stage = autoencoder()
    exact, half = (write(tmp_path / name, first_stage, 7, d) for name, d in (("a", torch.float32), ("b", dtype)))
    assert torch.equal(half.posterior(range(7)).mean, exact.posterior(range(7)).mean.to(dtype).float())
    assert half.latents([0]).dtype == torch.float32
    sizes = [
        sum(tensor.nbytes for tensor in load_file(tmp_path / n / "latents-00000.safetensors").values()) for n in "ab"
    ]
    assert sizes[0] == 2 * sizes[1]


def test_a_cache_of_another_encoder_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    first_stage = autoencoder()
    write(tmp_path, first_stage)
    now, then = (str(Fingerprint.of(a, WORDS, (8, 12))) for a in (autoencoder(seed=1), first_stage))
    assert now != then
    with pytest.raises(ld.CheckpointError, match=r"must hold latents of .*; write it anew") as error:
        LatentCache(tmp_path, autoencoder(seed=1), preprocessing=WORDS)
    assert now in str(error.value)
    assert then in str(error.value)


def test_what_latents_depend_on_makes_a_cache_stale_and_nothing_else_does(tmp_path: Path) -> None:
    first_stage = autoencoder()
    write(tmp_path, first_stage)
    with torch.no_grad():
        for name, parameter in first_stage.named_parameters():
            if name.startswith(("decoder.", "post_quant_conv.")):
                parameter.add_(1)
    LatentCache(tmp_path, first_stage, preprocessing=WORDS, size=(8, 12))
    with pytest.raises(ld.CheckpointError, match=f"preprocessing 'random crop'.*preprocessing '{WORDS}'"):
        LatentCache(tmp_path, first_stage, preprocessing="random crop")
    with pytest.raises(ld.CheckpointError, match=r"size 16 x 16\].*size 8 x 12\]"):
        LatentCache(tmp_path, first_stage, preprocessing=WORDS, size=16)
    first_stage.scaling_factor = 0.71
    with pytest.raises(ld.CheckpointError, match="write it anew"):
        LatentCache(tmp_path, first_stage, preprocessing=WORDS)
    first_stage.scaling_factor = 0.7
    with torch.no_grad():
        first_stage.encoder.conv_in.bias[1] += 1e-6
    with pytest.raises(ld.CheckpointError, match="write it anew"):
        LatentCache(tmp_path, first_stage, preprocessing=WORDS)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_shards_are_mapped_when_asked_for_and_not_read(tmp_path: Path) -> None:
    cache = write(tmp_path, autoencoder())

    def mapped() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sorted({Path(line.split()[-1]).name for line in lines if str(tmp_path) in line})

    assert mapped() == []
    _ = cache.latents([5])
    assert mapped() == ["latents-00001.safetensors"]


class StoppedError(Exception):
    pass


def test_an_interrupted_writing_leaves_no_cache_even_over_an_old_one(tmp_path: Path) -> None:
    first_stage = autoencoder()
    write(tmp_path, first_stage)

    def until_the_fifth():  # type: ignore[no-untyped-def]
        yield images(5)
        raise StoppedError

    first_stage.train()
    with pytest.raises(StoppedError):
        cache_latents(first_stage, until_the_fifth(), tmp_path, preprocessing=WORDS, shard_size=2, overwrite=True)
    assert first_stage.training
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"latents-0000{i}.safetensors" for i in (0, 1)]
    with pytest.raises(ld.CheckpointError, match=r"has shards but no index.json: its writing was interrupted"):
        LatentCache(tmp_path, first_stage, preprocessing=WORDS)
    assert len(cache_latents(first_stage, [images(3)], tmp_path, preprocessing=WORDS)) == 3


def test_damage_is_noticed(tmp_path: Path) -> None:
    first_stage = autoencoder()
    with pytest.raises(ld.CheckpointError, match=r"must be a folder that cache_latents wrote, but it has no"):
        LatentCache(tmp_path, first_stage, preprocessing=WORDS)
    cache = write(tmp_path, first_stage)
    with pytest.raises(IndexError, match=r"indices must be in \[-7, 6\], got 7"):
        cache.latents([0, 7])
    shard = tmp_path / "latents-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ld.CheckpointError, match=rf"must have {len(whole)} bytes, got {len(whole) - 1}"):
        LatentCache(tmp_path, first_stage, preprocessing=WORDS)
    shard.unlink()
    with pytest.raises(ld.CheckpointError, match=r"latents-00001.safetensors must have \d+ bytes, got 0: missing"):
        LatentCache(tmp_path, first_stage, preprocessing=WORDS)
    index = tmp_path / "index.json"
    for text, message in (("{", "is damaged"), ("{}", "is damaged: KeyError"), ('{"format": 2}', "has format 2, this")):
        index.write_text(text)
        with pytest.raises(ld.CheckpointError, match=message):
            LatentCache(tmp_path, first_stage, preprocessing=WORDS)


def test_what_cannot_be_cached_is_refused(tmp_path: Path) -> None:
    first_stage = autoencoder()

    def cache(*batches: Tensor | tuple[Tensor, Tensor], **options: object) -> None:
        cache_latents(first_stage, batches, tmp_path, preprocessing=WORDS, **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        cache()
    with pytest.raises(ValueError, match=r"batches must have one spatial size, got \[8, 12\] and \[8, 6\]"):
        cache(images(), images()[..., :6])
    with pytest.raises(ValueError, match="batches must all be images, or all pairs of images and y, got both"):
        cache(images(), (images(), torch.arange(7)))
    with pytest.raises(ValueError, match="y must have the 7 samples of images, got 6"):
        cache((images(), torch.arange(6)))
    with pytest.raises(ValueError, match=r"dtype must be one of torch.float32.*got torch.int8"):
        cache(images(), dtype=torch.int8)
    with pytest.raises(ValueError, match="shard_size must be at least 1, got 0"):
        cache(images(), shard_size=0)
    cache(images())
    with pytest.raises(FileExistsError, match="folder must hold no cache yet"):
        cache(images())
