"""The strength solver meets the wanted share of the activation energy, and the split of that energy is exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery import linalg


def _subspace(energies: list[float], width: int, rest: float = 0.0, count: int = 100) -> linalg.Subspace:
    directions = torch.eye(width, dtype=torch.float64)[:, : len(energies)]
    return linalg.Subspace(directions, torch.tensor(energies, dtype=torch.float64), rest=rest, count=count)


def test_retention_bias_equals_the_mean_squared_output() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    delta = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    subspace = linalg.rows_subspace(inputs, 7)
    bias = linalg.retention_bias(
        delta @ subspace.directions, subspace.energies, float(delta.square().sum()), subspace.tail
    )
    assert bias == pytest.approx(float((inputs @ delta.T).square().sum() / 30), rel=1e-10)


def test_retention_bias_counts_the_tail_at_its_mean_energy() -> None:
    delta = torch.tensor([[1.0, 2.0, 3.0]])
    subspace = _subspace([4.0], 3, rest=1.0)
    bias = linalg.retention_bias(delta @ subspace.directions.float(), subspace.energies, 14.0, subspace.tail)
    assert bias == pytest.approx(4 * 1 + 0.5 * (4 + 9))


@pytest.mark.parametrize(("energy", "rank"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.99, 3)])
def test_a_share_of_energy_takes_the_fewest_directions_that_hold_it(energy: float, rank: int) -> None:
    kind = linalg.Filter.of(_subspace([5.0, 3.0, 2.0], 5), energy)
    assert (kind.rank, kind.tail_weight) == (rank, 0.0)


def test_all_energy_takes_every_direction_above_single_precision() -> None:
    kind = linalg.Filter.of(_subspace([1.0, 1e-3, 1e-9], 4))
    assert (kind.rank, kind.tail_weight) == (2, 0.0)


def test_energy_outside_the_stored_directions_becomes_a_tail_only_at_full_energy() -> None:
    subspace = _subspace([6.0, 2.0], 4, rest=2.0)
    assert linalg.Filter.of(subspace).tail_weight == pytest.approx((2 / 2) / (10 / 4))
    assert linalg.Filter.of(subspace, 0.7).tail_weight == 0.0
    assert linalg.Filter.of(subspace, 0.9).rank == 2


def test_a_subspace_without_energy_has_nothing_to_filter() -> None:
    kind = linalg.Filter.of(_subspace([], 4))
    bias = linalg.Bias.of(torch.zeros(0), 3.0, _subspace([], 4), kind)
    assert (kind.rank, bias.total, bias.floor, linalg.solve_strength(kind, bias, 0.1)) == (0, 0.0, 0.0, 0.0)


_ENERGIES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(_ENERGIES, st.floats(0.0, 5.0), st.floats(0.01, 0.99), st.sampled_from([1.0, 0.6]), st.integers(0, 2**31))
def test_the_solved_strength_keeps_the_wanted_share_or_stops_at_the_floor(
    energies: list[float], rest: float, keep: float, energy: float, seed: int
) -> None:
    subspace = _subspace(sorted(energies, reverse=True), 8, rest)
    squares = torch.rand(len(energies), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    kind = linalg.Filter.of(subspace, energy)
    bias = linalg.Bias.of(squares, float(squares.sum()) + 1.0, subspace, kind)
    strength = linalg.solve_strength(kind, bias, keep)
    left = bias.after(kind.factors(strength), kind.tail(strength)) / bias.total
    assert left == pytest.approx(max(keep, bias.floor), rel=1e-9)
    assert (bias.floor == 0.0) or energy < 1.0


@settings(max_examples=40, deadline=None)
@given(_ENERGIES, st.floats(0.0, 5.0), st.floats(0.0, 1e4), st.floats(1.0, 100.0))
def test_more_strength_leaves_less_energy(energies: list[float], rest: float, strength: float, more: float) -> None:
    subspace = _subspace(sorted(energies, reverse=True), 8, rest)
    kind = linalg.Filter.of(subspace)
    bias = linalg.Bias.of(torch.ones(len(energies)), len(energies) + 2.0, subspace, kind)
    weak, strong = (bias.after(kind.factors(value), kind.tail(value)) for value in (strength, strength * more))
    assert strong <= weak * (1 + 1e-12)
    assert weak <= bias.total * (1 + 1e-12)
