"""trim keeps the largest entries: an exact share, mergekit's function, the best approximation with as many entries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit import sparsify
from pydantic import ValidationError
from torch import Tensor

from vecsurgery.delta import Delta, Dense, Edit, Factored
from vecsurgery.projectors.trim import PROJECTOR


def _trim(delta: Tensor | Delta, density: float) -> Edit:
    wrapped = Dense(delta) if isinstance(delta, Tensor) else delta
    return PROJECTOR.function({"task": wrapped}, {}, options=PROJECTOR.options(density=density))


def _edited(edit: Edit) -> Tensor:
    return edit.deltas["task"].dense()


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9), st.floats(0.01, 0.999))
def test_exactly_the_largest_entries_stay_as_they_were(seed: int, rows: int, width: int, density: float) -> None:
    delta = _random(seed, rows, width)
    edit = _trim(delta, density)
    count = max(1, int(density * rows * width))
    border = delta.abs().flatten().sort(descending=True).values[count - 1]
    expected = torch.where(delta.abs() >= border, delta, 0.0)
    assert torch.equal(_edited(edit), expected)
    assert edit.facts["kept"] == count / (rows * width)
    assert edit.facts["energy_removed"] == pytest.approx(1 - float(expected.norm() / delta.norm()) ** 2, abs=1e-12)


def test_the_edit_is_that_of_mergekits_function() -> None:
    delta = _random(1, 30, 20).float()
    expected = sparsify.sparsify(delta, 0.3, sparsify.SparsificationMethod.magnitude)
    assert torch.equal(_edited(_trim(delta, 0.3)), expected)


def test_the_share_is_exact_where_magnitudes_are_equal_as_bfloat16_makes_them() -> None:
    delta = _random(2, 40, 50).bfloat16().float().mul(0.01).round(decimals=3)
    assert int((_edited(_trim(delta, 0.1)) != 0).sum()) == 200


def test_density_one_returns_the_delta_itself_and_a_factored_one_equals_the_dense_edit() -> None:
    left, right = _random(3, 6, 2), _random(4, 2, 8)
    factored = Factored(left, right)
    assert _trim(factored, 1.0).deltas["task"] is factored
    assert torch.equal(_edited(_trim(factored, 0.4)), _edited(_trim(left @ right, 0.4)))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, True, float("nan")])
def test_wrong_densities_are_refused(density: float) -> None:
    with pytest.raises(ValidationError):
        PROJECTOR.options(density=density)
