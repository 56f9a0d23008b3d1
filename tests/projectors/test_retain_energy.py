"""retain_energy solves its problem: equal to the dense closed form, monotone, bounded, at its target or its floor."""

import itertools

import projector_reference as reference
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.delta import Delta, Dense, Edit, Factored
from vecsurgery.projectors.retain_energy import PROJECTOR

_SEEDS = st.integers(0, 2**31)


def _project(delta: Tensor | Delta, subspace: linalg.Subspace, **options: object) -> Edit:
    wrapped = Dense(delta) if isinstance(delta, Tensor) else delta
    return PROJECTOR.function(
        {"unlearning": wrapped}, {"retain": subspace}, options=PROJECTOR.options(geometry="retain", **options)
    )


def _edited(edit: Edit) -> Tensor:
    return edit.deltas["unlearning"].dense()


def _case(seed: int, outputs: int = 5, width: int = 8, count: int = 40) -> tuple[Tensor, Tensor, linalg.Subspace]:
    """A delta, the second moment of its inputs, and the whole subspace of that moment, in float64."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, width + 1, dtype=torch.float64) ** -1.0
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64) * scales
    delta = torch.randn(outputs, width, generator=generator, dtype=torch.float64)
    return delta, reference.second_moment(rows), linalg.rows_subspace(rows, width)


@settings(max_examples=40, deadline=None)
@given(_SEEDS, st.integers(1, 6), st.integers(1, 8), st.integers(1, 20), st.floats(0, 1e3))
def test_the_full_spectrum_gives_the_closed_form(
    seed: int, outputs: int, width: int, count: int, strength: float
) -> None:
    delta, moment, subspace = _case(seed, outputs, width, count)
    assume(bool((subspace.energies > width * 2.0**-23 * subspace.energies[0]).all()))  # lesser ones are left alone
    edit = _project(delta, subspace, strength=strength)
    expected = reference.retain_energy(delta, moment, strength)
    torch.testing.assert_close(_edited(edit), expected, rtol=0, atol=1e-6)
    assert edit.facts["rab"] == pytest.approx(reference.retention_bias(delta, moment), rel=1e-9)
    assert edit.facts["rab_after"] == pytest.approx(reference.retention_bias(expected, moment), rel=1e-5, abs=1e-12)


def test_infinite_strength_equals_the_hard_projector() -> None:
    delta, _, subspace = _case(1, count=5)
    soft = _edited(_project(delta, subspace, strength=1e15))
    hard = linalg.spectral_filter(delta, subspace.directions, torch.zeros(subspace.rank))
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-9)


def test_strength_zero_gives_the_delta_bit_for_bit() -> None:
    delta, _, subspace = _case(2)
    for values in (delta, delta.float()):
        edit = _project(values, subspace, strength=0)
        assert torch.equal(_edited(edit), values)
        assert edit.facts["norm_ratio"] == 1.0
        assert edit.facts["rab_after"] == pytest.approx(edit.facts["rab"], rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(_SEEDS, st.floats(0, 1e4), st.floats(1, 100), st.sampled_from([8, 3]), st.sampled_from([1.0, 0.8]))
def test_energy_and_norms_fall_with_strength(
    seed: int, strength: float, more: float, stored: int, energy: float
) -> None:
    delta, moment, _ = _case(seed)
    subspace = linalg.moment_subspace(moment, 1, stored)
    weak, strong = (_project(delta, subspace, strength=value, energy=energy) for value in (strength, strength * more))
    slack = 1 + 1e-9
    assert strong.facts["rab_after"] <= weak.facts["rab_after"] * slack <= weak.facts["rab"] * slack**2
    assert strong.facts["norm_ratio"] <= weak.facts["norm_ratio"] * slack <= slack**2
    spectral = [float(torch.linalg.matrix_norm(values, 2)) for values in (_edited(strong), _edited(weak), delta)]
    assert spectral[0] <= spectral[1] * slack <= spectral[2] * slack**2


@settings(max_examples=40, deadline=None)
@given(_SEEDS, st.floats(0.01, 0.95), st.sampled_from([8, 3]))
def test_keep_leaves_the_wanted_share_of_the_activation_energy(seed: int, keep: float, stored: int) -> None:
    delta, moment, _ = _case(seed)
    subspace = linalg.moment_subspace(moment, 1, stored)
    edit = _project(delta, subspace, keep=keep)
    edited = _edited(edit)
    times = edited @ subspace.directions
    left = linalg.retention_bias(times, subspace.energies, float(edited.square().sum()), subspace.tail)
    assert left / edit.facts["rab"] == pytest.approx(keep, rel=1e-8)
    assert edit.facts["rab_after"] == pytest.approx(left, rel=1e-8)
    assert edit.facts["floor"] == 0.0
    assert edit.facts["strength"] > 0.0


def test_keep_below_the_floor_uses_the_floor_and_says_so() -> None:
    delta, _, subspace = _case(3)
    edit = _project(delta, subspace, keep=0.001, energy=0.7)
    assert edit.facts["rab_after"] / edit.facts["rab"] == pytest.approx(edit.facts["floor"], rel=1e-9)
    assert any("keep 0.001 cannot be reached" in warning for warning in edit.warnings)
    assert torch.isfinite(torch.tensor(list(edit.facts.values()))).all()


def test_at_equal_activation_energy_the_edit_costs_no_more_than_a_hard_cut() -> None:
    delta, _, subspace = _case(4)
    for rank in range(1, 8):
        factors = torch.cat([torch.zeros(rank), torch.ones(8 - rank)])
        hard = linalg.spectral_filter(delta, subspace.directions, factors)
        kept = linalg.retention_bias(hard @ subspace.directions, subspace.energies, float(hard.square().sum()), 0.0)
        edit = _project(delta, subspace, keep=kept / _project(delta, subspace, strength=0).facts["rab"])
        assert float((_edited(edit) - delta).norm()) <= float((hard - delta).norm()) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.floats(0.01, 1e3))
def test_the_tail_follows_its_isotropic_formula(seed: int, strength: float) -> None:
    delta, moment, _ = _case(seed)
    subspace = linalg.moment_subspace(moment, 1, 3)
    isotropic = (
        subspace.tail * (torch.eye(8, dtype=torch.float64) - subspace.directions @ subspace.directions.T)
        + subspace.directions @ torch.diag(subspace.energies) @ subspace.directions.T
    )
    edit = _project(delta, subspace, strength=strength)
    expected = reference.retain_energy(delta, isotropic, strength)
    torch.testing.assert_close(_edited(edit), expected, rtol=0, atol=1e-12)
    assert edit.facts["rab_after"] == pytest.approx(reference.retention_bias(expected, isotropic), rel=1e-9)
    assert edit.facts["rank"] == 3


def test_directions_outside_the_chosen_energy_are_left_alone() -> None:
    delta, _, subspace = _case(5)
    edit = _project(delta, subspace, strength=50.0, energy=0.8)
    outside = subspace.directions[:, int(edit.facts["rank"]) :]
    torch.testing.assert_close(_edited(edit) @ outside, delta @ outside, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(1, 4), st.sampled_from([{"keep": 0.1}, {"strength": 2.0}]), st.sampled_from([8, 3]))
def test_a_low_rank_delta_keeps_its_rank_and_equals_the_dense_edit(
    seed: int, rank: int, options: dict[str, float], stored: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    _, moment, _ = _case(seed)
    left = torch.randn(6, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, 8, generator=generator, dtype=torch.float64)
    subspace = linalg.moment_subspace(moment, 1, stored)
    factored, dense = (_project(delta, subspace, **options) for delta in (Factored(left, right), left @ right))
    torch.testing.assert_close(_edited(factored), _edited(dense), rtol=0, atol=1e-8)
    adapter = factored.deltas["unlearning"]
    assert isinstance(adapter, Factored)
    assert adapter.right.shape == (rank, 8)
    assert int(torch.linalg.matrix_rank(_edited(dense), rtol=1e-9)) <= rank
    for name, value in dense.facts.items():
        assert factored.facts[name] == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_a_delta_without_effect_on_the_retained_text_is_returned_as_it_is() -> None:
    subspace = linalg.rows_subspace(torch.tensor([[1.0, 0, 0], [2, 0, 0]]), 3)
    delta = torch.tensor([[0.0, 1, 2], [0, 3, 4]])
    for options in ({"keep": 0.1}, {"strength": 5.0}):
        edit = _project(delta, subspace, **options)
        assert torch.equal(_edited(edit), delta)
        assert (edit.facts["rab"], edit.facts["rab_after"], edit.facts["norm_ratio"]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("options", [{"keep": 0.1}, {"strength": 5.0}])
def test_a_geometry_without_positions_changes_nothing(options: dict[str, float]) -> None:
    delta = torch.tensor([[0.5, 1, 2]])
    edit = _project(delta, linalg.Rows(3).subspace(3), **options)
    assert torch.equal(_edited(edit), delta)
    assert (edit.facts["rank"], edit.facts["energy"]) == (0.0, 0.0)
    assert any("0 positions" in warning for warning in edit.warnings)


def test_a_zero_delta_stays_zero() -> None:
    _, _, subspace = _case(6)
    edit = _project(torch.zeros(2, 8, dtype=torch.float64), subspace, keep=0.1)
    assert not _edited(edit).any()
    assert (edit.facts["norm"], edit.facts["norm_ratio"]) == (0.0, 1.0)


def test_a_dominant_direction_and_too_few_positions_are_warned_about() -> None:
    rows = torch.eye(4)[:2] * torch.tensor([[100.0], [1.0]])
    edit = _project(torch.ones(2, 4), linalg.rows_subspace(rows, 4), strength=1.0)
    assert any("check skip_first" in warning for warning in edit.warnings)
    assert any("2 positions, fewer than the input's 4" in warning for warning in edit.warnings)


def test_a_truncated_geometry_that_lacks_the_wanted_energy_is_warned_about() -> None:
    delta, moment, _ = _case(7)
    edit = _project(delta, linalg.moment_subspace(moment, 100, 1), strength=1.0, energy=0.99)
    assert any("raise max_directions" in warning for warning in edit.warnings)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": 0.1, "strength": 1.0},
        {"keep": 0.0},
        {"keep": 1.0},
        {"keep": True},
        {"keep": "0.1"},
        {"strength": -1.0},
        {"strength": float("inf")},
        {"strength": float("nan")},
        {"keep": 0.1, "energy": 0.0},
        {"keep": 0.1, "energy": 1.1},
        {"keep": 0.1, "others": "keep"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PROJECTOR.options(geometry="retain", **options)


def test_giving_neither_or_both_of_keep_and_strength_names_both() -> None:
    for options in ({}, {"keep": 0.1, "strength": 1.0}):
        with pytest.raises(ValidationError, match="`keep` and `strength`"):
            PROJECTOR.options(geometry="retain", **options)


def test_the_projector_takes_one_delta_of_the_geometry_width() -> None:
    _, _, subspace = _case(8)
    options = PROJECTOR.options(geometry="retain", keep=0.5)
    one = Dense(torch.ones(2, 8))
    with pytest.raises(ValueError, match="one delta at a time"):
        PROJECTOR.function({"a": one, "b": one}, {"retain": subspace}, options=options)
    with pytest.raises(ValueError, match="8 wide"):
        _project(torch.ones(2, 7), subspace, keep=0.5)


def test_float32_edits_agree_with_float64() -> None:
    delta, _, subspace = _case(9, outputs=32, width=64, count=200)
    for options, stored in itertools.product(({"keep": 0.02}, {"strength": 10.0}), (64, 16)):
        cut = linalg.Subspace(
            subspace.directions[:, :stored], subspace.energies[:stored], float(subspace.energies[stored:].sum()), 200
        )
        double, single = (_edited(_project(values, cut, **options)) for values in (delta, delta.float()))
        assert single.dtype == torch.float32
        assert float((single - double).norm() / double.norm()) < 1e-5
