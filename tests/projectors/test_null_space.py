"""null_space leaves protected inputs unchanged: exact vectors, laws of a projector, plain and Kronecker references."""

import projector_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.delta import Delta, Dense, Edit, Factored
from vecsurgery.errors import InputError
from vecsurgery.projectors.null_space import PROJECTOR

_SEEDS = st.integers(0, 2**31)
_DELTA = torch.tensor([[1.0, 2, 3], [4, 5, 6]])


def _project(delta: Tensor | Delta, inputs: Tensor | linalg.Subspace, **options: object) -> Edit:
    wrapped = Dense(delta) if isinstance(delta, Tensor) else delta
    subspace = linalg.rows_subspace(inputs, inputs.shape[1]) if isinstance(inputs, Tensor) else inputs
    return PROJECTOR.function(
        {"instruct": wrapped}, {"thinking": subspace}, options=PROJECTOR.options(geometry="thinking", **options)
    )


def _edited(edit: Edit) -> Tensor:
    return edit.deltas["instruct"].dense()


def _case(seed: int, outputs: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, width + 1, dtype=torch.float64) ** -1.0
    delta = torch.randn(outputs, width, generator=generator, dtype=torch.float64)
    return delta, torch.randn(count, width, generator=generator, dtype=torch.float64) * scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_protected_inputs_leave_the_third_component(dtype: torch.dtype) -> None:
    edit = _project(_DELTA.to(dtype), torch.tensor([[1.0, 0, 0], [1, 1, 0]]), rtol=1e-6)
    expected = torch.tensor([[0, 0, 3], [0, 0, 6]], dtype=dtype)
    torch.testing.assert_close(_edited(edit), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert (edit.facts["rank"], edit.facts["rtol_leak"]) == (2.0, 0.0)


def test_ridge_one_halves_the_strongest_direction() -> None:
    edit = _project(_DELTA, torch.tensor([[1.0, 0, 0]]), ridge=1)
    torch.testing.assert_close(_edited(edit), torch.tensor([[0.5, 2, 3], [2, 5, 6]]))
    assert edit.facts["rtol_leak"] == pytest.approx(0.25)


@settings(max_examples=40, deadline=None)
@given(_SEEDS, st.integers(1, 5), st.integers(1, 8), st.integers(1, 12), st.sampled_from([0.5, 0.1, 1e-3]))
def test_the_edit_equals_the_pseudo_inverse_form_at_equal_rank(
    seed: int, outputs: int, width: int, count: int, rtol: float
) -> None:
    delta, inputs = _case(seed, outputs, width, count)
    edit = _project(delta, inputs, rtol=rtol)
    if int(edit.facts["rank"]) == int(torch.linalg.matrix_rank(inputs, rtol=rtol)):
        torch.testing.assert_close(_edited(edit), reference.null_space(delta, inputs, rtol), rtol=0, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(1, 3), st.integers(2, 5), st.integers(1, 3))
def test_the_edit_equals_the_explicit_least_squares_problem(seed: int, outputs: int, width: int, count: int) -> None:
    delta, inputs = _case(seed, outputs, width, count)
    edited = _edited(_project(delta, inputs, rtol=1e-7))
    torch.testing.assert_close(edited, reference.null_space_by_constraints(delta, inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("rtol", [0.5, 0.1, 1e-3, 1e-6])
def test_protected_directions_are_removed_at_every_rtol(dtype: torch.dtype, limit: float, rtol: float) -> None:
    delta, inputs = _case(1, 24, 96, 40)
    subspace = linalg.rows_subspace(inputs, 96)
    edit = _project(delta.to(dtype), subspace, rtol=rtol)
    protected = subspace.directions[:, : int(edit.facts["rank"])]
    assert float((_edited(edit).double() @ protected).norm() / delta.norm()) <= limit


def test_protected_inputs_leak_only_through_directions_below_rtol() -> None:
    delta, inputs = _case(2, 24, 96, 40)
    before = float((delta @ inputs.T).norm())
    for rtol in (0.1, 1e-6):
        edit = _project(delta, inputs, rtol=rtol)
        leak = float((_edited(edit) @ inputs.T).norm()) / before
        assert leak**2 == pytest.approx(edit.facts["rtol_leak"], rel=1e-6, abs=1e-18)
        assert leak <= (0.4 if rtol == 0.1 else 1e-10)


def test_projecting_twice_changes_nothing_more_and_the_change_is_orthogonal_to_the_result() -> None:
    delta, inputs = _case(3, 6, 12, 5)
    once = _edited(_project(delta, inputs))
    twice = _edited(_project(once, inputs))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-13)
    assert float(((delta - once) * once).sum()) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_order_and_repeats_of_the_whole_set_change_nothing(seed: int, repeats: int, random: object) -> None:
    delta, inputs = _case(seed, 4, 16, 6)
    plain = _project(delta, inputs, rtol=1e-3)
    order = list(range(6)) * repeats
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = _project(delta, inputs[order], rtol=1e-3)
    assert shuffled.facts["rank"] == plain.facts["rank"]
    torch.testing.assert_close(_edited(shuffled), _edited(plain), rtol=0, atol=1e-9)


def test_a_single_duplicate_changes_nothing_as_rtol_goes_to_zero() -> None:
    delta, inputs = _case(4, 4, 16, 6)
    plain, doubled = (_edited(_project(delta, rows, rtol=1e-6)) for rows in (inputs, inputs[[0, 0, 1, 2, 3, 4, 5]]))
    torch.testing.assert_close(doubled, plain, rtol=0, atol=1e-10)


def test_no_position_returns_the_delta_bit_for_bit_with_a_warning() -> None:
    edit = _project(_DELTA, linalg.Rows(3).subspace(3))
    assert torch.equal(_edited(edit), _DELTA)
    assert edit.facts["rtol_leak"] == 0.0
    assert any("unprotected" in warning for warning in edit.warnings)


def test_a_low_rank_delta_equals_the_dense_edit_and_stays_low_rank() -> None:
    left, right = _case(5, 6, 2, 1)[0], _case(6, 2, 16, 1)[0]
    inputs = _case(7, 1, 16, 6)[1]
    factored, dense = (_project(delta, inputs, ridge=0.1) for delta in (Factored(left, right), left @ right))
    torch.testing.assert_close(_edited(factored), _edited(dense), rtol=0, atol=1e-12)
    assert isinstance(factored.deltas["instruct"], Factored)


def test_directions_that_span_the_input_annihilate_the_delta_with_a_warning() -> None:
    edit = _project(_DELTA.double(), torch.eye(3))
    assert float(_edited(edit).norm()) < 1e-12
    assert any("span the whole input" in warning for warning in edit.warnings)


def test_little_of_the_delta_left_is_warned_about() -> None:
    delta = torch.tensor([[1.0, 0.01, 0.0]])
    inputs = torch.tensor([[1.0, 0, 0]])
    assert any("is left; raise rtol" in warning for warning in _project(delta, inputs).warnings)
    assert not _project(_DELTA, inputs).warnings


def test_a_truncated_geometry_that_ends_above_rtol_stops_and_names_the_option() -> None:
    delta, inputs = _case(8, 4, 16, 12)
    whole = linalg.rows_subspace(inputs, 16)
    cut = linalg.rows_subspace(inputs, 3)
    with pytest.raises(InputError, match="max_directions"):
        _project(delta, cut, rtol=0.01)
    ratios = (whole.energies / whole.energies[0]).sqrt()
    enough = _project(delta, cut, rtol=float(ratios[1] + ratios[2]) / 2)
    assert enough.facts["rank"] == 2


def test_an_rtol_below_the_rounding_of_a_summed_moment_is_warned_about() -> None:
    delta, inputs = _case(9, 4, 16, 40)
    moment = linalg.accumulator(16, 40)
    moment.add(inputs)
    assert any("below the rounding" in warning for warning in _project(delta, moment.subspace(16), rtol=1e-5).warnings)
    assert not any("rounding" in warning for warning in _project(delta, moment.subspace(16), rtol=0.1).warnings)


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": 0.0},
        {"rtol": 1.0},
        {"rtol": True},
        {"rtol": float("nan")},
        {"ridge": -0.1},
        {"others": "x"},
        {"keep": 0.1},
    ],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PROJECTOR.options(geometry="thinking", **options)
