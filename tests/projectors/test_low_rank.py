"""low_rank is the best approximation of its rank: Eckart and Young, factors and dense alike, energy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from vecsurgery.delta import Delta, Dense, Edit, Factored
from vecsurgery.projectors.low_rank import PROJECTOR

_SEEDS = st.integers(0, 2**31)


def _cut(delta: Tensor | Delta, **options: object) -> Edit:
    wrapped = Dense(delta) if isinstance(delta, Tensor) else delta
    return PROJECTOR.function({"task": wrapped}, {}, options=PROJECTOR.options(**options))


def _edited(edit: Edit) -> Tensor:
    return edit.deltas["task"].dense()


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_the_error_is_that_of_eckart_and_young(seed: int, rows: int, width: int, rank: int) -> None:
    delta = _random(seed, rows, width)
    edit = _cut(delta, rank=rank)
    tail = torch.linalg.svdvals(delta)[rank:].square().sum()
    assert float((delta - _edited(edit)).square().sum()) == pytest.approx(float(tail), abs=1e-12)
    assert int(torch.linalg.matrix_rank(_edited(edit))) == edit.facts["rank"] == min(rank, rows, width)


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.floats(0.01, 0.99))
def test_energy_takes_the_fewest_singular_values_that_hold_it(seed: int, energy: float) -> None:
    delta = _random(seed, 6, 9)
    edit = _cut(delta, energy=energy)
    squares = torch.linalg.svdvals(delta).square()
    rank = int(edit.facts["rank"])
    assert float(squares[:rank].sum() / squares.sum()) >= energy - 1e-12
    assert float(squares[: rank - 1].sum() / squares.sum()) < energy
    assert 1 - edit.facts["energy_removed"] == pytest.approx(float(squares[:rank].sum() / squares.sum()))


@settings(max_examples=15, deadline=None)
@given(_SEEDS, st.integers(1, 5), st.integers(1, 6))
def test_factors_are_cut_without_their_product_and_equal_the_dense_edit(seed: int, inner: int, rank: int) -> None:
    left, right = _random(seed, 7, inner), _random(seed + 1, inner, 5)
    factored, dense = _cut(Factored(left, right), rank=rank), _cut(left @ right, rank=rank)
    torch.testing.assert_close(_edited(factored), _edited(dense), rtol=0, atol=1e-12)
    assert isinstance(factored.deltas["task"], Factored)


def test_the_result_of_a_dense_delta_is_factored_in_the_deltas_own_type() -> None:
    cut = _cut(_random(1, 6, 8).float(), rank=2).deltas["task"]
    assert isinstance(cut, Factored)
    assert (cut.left.shape, cut.right.shape, cut.left.dtype, cut.right.dtype) == ((6, 2), (2, 8), *[torch.float32] * 2)


def test_a_delta_that_has_no_more_comes_back_as_it_is() -> None:
    left, right = _random(2, 6, 2), _random(3, 2, 8)
    for delta, options in [
        (Dense(left @ right), {"rank": 6}),
        (Dense(left @ right), {"energy": 1.0}),
        (Dense(torch.zeros(3, 4)), {"rank": 1}),
        (Factored(left, right), {"rank": 2}),
    ]:
        edit = _cut(delta, **options)
        assert edit.deltas["task"] is delta
        assert edit.facts["norm_ratio"] == 1.0


def test_cutting_twice_changes_nothing_more() -> None:
    once = _cut(_random(4, 6, 9), rank=3).deltas["task"]
    torch.testing.assert_close(_edited(_cut(once.dense(), rank=3)), once.dense(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "neither"), ({"rank": 2, "energy": 0.5}, "both"), ({"rank": 0}, "rank"), ({"energy": 1.5}, "energy")],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PROJECTOR.options(**options)
