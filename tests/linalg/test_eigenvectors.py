"""Every way to a subspace gives orthonormal directions, the energies of a float64 SVD, and an honest rest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.linalg.eigen import leading_eigenvectors, orthonormalise_poor


def _orthonormal(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def _assert_orthonormal(directions: Tensor, limit: float = 1e-12) -> None:
    identity = torch.eye(directions.shape[1], dtype=directions.dtype)
    assert float((directions.T @ directions - identity).norm()) <= limit


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12))
def test_rows_give_the_energies_of_their_singular_values(seed: int, count: int, width: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    subspace = linalg.rows_subspace(rows, most)
    energies = torch.linalg.svdvals(rows).square() / count
    kept = min(most, count, width)
    _assert_orthonormal(subspace.directions)
    torch.testing.assert_close(subspace.energies, energies[:kept], rtol=1e-9, atol=1e-12)
    assert subspace.total == pytest.approx(float(energies.sum()), rel=1e-12)
    assert (subspace.rest == 0.0) == (kept == min(count, width))
    assert subspace.count == count


def test_directions_stay_orthonormal_where_singular_values_fall_to_1e_minus_7() -> None:
    generator = torch.Generator().manual_seed(0)
    singular = torch.logspace(0, -7, 15, dtype=torch.float64)
    left, right = _orthonormal(generator, 15, 15), _orthonormal(generator, 40, 15)
    subspace = linalg.rows_subspace(left @ torch.diag(singular) @ right.T, 40)
    assert subspace.rank == 15
    _assert_orthonormal(subspace.directions)
    leading = subspace.directions[:, :10]
    torch.testing.assert_close(
        (leading * right[:, :10]).sum(0).abs(), torch.ones(10, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_repeated_rows_add_no_direction() -> None:
    rows = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    once, twice = linalg.rows_subspace(rows, 3), linalg.rows_subspace(rows.repeat(2, 1), 3)
    assert once.rank == twice.rank == 2
    torch.testing.assert_close(once.energies, twice.energies)
    torch.testing.assert_close(once.directions, twice.directions)


def test_a_direction_has_its_largest_component_positive() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    for subspace in (linalg.rows_subspace(rows[:4], 6), linalg.moment_subspace(rows.T @ rows, 9, 6)):
        largest = subspace.directions.gather(0, subspace.directions.abs().argmax(dim=0, keepdim=True))
        assert bool((largest > 0).all())


def test_an_exact_moment_leaves_its_tail_in_rest() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(50, 10, generator=generator, dtype=torch.float64)
    energies = torch.linalg.svdvals(rows).square() / 50
    full, cut = (linalg.moment_subspace(rows.T @ rows, 50, most) for most in (10, 4))
    assert full.rest == 0.0
    assert cut.rest == pytest.approx(float(energies[4:].sum()), rel=1e-12)
    assert cut.tail == pytest.approx(float(energies[4:].mean()), rel=1e-12)


_PLACES = torch.arange(1, 401, dtype=torch.float64)
_SPECTRA = {
    "slow": _PLACES**-0.5,
    "steep": _PLACES**-2,
    "exponential": torch.exp(-_PLACES / 40),
    "outlier": torch.cat([torch.tensor([3e3], dtype=torch.float64), _PLACES[:-1] ** -0.7]),
    "deficient": torch.where(_PLACES <= 30, 1 / _PLACES, torch.zeros(())),
}


@pytest.mark.parametrize("name", _SPECTRA)
def test_block_iteration_finds_what_the_exact_decomposition_finds(name: str) -> None:
    spectrum, wanted = _SPECTRA[name], 64
    basis = _orthonormal(torch.Generator().manual_seed(3), 400, 400)
    matrix = (basis * spectrum) @ basis.T
    values, vectors = leading_eigenvectors((matrix + matrix.T) / 2, wanted)
    _assert_orthonormal(vectors)
    missed = 1 - float(values.sum() / spectrum[:wanted].sum())
    assert -1e-6 < missed < 5e-3
    assert bool((values[:-1] >= values[1:]).all())
    torch.testing.assert_close(values[:16], spectrum[:16], rtol=2e-2, atol=2e-7 * float(spectrum[0]))
    captured = (vectors.T @ basis[:, :16]).square().sum(0)
    assert float(captured[spectrum[:16] > 1e-6 * spectrum[0]].min()) > 0.98


def test_block_iteration_gives_the_same_bits_every_time() -> None:
    basis = _orthonormal(torch.Generator().manual_seed(4), 300, 300)
    matrix = (basis * _PLACES[:300] ** -1) @ basis.T
    first, second = leading_eigenvectors(matrix, 20), leading_eigenvectors(matrix, 20)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_moment_wider_than_2048_keeps_the_leading_directions_and_the_rest(noise: float) -> None:
    generator = torch.Generator().manual_seed(5)
    width, count = 2100, 1100
    factors = torch.randn(count, 8, generator=generator) * torch.arange(8, 0, -1)
    rows = factors @ _orthonormal(generator, width, 8).T.float()
    rows += noise * torch.randn(count, width, generator=generator)
    moment = linalg.accumulator(width, count)
    moment.add(rows)
    subspace = moment.subspace(16)
    energies = torch.linalg.svdvals(rows).double().square() / count
    assert subspace.rank == (16 if noise else 8)
    _assert_orthonormal(subspace.directions)
    torch.testing.assert_close(subspace.energies[:8], energies[:8], rtol=1e-4, atol=0)
    assert subspace.rest == pytest.approx(float(energies[16:].sum()) if noise else 0.0, rel=0.02)


def test_only_directions_that_the_division_by_small_singular_values_spoilt_are_made_orthonormal_again() -> None:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(40, 6, generator=generator, dtype=torch.float64))[0].T
    squares = torch.tensor([1.0, 0.5, 2.0**-20, 2.0**-21, 1e-9, 1e-12], dtype=torch.float64)
    spoilt = basis.clone()
    spoilt[3:] += 1e-4 * torch.randn(3, 40, generator=generator, dtype=torch.float64)
    directions = spoilt.clone()
    orthonormalise_poor(directions, squares)
    assert torch.equal(directions[:3], spoilt[:3])
    assert (directions @ directions.T - torch.eye(6, dtype=torch.float64)).abs().max() < 1e-14
    assert (directions - basis).abs().max() < 1e-3
