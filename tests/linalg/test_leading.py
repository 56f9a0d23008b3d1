"""Leading singular triplets equal those of a float64 decomposition, as near as the search claims."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.linalg import lanczos, leading

_SEEDS = st.integers(0, 2**31)


def _random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _with_values(values: Tensor, rows: int, columns: int, seed: int) -> Tensor:
    left, right = (
        torch.linalg.qr(_random(seed + side, size, len(values)))[0] for side, size in ((0, rows), (1, columns))
    )
    return (left * values) @ right.T


def _product(found: linalg.Singular) -> Tensor:
    return (found.left.double() * found.values) @ found.right.double().T


def _require_orthonormal(found: linalg.Singular, within: float) -> None:
    for side in (found.left, found.right):
        overlap = side.double().T @ side.double()
        assert found.rank == 0 or float((overlap - torch.eye(found.rank)).abs().max()) <= within


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.sampled_from([torch.float32, torch.float64]))
def test_small_matrices_are_decomposed_exactly(
    seed: int, rows: int, columns: int, wanted: int, dtype: torch.dtype
) -> None:
    matrix = _random(seed, rows, columns, dtype=dtype)
    found = linalg.leading_svd(matrix, wanted)
    values = torch.linalg.svdvals(matrix.double())
    kept = min(wanted, rows, columns)
    within = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found.values, values[:kept], rtol=within, atol=within)
    _require_orthonormal(found, within)
    residual = float((matrix.double() - _product(found)).norm())
    assert residual == pytest.approx(float(values[kept:].norm()), abs=20 * within)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_a_matrix_of_low_rank_has_as_many_triplets(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    matrix = (_random(0, shape[0], 3) @ _random(1, 3, shape[1])).to(dtype)
    found = linalg.leading_svd(matrix, 8)
    assert found.rank == 3
    torch.testing.assert_close(_product(found), matrix.double(), rtol=0, atol=1e-5)
    assert found.above(float(found.values[1])).rank == 1
    assert linalg.leading_svd(torch.zeros(shape, dtype=dtype), 4).rank == 0


@settings(max_examples=15, deadline=None)
@given(_SEEDS, st.integers(1, 12), st.integers(1, 12), st.integers(1, 15))
def test_a_factored_matrix_equals_its_product(seed: int, rows: int, columns: int, rank: int) -> None:
    left, right = _random(seed, rows, rank), _random(seed + 1, rank, columns)
    found, dense = linalg.factored_svd(left, right, 5), linalg.leading_svd(left @ right, 5)
    assert found.rank == dense.rank
    torch.testing.assert_close(found.values, dense.values, rtol=1e-9, atol=1e-9)
    _require_orthonormal(found, 1e-10)


def _falling(kind: str, count: int) -> Tensor:
    numbers = torch.arange(1, count + 1, dtype=torch.float64)
    kinds = {
        "flat": 1.0 - 0.5 * (numbers - 1) / count,
        "slow": numbers**-0.5,
        "steep": numbers**-2.0,
        "step": torch.where(numbers <= 10, 2.0 - 0.1 * numbers, 0.3),
        "copies": 0.7 ** ((numbers - 1) // 24),
    }
    return kinds[kind]


@settings(max_examples=5, deadline=None)
@given(
    _SEEDS,
    st.sampled_from([(200, 200), (200, 240), (240, 200)]),
    st.sampled_from(["flat", "slow", "steep", "step"]),
    st.sampled_from([4, 10]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_few_triplets_of_a_large_matrix_equal_those_of_the_whole_decomposition(
    seed: int, shape: tuple[int, int], kind: str, wanted: int, dtype: torch.dtype
) -> None:
    values = _falling(kind, 200)
    matrix = _with_values(values, *shape, seed).to(dtype)
    left, exact, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leading, "EXACT_SIZE", 100)
        patch.setattr(lanczos, "_LEAST_BLOCK", 4)
        assert linalg.search_space(*shape, wanted)
        found, turned = linalg.leading_svd(matrix, wanted), linalg.leading_svd(matrix.T, wanted)
        again = linalg.leading_svd(matrix, wanted)
    assert torch.equal(found.left, again.left)
    gap = float((exact[wanted - 1] - exact[wanted]) / exact[0])
    within = 1e-5 if dtype == torch.float64 else 1e-5 + 3e-7 / gap
    expected = (left[:, :wanted] * exact[:wanted]) @ right[:wanted]
    for each, target in ((found, expected), (turned, expected.T)):
        torch.testing.assert_close(each.values, exact[:wanted], rtol=1e-6, atol=1e-6 * float(exact[0]))
        _require_orthonormal(each, 1e-6)
        assert float((_product(each) - target).norm()) <= within * float(expected.norm())


def test_the_whole_decomposition_is_spared_where_few_dimensions_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "EXACT_SIZE", 100)
    monkeypatch.setattr(lanczos, "_LEAST_BLOCK", 4)
    monkeypatch.setattr(leading, "_by_gram", None)
    for kind in ("slow", "steep", "step"):
        assert linalg.leading_svd(_with_values(_falling(kind, 200), 240, 200, 3).float(), 10).rank == 10
    with pytest.raises(TypeError):
        linalg.leading_svd(_random(5, 200, 240).float(), 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_copies_of_a_value_than_a_block_holds_are_found(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(leading, "EXACT_SIZE", 100)
    values = _falling("copies", 240)
    for matrix in (_with_values(values, 240, 260, 3).to(dtype), values.diag().to(dtype)):
        found = linalg.leading_svd(matrix, 18)
        torch.testing.assert_close(found.values, values[:18], rtol=1e-5, atol=0)
        _require_orthonormal(found, 1e-6)
        residual = matrix.double() @ found.right.double() - found.left.double() * found.values
        assert float(residual.norm()) <= 1e-5


@pytest.mark.parametrize("size", [30, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-42, 1e-22, 1e19, 1e37])
def test_triplets_do_not_depend_on_the_unit_of_the_entries(
    monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype, scale: float
) -> None:
    monkeypatch.setattr(leading, "EXACT_SIZE", 100)
    matrix = _with_values(_falling("slow", size), size, size, 3)
    scaled = (matrix * scale).to(dtype)
    found, usual = linalg.leading_svd(scaled, 6), linalg.leading_svd(matrix, 6)
    assert found.rank == 6
    coarse = max(1e-5, float((scaled.double() / scale - matrix).norm()))
    torch.testing.assert_close(found.values / scale, usual.values, rtol=0, atol=2 * coarse)
    torch.testing.assert_close(_product(found) / scale, _product(usual), rtol=0, atol=40 * coarse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_stands_rank_deficient_and_zero_matrices(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(leading, "EXACT_SIZE", 100)
    low = (_random(6, 180, 3) @ _random(7, 3, 190)).to(dtype)
    single, few = torch.zeros(2, 180, 190, dtype=dtype)
    single[3, 4] = 2.0
    few[:5] = _random(8, 5, 190)
    for matrix, rank in ((low, 3), (single, 1), (few, 5), (torch.zeros(180, 190, dtype=dtype), 0)):
        assert linalg.search_space(*matrix.shape, 8)
        found = linalg.leading_svd(matrix, 8)
        _require_orthonormal(found, 1e-5)
        assert found.rank == rank
        torch.testing.assert_close(_product(found), matrix.double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(20, 34), (34, 20)])
def test_the_largest_cosine_is_that_of_the_deltas_where_all_of_them_is_kept(shape: tuple[int, int]) -> None:
    factors = {name: [_random(seed, shape[0], 4), _random(seed + 9, 4, shape[1])] for seed, name in enumerate("abc")}
    factors["d"] = [factors["a"][0], factors["a"][1] + 0.3 * _random(5, 4, shape[1])]
    matrices = {name: left @ right for name, (left, right) in factors.items()}
    parts = {name: linalg.leading_svd(matrix, 5) for name, matrix in matrices.items()}
    flat = torch.stack([matrix.flatten() / matrix.norm() for matrix in matrices.values()])
    expected = float((flat @ flat.T).triu(1).max())
    assert linalg.Stacks.of(parts, 0.3, "own").facts()["cosine_largest"] == pytest.approx(expected, rel=1e-9)
    alone = {"a": parts["a"], "zero": linalg.leading_svd(torch.zeros(shape, dtype=torch.float64), 3)}
    assert "cosine_largest" not in linalg.Stacks.of(alone, 0.3, "own").facts()
