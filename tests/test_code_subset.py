from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentdiff import CodeSubset, VectorQuantizer

SEEDS = st.integers(0, 2**31 - 1)


@given(SEEDS, st.integers(1, 40), st.integers(0, 20))
def test_compressing_and_expanding_are_inverse_on_the_subset(seed: int, size: int, more: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    used = torch.randperm(size + more, generator=generator)[:size]
    subset = CodeSubset(used)
    numbers = torch.randint(size, (2, 3, 5), generator=generator)
    assert torch.equal(subset.compress(subset.expand(numbers)), numbers)
    assert torch.equal(subset.expand(numbers), used[numbers])


def test_a_code_outside_gets_what_was_asked_for() -> None:
    used, indices = torch.tensor([7, 2, 9]), torch.tensor([[0, 2, 8], [9, 7, 100]])
    assert CodeSubset(used).compress(indices).tolist() == [[3, 1, 3], [2, 0, 3]]
    assert CodeSubset(used).expand(torch.tensor([3, 1])).tolist() == [7, 2]
    assert CodeSubset(used, unknown=1).compress(indices).tolist() == [[1, 1, 1], [2, 0, 1]]
    assert [len(CodeSubset(used, unknown)) for unknown in ("extra", "random", 1)] == [4, 3, 3]  # type: ignore[arg-type]
    draws = [
        CodeSubset(used, unknown="random").compress(torch.zeros(300, dtype=torch.int64), generator)
        for generator in (torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    ]
    assert torch.equal(*draws)
    assert draws[0].bincount().tolist() == pytest.approx([100, 100, 100], abs=35)


def test_a_codebook_is_looked_up_through_a_subset() -> None:
    vq, subset = VectorQuantizer(codebook_size=20, dim=3), CodeSubset(torch.tensor([7, 2, 9]))
    latents = vq.lookup(subset.expand(torch.tensor([[0, 2, 1]])))
    torch.testing.assert_close(latents, vq.codebook[[7, 9, 2]].T[None])


def test_what_is_no_subset_is_refused() -> None:
    with pytest.raises(TypeError, match=r"used must be int64, got torch.int32"):
        CodeSubset(torch.tensor([1, 2], dtype=torch.int32))
    for used in ([1, 1], [-1, 2]):
        with pytest.raises(ValueError, match="used must hold distinct codes, not negative"):
            CodeSubset(torch.tensor(used))
    with pytest.raises(ValueError, match=r"unknown must be 'extra', 'random' or in \[0, 1\], got 2"):
        CodeSubset(torch.tensor([1, 2]), unknown=2)
    with pytest.raises(ValueError, match="used must not be empty"):
        CodeSubset(torch.zeros(0, dtype=torch.int64))
