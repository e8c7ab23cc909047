from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as Peer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentdiff import VectorQuantizer, _codebook
from latentdiff._codebook import CodebookAverage, k_means, nearest_codes
from latentdiff._quantized import CodeGradient, code_use, pass_gradient

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = [(2, 3), (2, 3, 7), (2, 3, 5, 4), (2, 3, 4, 5, 6)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quantizer(
    size: int = 11,
    dim: int = 3,
    *,
    commitment_weight: float = 0.25,
    codebook_weight: float = 1.0,
    decay: float | None = None,
    restart_below: float = 0.0,
    cosine: bool = False,
    gradient: CodeGradient = "straight_through",
    seed: int = 0,
) -> VectorQuantizer:
    """A quantizer with codes of unit size."""
    made = VectorQuantizer(
        codebook_size=size,
        dim=dim,
        commitment_weight=commitment_weight,
        codebook_weight=codebook_weight,
        decay=decay,
        restart_below=restart_below,
        cosine=cosine,
        gradient=gradient,
    )
    with torch.no_grad():
        made.codebook.copy_(randn(size, dim, seed=seed))
    if made.average is not None:
        made.average.start(made.codebook)
    return made


def brute_force(vectors: Tensor, codebook: Tensor) -> Tensor:
    return (vectors[:, None].double() - codebook.double()).square().sum(2).argmin(1)


# The nearest code


@given(SEEDS, st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(1, 200))
def test_search_in_chunks_is_brute_force(seed: int, count: int, size: int, dim: int, elements: int) -> None:
    vectors, codebook = randn(count, dim, seed=seed), randn(size, dim, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_codebook, "SEARCH_ELEMENTS", {"cpu": elements})
        found = nearest_codes(vectors, codebook)
    assert torch.equal(found, brute_force(vectors, codebook))
    assert found.dtype == torch.int64


def test_search_never_holds_more_distances_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    addmm = torch.addmm

    def watched(*args: Tensor, alpha: float) -> Tensor:
        distances = addmm(*args, alpha=alpha)
        seen.append(distances.numel())
        return distances

    monkeypatch.setattr(torch, "addmm", watched)
    nearest_codes(randn(5000, 3), randn(700, 3, seed=1))
    assert len(seen) > 1
    assert max(seen) <= _codebook.SEARCH_ELEMENTS["cpu"]


@given(SEEDS, st.integers(1, 33), st.integers(2, 70), st.integers(1, 70))
def test_of_equal_codes_the_first_is_taken(seed: int, count: int, size: int, dim: int) -> None:
    codebook = randn(1, dim, seed=seed).expand(size, dim)
    assert nearest_codes(randn(count, dim, seed=seed + 1), codebook).eq(0).all()


def test_halfway_between_two_codes_the_first_is_taken() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert nearest_codes(torch.zeros(3, 2), codebook).tolist() == [1, 1, 1]


def test_codes_far_from_the_origin_are_told_apart() -> None:
    codebook = 1000 + 0.01 * randn(50, 4)  # squares differ by 1e-4 of 4e6: lost in float32
    vectors = codebook[torch.arange(49, -1, -1)] + 0.001 * randn(50, 4, seed=1)
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


@given(SEEDS, st.floats(1e-4, 1e4), st.floats(0, 1e5), st.integers(1, 40))
def test_the_quick_search_finds_what_float64_finds(seed: int, scale: float, offset: float, dim: int) -> None:
    codebook = offset + scale * randn(60, dim, seed=seed)
    codebook[30:40] = codebook[:10]  # equal codes, and vectors halfway between two
    halfway = (codebook[torch.arange(20)] + codebook[torch.arange(20, 40)]) / 2
    vectors = torch.cat([offset + randn(70, dim, seed=seed + 1), halfway, codebook])
    found = nearest_codes(vectors, codebook)
    assert torch.equal(found, _codebook._nearest_exactly(vectors, codebook))
    assert torch.equal(found, torch.cat([nearest_codes(part, codebook) for part in vectors.split(7)]))
    exact = (vectors[:, None].double() - codebook.double()).square().sum(2)
    least = exact.amin(1)
    excess = exact.gather(1, found[:, None])[:, 0] - least
    assert (excess <= 4e-7 * scale * (least.sqrt() + 20 * scale * dim**0.5)).all()  # equal as float32, if not the least


def test_the_quick_search_asks_float64_about_few_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    exactly = _codebook._nearest_exactly

    def watched(vectors: Tensor, codebook: Tensor) -> Tensor:
        asked.append(len(vectors))
        return exactly(vectors, codebook)

    monkeypatch.setattr(_codebook, "_nearest_exactly", watched)
    nearest_codes(randn(5000, 8), randn(1024, 8, seed=1))
    assert sum(asked) < 50
    codebook = VectorQuantizer(codebook_size=1024, dim=8).codebook  # as it starts, far smaller than its vectors
    asked.clear()
    nearest_codes(randn(5000, 8), codebook)
    assert sum(asked) < 50


def test_vectors_that_are_no_numbers_do_not_hang_the_search() -> None:
    found = nearest_codes(torch.full((3, 2), float("nan")), randn(5, 2))
    assert found.shape == (3,)


# Values


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_every_vector_of_a_map_of_any_rank_becomes_its_nearest_code(shape: tuple[int, ...]) -> None:
    vq, z = quantizer(), randn(*shape, seed=3)
    out = vq(z)
    vectors = z.movedim(1, -1).reshape(-1, 3)
    expected = brute_force(vectors, vq.codebook)
    assert out.latents.shape == shape
    assert out.indices.shape == (shape[0], *shape[2:])
    assert torch.equal(out.indices.flatten(), expected)
    torch.testing.assert_close(out.latents.movedim(1, -1).reshape(-1, 3), vq.codebook[expected])


@pytest.mark.parametrize("legacy", [True, False])
def test_output_loss_and_gradients_are_those_of_diffusers(legacy: bool) -> None:
    peer = Peer(11, 3, beta=0.25, legacy=legacy)
    weights = (1.0, 0.25) if legacy else (0.25, 1.0)
    vq = quantizer(commitment_weight=weights[0], codebook_weight=weights[1])
    peer.embedding.weight.data.copy_(vq.codebook.data)
    z, upstream = randn(2, 3, 5, 4, seed=3), randn(2, 3, 5, 4, seed=4)
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    out = vq(ours)
    latents, loss, (_, _, indices) = peer(theirs)
    ((out.latents * upstream).sum() + out.loss).backward()
    ((latents * upstream).sum() + loss).backward()
    assert torch.equal(out.indices.flatten(), indices)
    assert torch.equal(out.latents, latents)  # both z + (e - z)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(vq.codebook.grad, peer.embedding.weight.grad)


@pytest.mark.parametrize(("commitment", "codebook"), [(0.25, 1.0), (1.0, 0.25), (0.0, 1.0)])
def test_gradients_are_the_formulas(commitment: float, codebook: float) -> None:
    vq = quantizer(commitment_weight=commitment, codebook_weight=codebook).double()
    z = randn(2, 3, 5, 4, seed=3, dtype=torch.float64).requires_grad_()
    upstream = randn(2, 3, 5, 4, seed=4, dtype=torch.float64)
    out = vq(z)
    ((out.latents * upstream).sum() + out.loss).backward()
    codes = vq.lookup(out.indices).detach()
    torch.testing.assert_close(z.grad, upstream + commitment * 2 * (z.detach() - codes) / z.numel())
    differences = (codes - z.detach()).movedim(1, -1).reshape(-1, 3)
    expected = torch.zeros(11, 3, dtype=torch.float64).index_add_(0, out.indices.flatten(), differences)
    torch.testing.assert_close(vq.codebook.grad, codebook * 2 * expected / z.numel())
    torch.testing.assert_close(out.loss.detach(), (commitment + codebook) * (codes - z.detach()).square().mean())


@given(SEEDS)
def test_quantizing_twice_is_once(seed: int) -> None:
    vq = quantizer(seed=seed)
    once = vq(randn(2, 3, 5, 4, seed=seed + 1))
    twice = vq(once.latents)
    assert torch.equal(once.indices, twice.indices)
    torch.testing.assert_close(once.latents, twice.latents)


@pytest.mark.parametrize("cosine", [False, True])
def test_lookup_is_undone_by_quantizing(cosine: bool) -> None:
    vq, indices = quantizer(cosine=cosine), torch.arange(10).reshape(1, 2, 5)
    latents = vq.lookup(indices)
    assert latents.shape == (1, 3, 2, 5)
    out = vq(latents)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.latents, latents)
    assert out.loss < 1e-12


def test_perplexity_and_usage_count_codes() -> None:
    vq = quantizer()
    even, single = vq(vq.lookup(torch.arange(11)[None])), vq(vq.lookup(torch.full((2, 4), 5)))
    torch.testing.assert_close(even.perplexity, torch.tensor(11.0))
    torch.testing.assert_close(even.usage, torch.tensor(1.0))
    torch.testing.assert_close(single.perplexity, torch.tensor(1.0))
    torch.testing.assert_close(single.usage, torch.tensor(1 / 11))


def test_cosine_codes_see_directions_only() -> None:
    vq, z = quantizer(cosine=True), randn(2, 3, 5, 4, seed=3)
    out, scaled = vq(z), vq(7.5 * z)
    assert torch.equal(out.indices, scaled.indices)
    torch.testing.assert_close(out.latents.norm(dim=1), torch.ones(2, 5, 4))
    similarity = torch.cosine_similarity(z.movedim(1, -1)[..., None, :], vq.codebook, dim=-1)
    assert torch.equal(out.indices, similarity.argmax(-1))


@given(SEEDS, st.integers(1, 60), st.integers(1, 30))
def test_perplexity_is_that_of_the_histogram(seed: int, count: int, size: int) -> None:
    indices = torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))
    perplexity, usage = code_use(indices, size, torch.float64)
    shares = indices.bincount(minlength=size).double() / count
    torch.testing.assert_close(perplexity, torch.exp(-torch.xlogy(shares, shares).sum()))
    torch.testing.assert_close(usage, (shares > 0).double().mean())


# The rotation trick


@given(SEEDS, st.integers(2, 7))
def test_the_gradient_is_turned_and_stretched_as_the_vector_is(seed: int, dim: int) -> None:
    z, codes = (randn(9, dim, seed=seed + i, dtype=torch.float64) for i in range(2))
    jacobians = torch.autograd.functional.jacobian(lambda x: pass_gradient(x, codes, "rotation").sum(0), z)
    assert isinstance(jacobians, Tensor)
    for jacobian, vector, code in zip(jacobians.movedim(1, 0), z, codes, strict=True):
        torch.testing.assert_close(jacobian @ vector, code)  # takes the vector to its code
        scale = code.norm() / vector.norm()
        eye = torch.eye(dim, dtype=torch.float64)
        torch.testing.assert_close(jacobian.T @ jacobian, scale**2 * eye)  # a rotation, stretched
        assert torch.linalg.det(jacobian / scale).item() == pytest.approx(1.0)
        plane = torch.linalg.qr(torch.stack([vector, code], 1)).Q
        outside = eye - plane @ plane.T
        torch.testing.assert_close(jacobian @ outside, scale * outside)  # in the plane of the two alone


def test_the_rotation_changes_gradients_and_nothing_else() -> None:
    straight, rotating = quantizer(seed=1), quantizer(seed=1, gradient="rotation")
    z = randn(2, 3, 5, 4, seed=3)
    ours, theirs = rotating(z), straight(z)
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.latents, theirs.latents)


def test_the_rotation_is_finite_where_there_is_none() -> None:
    codes = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]], requires_grad=True)
    out = pass_gradient(z, codes, "rotation")
    torch.testing.assert_close(out, codes)
    out.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert z.grad[0].tolist() == [1.0, 1.0]  # straight through


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_compared_in_float32(dtype: torch.dtype) -> None:
    vq, z = quantizer(size=500), randn(2, 3, 9, 8, seed=3).to(dtype)
    out = vq(z)
    assert torch.equal(out.indices, vq(z.float()).indices)
    assert out.latents.dtype == dtype
    assert out.loss.dtype == out.perplexity.dtype == torch.float32


def test_autocast_changes_nothing() -> None:
    vq, z = quantizer(size=500), randn(2, 3, 9, 8, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        cast = vq(z)
    plain = vq(z)
    assert torch.equal(cast.indices, plain.indices)
    assert torch.equal(cast.loss, plain.loss)
    assert torch.equal(cast.latents, plain.latents)


def test_an_averaged_codebook_in_half_precision_refuses_to_learn() -> None:
    vq = quantizer(decay=0.9).bfloat16()
    with pytest.raises(ValueError, match=r"must be float32 or float64 to learn, got torch.bfloat16; .* use autocast"):
        vq(randn(2, 3, 5, 4))
    vq.eval()(randn(2, 3, 5, 4))


# The averaged codebook


def holds(average: CodebookAverage, codebook: Tensor) -> bool:
    return bool((average.size > 0).all()) and torch.allclose(average.sum / average.size[:, None], codebook, rtol=1e-6)


def test_averages_are_the_closed_form() -> None:
    decay = 0.8
    vq = quantizer(decay=decay).double()
    assert vq.average is not None
    size, total = torch.ones(11, dtype=torch.float64), vq.codebook.clone()
    for step in range(7):
        z = randn(2, 3, 5, 4, seed=step, dtype=torch.float64)
        vectors = z.movedim(1, -1).reshape(-1, 3)
        mine = torch.nn.functional.one_hot(brute_force(vectors, total / size[:, None]), 11).double()
        size = decay * size + (1 - decay) * mine.sum(0)
        total = decay * total + (1 - decay) * mine.T @ vectors
        vq(z)
        torch.testing.assert_close(vq.average.size, size)
        torch.testing.assert_close(vq.codebook, total / size[:, None])


def test_the_output_is_that_of_the_codebook_before_the_step() -> None:
    vq, z = quantizer(decay=0.5), randn(2, 3, 5, 4, seed=3)
    before = copy.deepcopy(vq)
    out = vq(z)
    torch.testing.assert_close(out.latents, before.quantize(z).latents)
    assert not torch.equal(vq.codebook, before.codebook)


def test_an_averaged_codebook_has_no_gradient_and_no_term_of_its_own() -> None:
    vq, z = quantizer(decay=0.9), randn(2, 3, 5, 4, seed=3).requires_grad_()
    out = vq(z)
    out.loss.backward()
    assert not list(vq.parameters())
    assert z.grad is not None
    codes = out.latents.detach()
    torch.testing.assert_close(out.loss.detach(), 0.25 * (codes - z.detach()).square().mean())


@pytest.mark.parametrize("decay", [None, 0.9])
def test_evaluation_and_quantize_leave_the_codebook_alone(decay: float | None) -> None:
    vq = quantizer(decay=decay)
    before = copy.deepcopy(vq.state_dict())
    vq.quantize(randn(2, 3, 5, 4))
    vq.eval()(randn(2, 3, 5, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vq.state_dict().items())


def test_a_code_that_nobody_uses_stays_where_it_is_for_ever() -> None:
    vq = quantizer(decay=0.1)
    with torch.no_grad():
        vq.codebook[4] = 100.0
    assert vq.average is not None
    vq.average.start(vq.codebook)
    for step in range(80):  # 0.1 ** 80 underflows in float32
        vq(randn(2, 3, 5, 4, seed=step))
    torch.testing.assert_close(vq.codebook[4], torch.full((3,), 100.0))
    assert holds(vq.average, vq.codebook)


def test_dead_codes_come_back_at_vectors_of_the_batch_and_averages_hold() -> None:
    vq = quantizer(size=20, decay=0.5, restart_below=0.1)
    with torch.no_grad():
        vq.codebook.copy_(50 + 0.01 * randn(20, 3))  # collapsed, far from all data
    assert vq.average is not None
    vq.average.start(vq.codebook)
    assert vq.quantize(randn(2, 3, 9, 8)).usage < 0.5
    for step in range(30):
        vq(randn(2, 3, 9, 8, seed=step), generator=torch.Generator().manual_seed(step))
        assert holds(vq.average, vq.codebook)
    out = vq.quantize(randn(2, 3, 9, 8, seed=99))
    assert out.usage > 0.9
    assert out.perplexity > 10
    still_dead = quantizer(size=20, decay=0.5)
    still_dead.load_state_dict(vq.state_dict())  # restarts are no state


def test_a_restarted_code_is_a_vector_of_the_batch() -> None:
    average = CodebookAverage(randn(4, 3), decay=0.0, restart_below=0.5)
    vectors = randn(10, 3, seed=1)
    codebook = average.update(vectors, torch.zeros(10, dtype=torch.int64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(codebook[0], vectors.mean(0))
    nearest = (codebook[1:, None] - vectors).square().sum(2).amin(1)
    assert (nearest < 1e-12).all()
    assert torch.equal(average.size, torch.tensor([10.0, 1.0, 1.0, 1.0]))


def test_restarts_are_drawn_from_the_generator() -> None:
    runs = []
    for seed in (0, 0, 1):
        vq = quantizer(size=20, decay=0.5, restart_below=3.0)
        generator = torch.Generator().manual_seed(seed)
        for step in range(3):  # codes start with twice the count below which they are dead
            vq(randn(2, 3, 5, 4, seed=step), generator=generator)
        runs.append(vq.codebook.clone())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("decay", [0.5, None])
def test_an_overflow_does_not_stay_in_the_codebook(decay: float | None, bad: float) -> None:
    vq = quantizer(decay=decay, restart_below=1e-3)
    z = randn(2, 3, 5, 4)
    clean = copy.deepcopy(vq)
    z[:, :, 2:] = bad
    for counted in (vq.average, vq.restarts):
        if counted is not None:
            counted.size.fill_(1e-5)  # all unused codes are dead
    for step in range(5):
        vq(z, generator=torch.Generator().manual_seed(step))
    assert vq.codebook.isfinite().all()
    if decay is not None:
        for _ in range(2):
            clean(z[:, :, :2], generator=torch.Generator().manual_seed(0))
        again = quantizer(decay=decay, restart_below=1e-3)
        for _ in range(2):
            again(z, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(again.codebook, clean.codebook)


# Restarts of a codebook that is learned by gradient


def trained(vq: VectorQuantizer, steps: int) -> VectorQuantizer:
    """A quantizer after `steps` of Adam on normal vectors."""
    optimizer = torch.optim.Adam(vq.parameters(), lr=0.01)
    for step in range(steps):
        out = vq(randn(2, 3, 9, 8, seed=step), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return vq


@pytest.mark.parametrize("cosine", [False, True])
def test_dead_codes_of_a_learned_codebook_come_back(cosine: bool) -> None:
    usage = {}
    for restart_below in (0.0, 0.5):
        vq = quantizer(size=20, restart_below=restart_below, cosine=cosine)
        with torch.no_grad():
            vq.codebook.copy_(50 + 0.01 * randn(20, 3))  # collapsed: one code is nearest to nearly everything
        usage[restart_below] = trained(vq, 150).quantize(randn(2, 3, 9, 8, seed=999)).usage
    assert usage[0.0] < 0.5
    assert usage[0.5] > 0.9


def test_a_restart_happens_when_the_average_use_falls_below_and_nobody_uses_the_code() -> None:
    vq = quantizer(size=4, restart_below=0.9)  # starts with a use of 1.8, at 0.9 after 69 steps: 0.99^69 = 0.4998
    z = randn(4, 3, seed=1)
    before = vq.codebook.detach().clone()
    for step in range(69):
        vq.learn(z[:1, :, None], torch.zeros(1, 1, dtype=torch.int64))
        assert torch.equal(vq.codebook, before) is (step < 68)
    assert torch.equal(vq.codebook[0], before[0])
    torch.testing.assert_close(vq.codebook[1:].detach(), z[:1].expand(3, 3))
    assert vq.restarts is not None
    expected = 1.8 * 0.99**69 + 1 - 0.99**69
    torch.testing.assert_close(vq.restarts.size, torch.tensor([expected, 1.8, 1.8, 1.8]))
    vq.restarts.size.fill_(0.1)
    vq.learn(z[:1, :, None], torch.zeros(1, 1, dtype=torch.int64))
    assert torch.equal(vq.codebook[0], before[0])  # all are dead, but its own gradient is on the way


def test_the_gradient_is_that_of_the_codebook_before_restarts() -> None:
    gradients = []
    for restart_below in (0.0, 0.5):
        vq, z = quantizer(size=20, restart_below=restart_below, cosine=True), randn(2, 3, 3, 2).requires_grad_()
        if vq.restarts is not None:
            vq.restarts.size.zero_()
        out = vq(z)
        (out.loss + out.latents.square().sum()).backward()
        gradients.append((z.grad, vq.codebook.grad))
    assert not torch.equal(vq.codebook, quantizer(size=20).codebook)
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


def test_restarts_travel_with_the_weights_begin_again_with_the_codebook_and_need_precision() -> None:
    vq = trained(quantizer(restart_below=0.5), 3)
    again = quantizer(restart_below=0.5)
    again.load_state_dict(vq.state_dict())
    assert vq.restarts is not None
    assert again.restarts is not None
    assert torch.equal(again.restarts.size, vq.restarts.size)
    again.initialize(randn(2, 3, 5, 4))
    assert torch.equal(again.restarts.size, torch.ones(11))
    with pytest.raises(ValueError, match=r"counts of codes must be float32 or float64 to restart any, got torch.bfloa"):
        vq.bfloat16()(randn(2, 3, 5, 4))


# k-means


def clusters(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Eight centres at the corners of a cube, and twenty vectors close around each."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    return corners, (corners[:, None] + 0.01 * randn(8, 20, 3, seed=seed)).reshape(-1, 3)


def test_k_means_never_gets_worse_and_ends_at_means() -> None:
    _, vectors = clusters()
    errors = []
    for iterations in (0, 1, 2, 5, 20):
        centers = k_means(vectors, 8, iterations, torch.Generator().manual_seed(0))
        indices = nearest_codes(vectors, centers)
        errors.append((vectors - centers[indices]).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
    for k in indices.unique():
        torch.testing.assert_close(centers[k], vectors[indices == k].mean(0))


@pytest.mark.parametrize("decay", [None, 0.9])
def test_initialize_starts_from_the_data_and_keeps_averages(decay: float | None) -> None:
    corners, vectors = clusters()
    vq = VectorQuantizer(codebook_size=24, dim=3, decay=decay)
    vq.initialize(vectors.T.reshape(1, 3, 20, 8), generator=torch.Generator().manual_seed(0))
    assert (torch.cdist(corners, vq.codebook).amin(1) < 0.1).all()
    if vq.average is not None:
        assert holds(vq.average, vq.codebook)


def test_initialize_takes_numbers_and_a_whole_number_of_iterations() -> None:
    vq = VectorQuantizer(codebook_size=24, dim=3)
    with pytest.raises(ValueError, match="z must be finite, got NaN"):
        vq.initialize(torch.full((1, 3, 5), torch.nan))
    with pytest.raises(ValueError, match="iterations must be at least 0, got -1"):
        vq.initialize(randn(1, 3, 5), iterations=-1)


def test_initialize_takes_fewer_vectors_than_codes() -> None:
    vq, z = VectorQuantizer(codebook_size=24, dim=3), randn(1, 3, 5)
    vq.initialize(z)
    torch.testing.assert_close(vq.quantize(z).latents, z)


# The module


def test_codes_start_uniform_in_the_published_interval() -> None:
    codes = VectorQuantizer(codebook_size=1000, dim=4).codebook
    assert codes.abs().max() <= 1e-3
    assert codes.std().item() == pytest.approx(1e-3 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": 0.99, "restart_below": 0.5}, {"restart_below": 0.5}, {"cosine": True}, {"gradient": "rotation"}],
)
def test_config_builds_it_again(options: dict[str, object]) -> None:
    vq = VectorQuantizer(codebook_size=11, dim=3, **options)  # type: ignore[arg-type]
    again = VectorQuantizer(**vq.config)  # type: ignore[arg-type]
    assert again.config == vq.config
    again.load_state_dict(vq.state_dict())


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": 0.9, "restart_below": 0.5}, {"restart_below": 0.5}, {"cosine": True}, {"gradient": "rotation"}],
)
def test_it_compiles_as_one_graph(options: dict[str, object]) -> None:
    torch.compiler.reset()
    vq = VectorQuantizer(codebook_size=11, dim=3, **options)  # type: ignore[arg-type]
    expected = copy.deepcopy(vq).quantize(randn(2, 3, 5, 4))
    out = torch.compile(vq, backend="eager", fullgraph=True)(randn(2, 3, 5, 4))
    assert torch.equal(out.indices, expected.indices)
    torch.testing.assert_close(out.loss, expected.loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codebook_size": 0}, "codebook_size must be at least 1, got 0"),
        ({"gradient": "none"}, "gradient must be one of 'straight_through', 'rotation', got 'none'"),
        ({"dim": -1}, "dim must be at least 1, got -1"),
        ({"decay": 1.0}, r"decay must be None or in \[0, 1\), got 1.0"),
        ({"commitment_weight": -1.0}, "must be finite and not negative, got -1.0 and 1.0"),
        ({"decay": 0.9, "codebook_weight": 0.25}, "codebook_weight must be left at 1 with decay"),
        ({"commitment_weight": float("nan")}, "must be finite and not negative, got nan and 1.0"),
        ({"restart_below": -0.5}, "restart_below must not be negative, got -0.5"),
        ({"restart_below": float("nan"), "decay": 0.9}, "restart_below must not be negative, got nan"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    arguments = {"codebook_size": 11, "dim": 3, **options}
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**arguments)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_are_refused() -> None:
    vq = quantizer()
    with pytest.raises(ValueError, match="z must have dim=3, got dim=4 in"):
        vq(randn(2, 4, 5))
    with pytest.raises(TypeError, match=r"z must be floating, got torch.int64"):
        vq(torch.zeros(2, 3, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"z must not be empty, got shape \[0, 3, 5\]"):
        vq(torch.zeros(0, 3, 5))
    with pytest.raises(ValueError, match=r"indices must be in \[0, 10\], got values in \[-1, 11\]"):
        vq.lookup(torch.tensor([[-1, 11]]))
    with pytest.raises(TypeError, match=r"indices must be int64 or int32, got torch.float32"):
        vq.lookup(torch.zeros(2, 5))


@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), codes=st.integers(1, 9))
def test_perplexity_and_usage_are_those_of_the_histogram(seed: int, count: int, codes: int) -> None:
    indices = torch.randint(codes, (count,), generator=torch.Generator().manual_seed(seed))
    shares = torch.bincount(indices, minlength=codes).double() / count
    perplexity, usage = code_use(indices, codes, torch.float64)
    assert perplexity.item() == pytest.approx(torch.special.entr(shares).sum().exp().item())
    assert usage.item() == pytest.approx((shares > 0).double().mean().item())
