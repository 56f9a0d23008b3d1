"""Leading singular triplets equal those of a float64 decomposition, exactly or as far as the residual check allows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.linalg import leading

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


def test_few_triplets_of_a_large_matrix_are_found_without_the_exact_decomposition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leading, "EXACT_SIZE", 64)
    values = torch.cat([torch.linspace(3.0, 1.0, 10), 0.3 * torch.arange(1, 81).double() ** -0.5]).double()
    matrix = _with_values(values, 90, 120, 3)
    assert linalg.search_space(90, 120, 10) == 28
    monkeypatch.setattr(torch.linalg, "svd", None)
    for case, seen in ((matrix, matrix), (matrix.T, matrix.T), (matrix.float(), matrix)):
        found = linalg.leading_svd(case, 10)
        torch.testing.assert_close(found.values, values[:10], rtol=1e-4, atol=0)
        _require_orthonormal(found, 1e-5)
        again = linalg.leading_svd(case, 10)
        assert torch.equal(found.left, again.left)
        residual = (seen - _product(found)).norm()
        assert float(residual) == pytest.approx(float(values[10:].norm()), rel=1e-4)


def test_a_flat_spectrum_takes_more_iterations_and_misses_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "EXACT_SIZE", 64)
    matrix = _random(5, 160, 200)
    exact = torch.linalg.svdvals(matrix)[:20]
    found = linalg.leading_svd(matrix, 20)
    missed = 1 - float(found.values.square().sum() / exact.square().sum())
    assert -1e-12 <= missed <= 0.03
    monkeypatch.setattr(leading, "_RESIDUAL", 1e-9)
    torch.testing.assert_close(linalg.leading_svd(matrix, 20).values, exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_range_finder_stands_rank_deficient_and_zero_matrices(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(leading, "EXACT_SIZE", 32)
    low = (_random(6, 80, 3) @ _random(7, 3, 90)).to(dtype)
    single = torch.zeros(80, 90, dtype=dtype)
    single[3, 4] = 2.0
    for matrix, rank in ((low, 3), (single, 1), (torch.zeros(80, 90, dtype=dtype), 0)):
        found = linalg.leading_svd(matrix, 8)
        assert found.rank == rank
        torch.testing.assert_close(_product(found), matrix.double(), rtol=0, atol=2e-4)
