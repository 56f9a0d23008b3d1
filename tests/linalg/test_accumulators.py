"""Accumulators are exact, additive and indifferent to how their rows come in; their kind follows from shapes alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.errors import InputError, UnsupportedError


def _rows(seed: int, count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.arange(1, width + 1) ** -0.5


def _moment_of(*chunks: Tensor) -> linalg.Moment:
    moment = linalg.Moment(chunks[0].shape[1])
    for chunk in chunks:
        moment.add(chunk)
    return moment


@pytest.mark.parametrize(
    ("width", "count", "kind"),
    [
        (64, 64, linalg.Rows),
        (64, 65, linalg.Moment),
        (8192, 1024, linalg.Rows),
        (20480, 1025, linalg.Moment),
        (30000, 1024, linalg.Rows),
        (64, 0, linalg.Rows),
    ],
)
def test_the_kind_of_accumulator_follows_from_shapes(width: int, count: int, kind: type) -> None:
    assert isinstance(linalg.accumulator(width, count), kind)


def test_inputs_too_wide_for_a_moment_are_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match=r"20481 wide.*1025 positions.*at most 1024"):
        linalg.accumulator(20481, 1025)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 12), st.lists(st.integers(0, 40), max_size=4))
def test_a_moment_depends_on_the_rows_alone_not_on_their_chunks(
    seed: int, count: int, width: int, cuts: list[int]
) -> None:
    rows = _rows(seed, count, width)
    pieces = torch.tensor_split(rows, sorted(min(cut, count) for cut in cuts))
    whole, parts = _moment_of(rows), _moment_of(*pieces)
    assert whole.count == parts.count == count
    assert torch.equal(whole.state()["moment"], parts.state()["moment"])


def test_a_moment_of_many_chunks_and_panels_equals_the_float64_product() -> None:
    rows = _rows(5, 2500, 1100)
    moment = _moment_of(rows[:700], rows[700:]).state()["moment"]
    exact = rows.double().T @ rows.double()
    assert torch.equal(moment, moment.T)
    assert float((moment - exact).abs().max() / exact.abs().max()) < 1e-6


def test_the_union_of_two_moments_is_exactly_their_sum() -> None:
    first, second = _moment_of(_rows(1, 50, 9)), _moment_of(_rows(2, 31, 9))
    expected = first.state()["moment"] + second.state()["moment"]
    first.merge(second)
    assert first.count == 81
    assert torch.equal(first.state()["moment"], expected)
    assert second.count == 31


def test_moments_of_different_widths_do_not_add() -> None:
    with pytest.raises(ValueError, match="width 4 to one of width 3"):
        linalg.Moment(3).merge(linalg.Moment(4))


def test_a_moment_comes_back_from_its_state_and_goes_on() -> None:
    rows = _rows(3, 60, 9)
    original = _moment_of(rows[:40])
    restored = linalg.Moment.from_state(original.state())
    for moment in (original, restored):
        moment.add(rows[40:])
    assert restored.count == 60
    assert torch.equal(restored.state()["moment"], original.state()["moment"])


def test_rows_are_copied_when_they_are_added() -> None:
    buffer = _rows(4, 3, 5)
    before = buffer.clone()
    kept, summed = linalg.Rows(5), linalg.Moment(5)
    kept.add(buffer)
    summed.add(buffer)
    buffer.zero_()
    expected = float(before.double().square().sum() / 3)
    assert kept.subspace(5).total == pytest.approx(expected, rel=1e-6)
    assert summed.subspace(5).total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [linalg.Rows, linalg.Moment])
def test_nothing_measured_gives_the_empty_subspace(kind: type) -> None:
    accumulator = kind(6)
    accumulator.add(torch.zeros(0, 6))
    subspace = accumulator.subspace(4)
    assert (subspace.width, subspace.rank, subspace.count, subspace.rest) == (6, 0, 0, 0.0)


@pytest.mark.parametrize("kind", [linalg.Rows, linalg.Moment])
def test_inputs_that_are_all_zero_have_no_directions(kind: type) -> None:
    accumulator = kind(6)
    accumulator.add(torch.zeros(3, 6))
    subspace = accumulator.subspace(4)
    assert (subspace.rank, subspace.count, subspace.total) == (0, 3, 0.0)


@pytest.mark.parametrize("kind", [linalg.Rows, linalg.Moment])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(kind: type, value: float) -> None:
    accumulator = kind(4)
    accumulator.add(torch.tensor([[1.0, value, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    with pytest.raises(InputError, match="NaN or infinite"):
        accumulator.subspace(4)


def test_both_accumulators_find_the_same_subspace() -> None:
    rows = _rows(6, 30, 12)
    kept = linalg.Rows(12)
    kept.add(rows)
    ours, theirs = kept.subspace(12), _moment_of(rows).subspace(12)
    torch.testing.assert_close(ours.energies, theirs.energies, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.directions, theirs.directions, rtol=0, atol=1e-4)
