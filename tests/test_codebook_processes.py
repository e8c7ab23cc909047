"""Codebooks over two processes; apart from the other tests, since each process imports this file."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from latentdiff import ResidualQuantizer, VectorQuantizer
from latentdiff._codebook import CodebookAverage, CodeRestarts


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain() -> VectorQuantizer:
    vq = VectorQuantizer(codebook_size=11, dim=3, decay=0.5)
    vq.codebook.copy_(randn(11, 3))
    assert vq.average is not None
    vq.average.start(vq.codebook)
    return vq


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    vq = VectorQuantizer(codebook_size=20, dim=3, decay=0.5, restart_below=1.0)
    rq = ResidualQuantizer(stages=2, codebook_size=9, dim=3, decay=0.5, restart_below=0.5)
    learned = VectorQuantizer(codebook_size=20, dim=3, restart_below=0.5)
    learned_stages = ResidualQuantizer(stages=2, codebook_size=9, dim=3, restart_below=0.5)
    for quantizer in (vq, rq, learned, learned_stages):
        quantizer.initialize(randn(2, 3, 5, 4, seed=rank), generator=torch.Generator().manual_seed(rank))
    first = learned.codebook.detach().clone()
    started, average = copy.deepcopy(vq.state_dict()), plain()
    for step in range(4):
        z = randn(2, 3, 5, 4, seed=10 * step + rank)
        for quantizer in (vq, rq, average, learned, learned_stages):
            for counted in (part for part in quantizer.modules() if isinstance(part, CodeRestarts)):
                counted.size.zero_()  # who is not used now is dead
            quantizer(z, generator=torch.Generator().manual_seed(rank))
    assert not torch.equal(first, learned.codebook)
    states = [part.state_dict() for part in (vq, rq, average, learned, learned_stages)]
    torch.save((started, *states), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_one_codebook_that_of_the_joint_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for mine, other in zip(first, second, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    alone = plain()
    for step in range(4):
        alone(torch.cat([randn(2, 3, 5, 4, seed=10 * step + rank) for rank in range(2)]))
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(tensor, first[3][name])


def test_averages_hold_after_restarts() -> None:
    average = CodebookAverage(50 + 0.01 * randn(20, 3), decay=0.5, restart_below=0.1)
    for step in range(9):
        vectors = randn(70, 3, seed=step)
        codebook = average.update(vectors, torch.zeros(70, dtype=torch.int64), torch.Generator().manual_seed(step))
        assert (average.size > 0).all()
        torch.testing.assert_close(average.sum / average.size[:, None], codebook, rtol=1e-6, atol=0)
