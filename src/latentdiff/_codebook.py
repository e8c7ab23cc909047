"""What a codebook needs besides its gradient: the nearest code, k-means, running averages with restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from latentdiff._distributed import from_first_process, sum_over_processes

SEARCH_ELEMENTS: Final = {"cpu": 2**20}
"""Distances held at once, by device: few enough for a cache, enough for an efficient product."""

SEARCH_ELEMENTS_ELSEWHERE: Final = 2**24
"""Distances held at once on an accelerator and in a compiled graph: few, large products."""

USE_DECAY: Final = 0.99
"""Of the average use of a code that is learned by gradient, as published (Dhariwal et al. 2020, arXiv:2005.00341)."""

SMALLEST_SIZE: Final = 1e-5
"""Averaged sizes of clusters stay above this, lest an unused code become 0 / 0 after some thousand steps."""


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    r"""The index of the code nearest to each vector.

    \(\lVert e \rVert^2 / 2 - \langle z, e \rangle\), half the squared distance but for a constant, is computed in
    float64 (float32 on devices without it) about the centre of the codes, and compared as float32; of equals the
    lowest index wins. So the result depends neither on chunks and batches nor on autocast.

    On a CPU that is done for few vectors only: float32 comes first, and decides wherever the two nearest codes are
    further apart than its rounding could account for.

    Beside inputs and output, 12 bytes are held for each of at most 2 ** 20 distances on a CPU (12 MiB), 2 ** 24
    elsewhere (192 MiB), or for one vector's distances where the codebook is larger than that; for all of them in an
    exported program.

    Args:
        vectors: `[count, dim]`.
        codebook: `[codebook_size, dim]`.

    Returns:
        `[count]`, int64, in 0 ... codebook_size - 1.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        return _nearest_quickly(vectors, codebook) if _is_quick(vectors) else _nearest_exactly(vectors, codebook)


def _is_quick(vectors: Tensor) -> bool:
    """Whether float32 products are those of IEEE float32, and waiting for a result costs nothing."""
    if torch.compiler.is_compiling() or vectors.device.type != "cpu" or vectors.dtype != torch.float32:
        return False
    return torch.get_float32_matmul_precision() == "highest"


def _nearest_exactly(vectors: Tensor, codebook: Tensor) -> Tensor:
    """`nearest_codes` by float64 alone."""
    wide = torch.float32 if vectors.device.type == "mps" else torch.float64
    center = codebook.to(wide).mean(0)
    codes = codebook.to(wide) - center
    half_squares = 0.5 * codes.square().sum(1)
    nearest: list[Tensor] = []
    for chunk in _chunks(vectors, len(codes)):
        distances = torch.addmm(half_squares, chunk.to(wide) - center, codes.T, alpha=-1)
        nearest.append(distances.float().argmin(1))
    return torch.cat(nearest)


def _chunks(vectors: Tensor, codebook_size: int) -> Sequence[Tensor]:
    """`vectors` `[count, dim]` in parts whose distances are held at once; whole in a graph for export.

    Such a graph has as many parts as when it was traced, and must serve any `count`.
    """
    if not torch.compiler.is_compiling():
        elements = SEARCH_ELEMENTS.get(vectors.device.type, SEARCH_ELEMENTS_ELSEWHERE)
    elif torch.compiler.is_dynamo_compiling():
        elements = SEARCH_ELEMENTS_ELSEWHERE
    else:
        return (vectors,)
    return torch.split(vectors, max(1, elements // codebook_size))


def _nearest_quickly(vectors: Tensor, codebook: Tensor) -> Tensor:
    """`nearest_codes` by float32 where its rounding cannot matter, by float64 elsewhere."""
    center = codebook.mean(0)
    codes = codebook - center
    half_squares = 0.5 * codes.square().sum(1)
    radius = (2 * half_squares.max()).sqrt()
    # A product of dim terms is off by at most dim * eps / 2 * |z| |e| (Higham 2002, eq. 3.7), as are both of two codes;
    # 8 more for the half squares, the centring, and the rounding of what float64 finds.
    rounding = (codes.shape[1] + 8) * torch.finfo(torch.float32).eps * radius
    nearest: list[Tensor] = []
    unsure: list[Tensor] = []
    for chunk in torch.split(vectors, max(1, SEARCH_ELEMENTS["cpu"] // len(codes))):
        points = chunk - center
        distances = torch.addmm(half_squares, points, codes.T, alpha=-1)
        least, index = distances.min(1, keepdim=True)
        second = distances.scatter_(1, index, float("inf")).amin(1, keepdim=True)
        sure = second - least > rounding * (points.norm(dim=1, keepdim=True) + radius)  # False for NaN
        nearest.append(index[:, 0])
        unsure.append(~sure[:, 0])
    indices, again = torch.cat(nearest), torch.cat(unsure).nonzero()[:, 0]
    if len(again):
        indices[again] = _nearest_exactly(vectors[again], codebook)
    return indices


def count_and_sum(vectors: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Number and sum of the vectors at each code, over all processes; a vector that is not finite does not count.

    One overflow in half precision, whose step a gradient scaler leaves out, must not stay in an average.

    Args:
        vectors: `[count, dim]`.
        indices: `[count]`, which code each belongs to.
        codebook_size: Number of codes.

    Returns:
        `[codebook_size]` and `[codebook_size, dim]`, in the dtype of `vectors`.
    """
    is_finite = vectors.isfinite().all(1)
    counts = vectors.new_zeros(codebook_size).index_add_(0, indices, is_finite.to(vectors.dtype))
    sums = vectors.new_zeros(codebook_size, vectors.shape[1])
    sums.index_add_(0, indices, torch.where(is_finite[:, None], vectors, 0.0))
    return sum_over_processes(counts), sum_over_processes(sums)


def draw_vectors(vectors: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw `count` of `vectors` `[n, dim]` without replacement, again from the start when they are used up.

    Process 0 draws, of its own vectors, for all.

    Returns:
        `[count, dim]`.
    """
    device = vectors.device if generator is None else generator.device
    order = torch.randperm(len(vectors), generator=generator, device=device).to(vectors.device)
    chosen = order[torch.arange(count, device=vectors.device) % len(vectors)]
    return from_first_process(vectors[chosen])


@torch.no_grad()
def k_means(vectors: Tensor, codebook_size: int, iterations: int, generator: torch.Generator | None) -> Tensor:
    """Centres of the vectors of all processes, by Lloyd's iterations from vectors drawn at random.

    A centre that loses all its vectors stays where it is.

    Args:
        vectors: `[count, dim]`.
        codebook_size: Number of centres.
        iterations: Number of iterations; 0 leaves the draw.
        generator: For the draw.

    Returns:
        `[codebook_size, dim]`.
    """
    centers = draw_vectors(vectors, codebook_size, generator)
    for _ in range(iterations):
        counts, sums = count_and_sum(vectors, nearest_codes(vectors, centers), codebook_size)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centers)
    return centers


class CodebookAverage(nn.Module):
    r"""Exponential moving averages that make up a codebook, instead of a gradient.

    \(N_k \leftarrow \gamma N_k + (1 - \gamma)\, n_k\), \(m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{z \to k} z\),
    \(e_k = m_k / N_k\): van den Oord et al. 2017, arXiv:1711.00937, eq. 6 to 8. Sums and counts run over all processes,
    so every process ends with the same codebook.

    A code is dead when its average count falls below `restart_below`. It then takes the place of a vector of the batch,
    drawn at random, with twice that count, so that it has time to prove itself; \(e_k = m_k / N_k\) holds on.
    """

    size: Tensor
    sum: Tensor

    def __init__(self, codebook: Tensor, *, decay: float, restart_below: float) -> None:
        """Start at `codebook` `[codebook_size, dim]`, as if each code had one vector a step.

        Args:
            codebook: `[codebook_size, dim]`.
            decay: In [0, 1).
            restart_below: Vectors a step below which a code is dead; 0 for no restarts.
        """
        super().__init__()
        self.decay = decay
        self.restart_below = restart_below
        size = max(1.0, 2 * restart_below)
        self.register_buffer("size", codebook.new_full((len(codebook),), size))
        self.register_buffer("sum", size * codebook)

    @torch.no_grad()
    def start(self, codebook: Tensor) -> None:
        """Begin again at `codebook` `[codebook_size, dim]`."""
        size = max(1.0, 2 * self.restart_below)
        self.size.fill_(size)
        self.sum.copy_(size * codebook)

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor, generator: torch.Generator | None) -> Tensor:
        """Take one step, and return the new codebook.

        Args:
            vectors: `[count, dim]`, of this process.
            indices: `[count]`, the code of each.
            generator: For restarts.

        Returns:
            `[codebook_size, dim]`.

        Raises:
            ValueError: If the averages are in half precision, where small steps would be lost.
        """
        _check_precision("an averaged codebook must be float32 or float64 to learn", self.size)
        counts, sums = count_and_sum(vectors.to(self.sum.dtype), indices, len(self.size))
        size = self.decay * self.size + (1 - self.decay) * counts
        total = self.decay * self.sum + (1 - self.decay) * sums
        floor = size.clamp(min=SMALLEST_SIZE)
        total, size = total * (floor / size)[:, None], floor  # both alike: their ratio, the code, stays
        if self.restart_below > 0:
            restarted = 2 * self.restart_below
            spare = draw_vectors(vectors.to(total.dtype), len(size), generator)
            dead = (size < self.restart_below) & spare.isfinite().all(1)
            size = torch.where(dead, restarted, size)
            total = torch.where(dead[:, None], restarted * spare, total)
        self.size.copy_(size)
        self.sum.copy_(total)
        return total / size[:, None]


class CodeRestarts(nn.Module):
    r"""How much each code is used, and a new start for those that are not, where codes are learned by gradient.

    A code that is nearest to no vector has no gradient, and stays dead. So its average use
    \(N_k \leftarrow \gamma N_k + (1 - \gamma)\, n_k\), \(\gamma = 0.99\), is kept, over all processes; when that falls
    below `restart_below`, the code takes the place of a vector of the batch, drawn at random, and twice that use, so
    that it has time to prove itself (Dhariwal et al. 2020, arXiv:2005.00341, sec. 3.1). That happens in a step that
    does not use the code: no gradient of its old place moves it from the new one, and what an optimiser remembers of
    it has faded.
    """

    size: Tensor

    def __init__(self, codebook_size: int, *, restart_below: float) -> None:
        """Start as if each code had one vector a step.

        Args:
            codebook_size: Number of codes.
            restart_below: Vectors a step below which a code is dead.
        """
        super().__init__()
        self.restart_below = restart_below
        self.register_buffer("size", torch.full((codebook_size,), max(1.0, 2 * restart_below)))

    @torch.no_grad()
    def start(self) -> None:
        """Begin to count again."""
        self.size.fill_(max(1.0, 2 * self.restart_below))

    @torch.no_grad()
    def update(self, codebook: Tensor, vectors: Tensor, indices: Tensor, generator: torch.Generator | None) -> Tensor:
        """Count a step's use, and return the codebook with dead codes at vectors of the step.

        Args:
            codebook: `[codebook_size, dim]`.
            vectors: `[count, dim]`, of this process.
            indices: `[count]`, the code of each.
            generator: For the draw.

        Returns:
            `[codebook_size, dim]`.

        Raises:
            ValueError: If the counts are in half precision, where small steps would be lost.
        """
        _check_precision("counts of codes must be float32 or float64 to restart any", self.size)
        counts = torch.zeros_like(self.size).index_add_(0, indices, self.size.new_ones(len(vectors)))
        counts = sum_over_processes(counts)
        size = USE_DECAY * self.size + (1 - USE_DECAY) * counts
        spare = draw_vectors(vectors.to(codebook.dtype), len(size), generator)
        dead = (size < self.restart_below) & (counts == 0) & spare.isfinite().all(1)
        self.size.copy_(torch.where(dead, 2 * self.restart_below, size))
        return torch.where(dead[:, None], spare, codebook)


def _check_precision(requirement: str, averages: Tensor) -> None:
    if averages.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{requirement}, got {averages.dtype}; keep the module in float32 and use autocast")
