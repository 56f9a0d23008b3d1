"""The polar factor equals that of a float64 SVD, is orthonormal, and tells the rank that was cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg

_SEEDS = st.integers(0, 2**31)


def _matrix(seed: int, rows: int, columns: int, falling: float = 0.0) -> Tensor:
    """Random, with singular values that fall by `falling` decades from first to last."""
    generator = torch.Generator().manual_seed(seed)
    left, _, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    values = torch.logspace(0.0, -falling, min(rows, columns), dtype=torch.float64)
    return (left * values) @ right


def _by_svd(matrix: Tensor, rtol: float) -> tuple[Tensor, int]:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = values > rtol * values[0]
    return left[:, kept] @ right[kept], int(kept.sum())


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([0.3, 1e-6]))
def test_the_factor_equals_that_of_a_singular_value_decomposition(
    seed: int, rows: int, columns: int, falling: float, rtol: float
) -> None:
    matrix = _matrix(seed, rows, columns, falling)
    expected, rank = _by_svd(matrix, rtol)
    found = linalg.polar_factor(matrix, rtol=rtol)
    assert found.rank == rank
    assert found.cut == pytest.approx(1 - rank / min(rows, columns))
    torch.testing.assert_close(found.factor, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrix), rtol=0, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(_SEEDS, st.floats(0.0, 5.5), st.sampled_from([torch.float32, torch.float64]))
def test_columns_are_orthonormal_where_nothing_is_cut(seed: int, falling: float, dtype: torch.dtype) -> None:
    found = linalg.polar_factor(_matrix(seed, 40, 12, falling).to(dtype), rtol=1e-6)
    assert (found.rank, found.cut, found.factor.dtype) == (12, 0.0, dtype)
    overlap = found.factor.double().T @ found.factor.double()
    assert float((overlap - torch.eye(12)).abs().max()) <= 1e-5


@settings(max_examples=20, deadline=None)
@given(_SEEDS, st.booleans())
def test_what_is_cut_leaves_an_orthogonal_projector_of_the_told_rank(seed: int, exact: bool) -> None:
    """Repeated columns, exactly or up to 1e-5."""
    matrix = _matrix(seed, 20, 4)
    matrix = torch.cat([matrix, matrix + (0.0 if exact else 1e-5) * _matrix(seed + 1, 20, 4)], dim=1)
    found = linalg.polar_factor(matrix, rtol=1e-3)
    assert (found.rank, found.cut) == (4, 0.5)
    projector = found.factor.T @ found.factor
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-10)
    assert float(projector.trace()) == pytest.approx(4.0)


def test_a_zero_matrix_has_rank_zero_and_an_empty_one_nothing_to_cut() -> None:
    zero = linalg.polar_factor(torch.zeros(3, 2), rtol=0.3)
    assert (zero.rank, zero.cut, float(zero.factor.abs().max())) == (0, 1.0, 0.0)
    empty = linalg.polar_factor(torch.zeros(3, 0), rtol=0.3)
    assert (empty.rank, empty.cut, tuple(empty.factor.shape)) == (0, 0.0, (3, 0))


def test_a_given_gram_matrix_is_used_for_the_smaller_side() -> None:
    matrix = _matrix(0, 5, 8)
    found = linalg.polar_factor(matrix, rtol=1e-6, gram=matrix @ matrix.T)
    torch.testing.assert_close(found.factor, linalg.polar_factor(matrix, rtol=1e-6).factor, rtol=0, atol=1e-12)
