"""spectral_filter equals the dense filter matrix, keeps every bit where it should, and is precise enough to protect."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg


def _basis(generator: torch.Generator, width: int, rank: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0].to(dtype)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9), st.integers(0, 9), st.sampled_from([0.0, 0.4, 1.0]))
def test_filter_equals_the_dense_matrix(seed: int, rows: int, width: int, rank: int, tail: float) -> None:
    generator, rank = torch.Generator().manual_seed(seed), min(rank, width)
    directions = _basis(generator, width, rank)
    factors = torch.rand(rank, generator=generator, dtype=torch.float64)
    factors[::3] = tail
    matrix = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    identity = torch.eye(width, dtype=torch.float64)
    dense = directions @ torch.diag(factors) @ directions.T + tail * (identity - directions @ directions.T)
    filtered = linalg.spectral_filter(matrix, directions, factors, tail=tail)
    torch.testing.assert_close(filtered, matrix @ dense, rtol=0, atol=1e-13)
    given_product = linalg.spectral_filter(matrix, directions, factors, tail=tail, product=matrix @ directions)
    torch.testing.assert_close(given_product, filtered, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filter_that_changes_nothing_returns_the_same_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(4, 7, generator=generator, dtype=dtype)
    directions = _basis(generator, 7, 3)
    assert torch.equal(linalg.spectral_filter(matrix, directions, torch.ones(3)), matrix)
    assert torch.equal(linalg.spectral_filter(matrix, directions[:, :0], torch.ones(0)), matrix)


def test_filter_keeps_the_type_of_the_matrix_and_leaves_the_matrix_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(4, 7, generator=generator)
    before = matrix.clone()
    filtered = linalg.spectral_filter(matrix, _basis(generator, 7, 3), torch.zeros(3, dtype=torch.float64))
    assert filtered.dtype == torch.float32
    assert torch.equal(matrix, before)


def test_filter_refuses_half_precision() -> None:
    with pytest.raises(TypeError, match="bfloat16"):
        linalg.spectral_filter(torch.ones(2, 2, dtype=torch.bfloat16), torch.eye(2), torch.zeros(2))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_removed_directions_are_gone_to_the_precision_of_the_law(
    dtype: torch.dtype, limit: float, offset: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(200, 1024, generator=generator, dtype=torch.float64) + offset
    directions = torch.linalg.svd(rows, full_matrices=False).Vh.T
    matrix = torch.randn(64, 1024, generator=generator, dtype=torch.float64).to(dtype) + offset
    filtered = linalg.spectral_filter(matrix, directions, torch.zeros(200)).double()
    assert float((filtered @ directions).norm() / matrix.double().norm()) <= limit
