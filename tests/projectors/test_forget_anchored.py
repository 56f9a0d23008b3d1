"""retain_energy with `forget` solves its problem: equal to D F (F + λC)⁻¹, at its target, and kinder to forgetting."""

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
from vecsurgery.projectors import _anchored
from vecsurgery.projectors.retain_energy import PROJECTOR

_SEEDS = st.integers(0, 2**31)
_COUNTS = st.sampled_from([5, 40])
_STORED = st.sampled_from([(8, 8), (8, 3), (2, 8), (2, 3), (3, 3)])
_WIDTH = 8


def _moment(seed: int, count: int, width: int = _WIDTH) -> Tensor:
    """C = XᵀX/n of inputs whose energies fall along a basis of their own, float64."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, width + 1, dtype=torch.float64) ** -1.0
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    return reference.second_moment(torch.randn(count, width, generator=generator, dtype=torch.float64) * scales @ turn)


def _stored(moment: Tensor, stored: int) -> tuple[Tensor, linalg.Subspace]:
    """The subspace with so many directions, and the moment that it stands for."""
    subspace = linalg.moment_subspace(moment, 1, stored)
    directions = subspace.directions
    isotropic = torch.eye(len(moment), dtype=torch.float64) - directions @ directions.T
    return directions @ torch.diag(subspace.energies) @ directions.T + subspace.tail * isotropic, subspace


def _delta(seed: int, outputs: int = 5, width: int = _WIDTH) -> Tensor:
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _project(delta: Tensor | Delta, retain: linalg.Subspace, forget: linalg.Subspace | None, **options: object) -> Edit:
    wrapped = Dense(delta) if isinstance(delta, Tensor) else delta
    geometry = {"retain": retain}
    if forget is not None:
        geometry["forget"] = forget
        options["forget"] = "forget"
    return PROJECTOR.function(
        {"unlearning": wrapped}, geometry, options=PROJECTOR.options(geometry="retain", **options)
    )


def _edited(edit: Edit) -> Tensor:
    return edit.deltas["unlearning"].dense()


@settings(max_examples=80, deadline=None)
@given(_SEEDS, _COUNTS, _COUNTS, _STORED, st.floats(1e-3, 1e3))
def test_the_edit_is_the_closed_form(
    seed: int, forget_count: int, retain_count: int, stored: tuple[int, int], strength: float
) -> None:
    anchor, forget = _stored(_moment(seed, forget_count), stored[0])
    penalty, retain = _stored(_moment(seed + 1, retain_count), stored[1])
    delta = _delta(seed)
    edit = _project(delta, retain, forget, strength=strength)
    expected = reference.forget_anchored(delta, anchor, penalty, strength)
    torch.testing.assert_close(_edited(edit), expected, rtol=0, atol=1e-6)
    assert edit.facts["rab"] == pytest.approx(reference.retention_bias(delta, penalty), rel=1e-9)
    assert edit.facts["rab_after"] == pytest.approx(reference.retention_bias(expected, penalty), rel=1e-5, abs=1e-9)
    assert edit.facts["norm_ratio"] == pytest.approx(float(expected.norm() / delta.norm()), rel=1e-6)
    held = reference.retention_bias(expected, anchor) / reference.retention_bias(delta, anchor)
    assert edit.facts["forget_kept"] == pytest.approx(held, rel=1e-3, abs=1e-6)
    leak = float((_edited(edit) @ retain.directions[:, : int(edit.facts["rank"])]).norm() / _edited(edit).norm())
    assert edit.facts["leak"] == pytest.approx(leak, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(_SEEDS, _COUNTS, _COUNTS, _STORED, st.floats(0.01, 0.95))
def test_keep_leaves_the_wanted_share_of_the_activation_energy(
    seed: int, forget_count: int, retain_count: int, stored: tuple[int, int], keep: float
) -> None:
    _, forget = _stored(_moment(seed, forget_count), stored[0])
    penalty, retain = _stored(_moment(seed + 1, retain_count), stored[1])
    delta = _delta(seed)
    edit = _project(delta, retain, forget, keep=keep)
    share = reference.retention_bias(_edited(edit), penalty) / reference.retention_bias(delta, penalty)
    assert share == pytest.approx(keep, rel=1e-6)
    assert edit.facts["rab_after"] / edit.facts["rab"] == pytest.approx(keep, rel=1e-6)
    assert edit.facts["strength"] > 0.0


@settings(max_examples=40, deadline=None)
@given(_SEEDS, _COUNTS, _STORED, st.floats(0.02, 0.9))
def test_at_equal_activation_energy_no_less_of_the_forgetting_is_kept_than_without_forget(
    seed: int, forget_count: int, stored: tuple[int, int], keep: float
) -> None:
    """By the problem's own measure, tr[(E − D) F (E − D)ᵀ]."""
    anchor, forget = _stored(_moment(seed, forget_count), stored[0])
    anchor = anchor * (_WIDTH / anchor.trace()) + 1e-6 * torch.eye(_WIDTH, dtype=torch.float64)
    _, retain = _stored(_moment(seed + 1, 40), stored[1])
    delta = _delta(seed)
    lost = [
        reference.retention_bias(_edited(_project(delta, retain, each, keep=keep)) - delta, anchor)
        for each in (forget, None)
    ]
    assert lost[0] <= lost[1] * (1 + 1e-6)


@settings(max_examples=20, deadline=None)
@given(_SEEDS, _STORED, st.floats(0, 1e4), st.floats(1, 100))
def test_energy_on_both_texts_falls_with_strength(
    seed: int, stored: tuple[int, int], strength: float, more: float
) -> None:
    _, forget = _stored(_moment(seed, 40), stored[0])
    _, retain = _stored(_moment(seed + 1, 40), stored[1])
    weak, strong = (_project(_delta(seed), retain, forget, strength=each) for each in (strength, strength * more))
    slack = 1 + 1e-6
    assert strong.facts["rab_after"] <= weak.facts["rab_after"] * slack <= weak.facts["rab"] * slack**2
    assert strong.facts["forget_kept"] <= weak.facts["forget_kept"] * slack <= slack**2


def test_strength_zero_gives_the_delta_bit_for_bit() -> None:
    _, forget = _stored(_moment(1, 40), 3)
    _, retain = _stored(_moment(2, 40), 3)
    for values in (_delta(1), _delta(1).float()):
        edit = _project(values, retain, forget, strength=0)
        assert torch.equal(_edited(edit), values)
        assert (edit.facts["norm_ratio"], edit.facts["forget_kept"], edit.facts["strength"]) == (1.0, 1.0, 0.0)
        assert edit.facts["rab_after"] == pytest.approx(edit.facts["rab"], rel=1e-12)


def test_infinite_strength_removes_the_retained_directions_at_the_least_cost_to_forgetting() -> None:
    anchor, forget = _stored(_moment(3, 40), 8)
    retain = linalg.rows_subspace(torch.randn(3, 8, generator=torch.Generator().manual_seed(4)).double(), 8)
    delta, protected = _delta(3), retain.directions
    edited = _edited(_project(delta, retain, forget, strength=1e12))
    torch.testing.assert_close(edited @ protected, torch.zeros(5, 3, dtype=torch.float64), rtol=0, atol=1e-9)
    metric = anchor * (8 / anchor.trace()) + 1e-6 * torch.eye(8, dtype=torch.float64)
    inverse = torch.linalg.inv(metric)
    middle = torch.linalg.inv(protected.T @ inverse @ protected)
    expected = delta - delta @ protected @ middle @ protected.T @ inverse
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-8)


def test_infinite_strength_leaves_nothing_where_retained_text_is_everywhere() -> None:
    _, forget = _stored(_moment(5, 40), 3)
    _, retain = _stored(_moment(6, 40), 4)
    assert float(_edited(_project(_delta(5), retain, forget, strength=1e12)).norm()) < 1e-9


@pytest.mark.parametrize("stored", [8, 3])
@pytest.mark.parametrize("options", [{"strength": 3.0}, {"keep": 0.05}])
def test_forgotten_text_without_preference_gives_the_form_without_forget(
    options: dict[str, float], stored: int
) -> None:
    isotropic = linalg.Subspace(torch.eye(8, dtype=torch.float64), torch.full((8,), 2.0).double(), 0.0, 100)
    _, retain = _stored(_moment(7, 40), stored)
    delta = _delta(7)
    anchored, alone = (_project(delta, retain, forget, **options) for forget in (isotropic, None))
    torch.testing.assert_close(_edited(anchored), _edited(alone), rtol=0, atol=1e-5)
    for name, value in alone.facts.items():
        assert anchored.facts[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(1, 4), st.sampled_from([{"keep": 0.1}, {"strength": 2.0}]), _STORED)
def test_a_low_rank_delta_keeps_its_rank_and_equals_the_dense_edit(
    seed: int, rank: int, options: dict[str, float], stored: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    _, forget = _stored(_moment(seed, 40), stored[0])
    _, retain = _stored(_moment(seed + 1, 40), stored[1])
    left = torch.randn(6, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, 8, generator=generator, dtype=torch.float64)
    factored, dense = (_project(delta, retain, forget, **options) for delta in (Factored(left, right), left @ right))
    torch.testing.assert_close(_edited(factored), _edited(dense), rtol=0, atol=1e-8)
    adapter = factored.deltas["unlearning"]
    assert isinstance(adapter, Factored)
    assert torch.equal(adapter.left, left)
    assert adapter.right.shape == (rank, 8)
    for name, value in dense.facts.items():
        assert factored.facts[name] == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_float32_edits_agree_with_float64_also_where_both_geometries_lack_directions() -> None:
    delta = _delta(8, 32, 64)
    for counts, stored in (((20, 300), (64, 64)), ((20, 15), (64, 64)), ((300, 300), (20, 10)), ((20, 300), (64, 10))):
        forget, retain = (
            linalg.moment_subspace(_moment(seed, count, 64), count, keep)
            for seed, count, keep in zip((8, 9), counts, stored, strict=True)
        )
        double = _project(delta, retain, forget, keep=0.02)
        singles = [
            linalg.Subspace(each.directions.float(), each.energies, each.rest, each.count) for each in (retain, forget)
        ]
        single = _project(delta.float(), *singles, keep=0.02)
        assert _edited(single).dtype == torch.float32
        assert float((_edited(single) - _edited(double)).norm() / _edited(double).norm()) < 1e-5


def test_a_delta_without_effect_on_the_retained_text_is_returned_as_it_is() -> None:
    retain = linalg.rows_subspace(torch.tensor([[1.0, 0, 0], [2, 0, 0]]), 3)
    forget = linalg.rows_subspace(torch.tensor([[1.0, 1, 0], [0, 0, 1]]), 3)
    delta = torch.tensor([[0.0, 1, 2], [0, 3, 4]])
    edit = _project(delta, retain, forget, keep=0.1)
    assert torch.equal(_edited(edit), delta)
    assert (edit.facts["rab"], edit.facts["norm_ratio"], edit.facts["forget_kept"]) == (0.0, 1.0, 1.0)


def test_a_forget_geometry_without_energy_falls_back_with_a_warning() -> None:
    _, retain = _stored(_moment(10, 40), 8)
    empty = linalg.Rows(8).subspace(8)
    edit = _project(_delta(10), retain, empty, keep=0.1)
    assert torch.equal(_edited(edit), _edited(_project(_delta(10), retain, None, keep=0.1)))
    assert any("forget geometry carries no energy" in warning for warning in edit.warnings)


def test_an_edit_that_enlarges_the_delta_says_so() -> None:
    """Forgotten text that ties a retained direction to a free one: the free one must carry both."""
    forget = linalg.rows_subspace(torch.tensor([[1.0, 0.2]]).double(), 2)
    retain = linalg.rows_subspace(torch.tensor([[1.0, 0.0]]).double(), 2)
    edit = _project(torch.tensor([[1.0, 0.0]]).double(), retain, forget, strength=1.0)
    assert edit.facts["norm_ratio"] > 4.0
    assert any("larger than the raw one" in warning for warning in edit.warnings)


def test_matrices_of_one_site_share_the_joint_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = linalg.Anchored.of
    monkeypatch.setattr(linalg.Anchored, "of", lambda *sites: calls.append(sites) or original(*sites))
    _, forget = _stored(_moment(11, 40), 3)
    retains = [_stored(_moment(seed, 40), 3)[1] for seed in (12, 13)]
    for retain in (retains[0], retains[1], retains[0], retains[0]):
        _project(_delta(11), retain, forget, keep=0.1)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("options", "message"), [({"energy": 0.9}, "cannot be combined with `forget`"), ({"forget": "retain"}, "both name")]
)
def test_options_that_do_not_go_with_forget_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PROJECTOR.options(**{"geometry": "retain", "forget": "forget", "keep": 0.1, **options})


def test_more_joint_directions_than_can_be_decomposed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_anchored, "_MOST", 7)
    _, four = _stored(_moment(1, 40), 4)
    _, three = _stored(_moment(2, 40), 3)
    _project(_delta(3), four, three, keep=0.5)
    with pytest.raises(InputError, match=r"4 and 4 of \d+ directions, 8 together.*at most 7.*max_directions"):
        _project(_delta(3), four, _stored(_moment(2, 40), 4)[1], keep=0.5)
