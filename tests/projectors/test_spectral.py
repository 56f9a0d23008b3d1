"""spectral makes deltas orthogonal: the float64 reference, and every law under its condition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.blackbox import spectral_reference as reference
from vecsurgery.delta import Delta, Dense, Edit, Factored, cosine, inner
from vecsurgery.errors import InputError
from vecsurgery.projectors.spectral import PROJECTOR

_SEEDS = st.integers(0, 2**31)
_SHAPES = st.sampled_from([(24, 24), (36, 24), (24, 40)])
_KINDS = st.sampled_from(["random", "deficient", "near", "falling"])
_RTOLS = st.sampled_from([0.3, 1e-6])
_EXACT = {"rtol": 0.0, "atol": 1e-8}


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rotation(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(_random(seed, size, size))[0]


def _deltas(kind: str, seed: int, shape: tuple[int, int], count: int = 3) -> dict[str, Tensor]:
    """Random ones; of rank 4; nearly one and the same; with singular values over three decades."""
    found = {}
    for number, name in enumerate("abcd"[:count]):
        own = _random(seed + 1 + number, *shape)
        if kind == "deficient":
            own = _random(seed + 1 + number, shape[0], 4) @ _random(seed + 50 + number, 4, shape[1])
        elif kind == "near":
            own = _random(seed, *shape) + 0.05 * own
        elif kind == "falling":
            left, values, right = torch.linalg.svd(own, full_matrices=False)
            own = (left * torch.logspace(0, -3, len(values), dtype=torch.float64)) @ right
        found[name] = own
    return found


def _project(deltas: "dict[str, Tensor] | dict[str, Delta]", **options: object) -> Edit:
    wrapped = {name: Dense(each) if isinstance(each, Tensor) else each for name, each in deltas.items()}
    return PROJECTOR.function(wrapped, {}, options=PROJECTOR.options(**options))


def _slots(edit: Edit) -> dict[str, Tensor]:
    return {name: each.dense() for name, each in edit.deltas.items()}


def _require_equal(
    found: dict[str, Tensor], expected: dict[str, Tensor], scale: float = 1.0, within: float = 1e-7
) -> None:
    assert list(found) == list(expected)
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=0, atol=within * scale * float(each.norm()))


def _uncut(edit: Edit) -> bool:
    return edit.facts["cut_outputs"] == edit.facts["cut_inputs"] == 0.0


@settings(max_examples=25, deadline=None)
@given(_SEEDS, _SHAPES, _KINDS, _RTOLS, st.sampled_from(["own", "mean", "one"]))
def test_slots_equal_those_of_float64_decompositions(
    seed: int, shape: tuple[int, int], kind: str, rtol: float, spectrum: str
) -> None:
    deltas = _deltas(kind, seed, shape)
    edit = _project(deltas, rtol=rtol, spectrum=spectrum)
    _require_equal(_slots(edit), reference.spectral(deltas, rtol=rtol, spectrum=spectrum))
    single = _project({name: each.float() for name, each in deltas.items()}, rtol=rtol, spectrum=spectrum)
    for name, each in edit.deltas.items():
        assert single.deltas[name].dense().dtype == torch.float32
        if edit.facts["cut_outputs"] == single.facts["cut_outputs"]:
            close = 1e-3 if rtol < 1e-3 else 1e-4
            assert float((single.deltas[name].dense() - each.dense()).norm()) <= close * float(each.dense().norm())


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 1e-5])
def test_single_precision_deltas_that_nearly_agree_are_torn_apart_as_in_double_precision(eps: float) -> None:
    common = _random(0, 60, 40)
    single = {name: (common + eps * _random(seed, 60, 40)).float() for seed, name in enumerate("ab", 1)}
    edit = _project(single, rtol=1e-7)
    expected = reference.spectral(single, rtol=1e-7)
    assert _uncut(edit)
    for name, each in edit.deltas.items():
        assert each.dense().dtype == torch.float32
        error = float((each.dense().double() - expected[name]).norm() / expected[name].norm())
        assert error <= 3e-7 + 2e-14 / eps**2  # squaring the stack costs the second term


@settings(max_examples=20, deadline=None)
@given(_SEEDS, _SHAPES, st.sampled_from(["random", "deficient", "falling"]))
def test_without_a_cut_slots_keep_their_spectra_and_are_orthogonal(
    seed: int, shape: tuple[int, int], kind: str
) -> None:
    deltas = _deltas(kind, seed, shape)
    edit = _project(deltas, preset="tsv_m")
    assert _uncut(edit)
    slots = _slots(edit)
    for name, each in deltas.items():
        rank = int(edit.own[name]["rank"])
        assert rank == (4 if kind == "deficient" else 8)
        values = torch.linalg.svdvals(each)[:rank]
        found = torch.linalg.svdvals(slots[name])
        torch.testing.assert_close(found[:rank], values, rtol=1e-7, atol=1e-9)
        assert float(found[rank:].norm()) <= 1e-9 * float(values[0])
        for other in slots.keys() - {name}:
            scale = float(slots[name].norm() * slots[other].norm())
            for product in (slots[name].T @ slots[other], slots[name] @ slots[other].T):
                assert float(product.norm()) <= 1e-7 * scale
    assert edit.facts["interference"] == pytest.approx(reference.interference(deltas, rank), rel=1e-6)
    assert edit.facts["interference_after"] <= 1e-6 * edit.facts["interference"]


@settings(max_examples=20, deadline=None)
@given(_SEEDS, _SHAPES, _KINDS, _RTOLS)
def test_single_precision_is_enough_for_orthonormal_slots(
    seed: int, shape: tuple[int, int], kind: str, rtol: float
) -> None:
    """Also where something was cut: the overlaps are then those of an orthogonal projector of the told rank."""
    deltas = {name: each.float() for name, each in _deltas(kind, seed, shape).items()}
    edit = _project(deltas, rtol=rtol, spectrum="one")
    left = torch.cat([each.left for each in edit.deltas.values() if isinstance(each, Factored)], dim=1).double()
    projector = left.T @ left
    rank = (1 - edit.facts["cut_outputs"]) * len(projector)
    assert float(projector.trace()) == pytest.approx(rank, abs=1e-4)
    assert float((projector @ projector - projector).abs().max()) <= 1e-5
    if _uncut(edit):
        assert edit.facts["interference_after"] <= 1e-6 * edit.facts["interference"]


@settings(max_examples=15, deadline=None)
@given(_SEEDS, _SHAPES, _KINDS, _RTOLS, st.permutations("abc"))
def test_the_order_of_the_deltas_does_not_matter(
    seed: int, shape: tuple[int, int], kind: str, rtol: float, order: list[str]
) -> None:
    deltas = _deltas(kind, seed, shape)
    plain, moved = (_slots(_project(each, rtol=rtol)) for each in (deltas, {name: deltas[name] for name in order}))
    _require_equal({name: moved[name] for name in deltas}, plain)


@settings(max_examples=15, deadline=None)
@given(_SEEDS, _SHAPES, _KINDS, _RTOLS)
def test_rotations_and_transposition_pass_through(seed: int, shape: tuple[int, int], kind: str, rtol: float) -> None:
    deltas = _deltas(kind, seed, shape)
    plain = _slots(_project(deltas, rtol=rtol))
    turn, spin = _rotation(seed + 7, shape[0]), _rotation(seed + 8, shape[1])
    rotated = _project({name: turn @ each @ spin for name, each in deltas.items()}, rtol=rtol)
    _require_equal(_slots(rotated), {name: turn @ each @ spin for name, each in plain.items()})
    turned = _project({name: each.T for name, each in deltas.items()}, rtol=rtol)
    _require_equal({name: each.T for name, each in _slots(turned).items()}, plain)


@settings(max_examples=15, deadline=None)
@given(_SEEDS, _SHAPES, _KINDS, _RTOLS, st.sampled_from([-1.0, 3.0, -0.01]))
def test_scaling_or_negating_one_delta_changes_its_slot_alone(
    seed: int, shape: tuple[int, int], kind: str, rtol: float, factor: float
) -> None:
    deltas = _deltas(kind, seed, shape)
    plain = _slots(_project(deltas, rtol=rtol))
    changed = _slots(_project(deltas | {"b": factor * deltas["b"]}, rtol=rtol))
    _require_equal(changed, plain | {"b": factor * plain["b"]})


@settings(max_examples=10, deadline=None)
@given(_SEEDS, _SHAPES, _KINDS, _RTOLS)
def test_a_lone_delta_is_cut_to_its_rank_or_comes_back_as_it_is(
    seed: int, shape: tuple[int, int], kind: str, rtol: float
) -> None:
    deltas = _deltas(kind, seed, shape, count=1)
    left, values, right = torch.linalg.svd(deltas["a"], full_matrices=False)
    edit = _project(deltas, rtol=rtol, rank=5)
    _require_equal(_slots(edit), {"a": (left[:, :5] * values[:5]) @ right[:5]})
    assert _project(deltas, rtol=rtol).deltas["a"].dense() is deltas["a"]
    isotropic = _slots(_project(deltas, rtol=rtol, rank=5, spectrum="mean"))["a"]
    rank = int(edit.own["a"]["rank"])
    torch.testing.assert_close(torch.linalg.svdvals(isotropic)[:rank], values[:rank].mean().expand(rank))


@settings(max_examples=10, deadline=None)
@given(_SEEDS, _RTOLS)
def test_deltas_that_are_orthogonal_already_pass_unchanged(seed: int, rtol: float) -> None:
    turn, spin = _rotation(seed, 24), _rotation(seed + 1, 30)
    deltas = {}
    for number, name in enumerate("abc"):
        values = _random(seed + 2 + number, 6).abs() + 0.1
        place = slice(6 * number, 6 * number + 6)
        deltas[name] = (turn[:, place] * values) @ spin[:, place].T
    _require_equal(_slots(_project(deltas, rtol=rtol)), deltas)


@settings(max_examples=10, deadline=None)
@given(_SEEDS, st.integers(2, 4), _RTOLS)
def test_copies_of_one_delta_share_it_evenly(seed: int, count: int, rtol: float) -> None:
    matrix = _random(seed, 30, 6) @ _random(seed + 1, 6, 24)
    edit = _project(dict.fromkeys("abcd"[:count], matrix), rtol=rtol)
    _require_equal(_slots(edit), dict.fromkeys("abcd"[:count], matrix / count))
    assert edit.facts["cut_outputs"] == pytest.approx(1 - 1 / count)
    assert bool(edit.warnings) == (count > 2)
    assert all("were cut" in text for text in edit.warnings)


@settings(max_examples=15, deadline=None)
@given(_SEEDS, _SHAPES, st.integers(1, 6), _RTOLS, st.sampled_from([torch.float32, torch.float64]))
def test_adapters_equal_their_dense_deltas_and_stay_factored(
    seed: int, shape: tuple[int, int], rank: int, rtol: float, dtype: torch.dtype
) -> None:
    pairs = {
        name: (_random(seed + number, shape[0], rank), _random(seed + 9 + number, rank, shape[1]))
        for number, name in enumerate("abc")
    }
    factored = {name: Factored(left.to(dtype), right.to(dtype)) for name, (left, right) in pairs.items()}
    dense = _project({name: (left.to(dtype) @ right.to(dtype)) for name, (left, right) in pairs.items()}, rtol=rtol)
    edit = _project(factored, rtol=rtol)
    assert all(isinstance(each, Factored) and each.left.dtype == dtype for each in edit.deltas.values())
    assert {name: own["rank"] for name, own in edit.own.items()} == dict.fromkeys("abc", rank)
    cut_alike = all(edit.facts[side] == dense.facts[side] for side in ("cut_outputs", "cut_inputs"))
    assert cut_alike or dtype == torch.float32  # at the threshold rounding may decide
    if cut_alike:
        _require_equal(_slots(edit), _slots(dense), within=1e-7 if dtype == torch.float64 else 2e-3)


def test_an_adapter_and_a_dense_delta_can_be_made_orthogonal() -> None:
    deltas = _deltas("deficient", 0, (24, 30), count=2)
    left, right = _random(5, 24, 3), _random(6, 3, 30)
    plain = _slots(_project({**deltas, "c": left @ right}))
    mixed = _project({**{name: Dense(each) for name, each in deltas.items()}, "c": Factored(left, right)})
    _require_equal(_slots(mixed), plain)


def test_figures_of_each_delta_are_those_of_its_slot() -> None:
    deltas = _deltas("near", 3, (24, 30))
    edit = _project(deltas)
    assert not _uncut(edit)
    assert list(edit.own) == list(deltas)
    for name, each in deltas.items():
        own = edit.own[name]
        assert own["norm"] == pytest.approx(float(each.norm()))
        assert own["norm_ratio"] == pytest.approx(float(edit.deltas[name].dense().norm() / each.norm()))
        values = torch.linalg.svdvals(each)
        assert own["kept_energy"] == pytest.approx(float(values[:8].square().sum() / values.square().sum()))


def test_directions_below_the_noise_of_the_storage_type_do_not_count() -> None:
    """A change of rank 2 under rounding errors of a known deviation; a delta that is all noise is left empty."""
    noise = 0.01
    change = 0.5 * _random(0, 60, 2) @ _random(1, 2, 90)
    noisy = {
        "a": Dense(change + noise * _random(2, 60, 90), noise),
        "b": Dense(change.flip(0) + noise * _random(3, 60, 90), noise),
        "c": Dense(0.9 * noise * _random(4, 60, 90), noise),
    }
    edit = _project(noisy)
    assert [edit.own[name]["rank"] for name in "abc"] == [2.0, 2.0, 0.0]
    floor = noise * (60**0.5 + 90**0.5)
    assert edit.own["a"]["noise_floor"] == pytest.approx(floor)
    expected = reference.spectral({name: each.values for name, each in noisy.items()}, rtol=0.3, floors=[floor] * 3)
    _require_equal(_slots(edit), expected)
    assert not edit.deltas["c"].dense().any()
    assert [text for text in edit.warnings if "c stands above" in text]
    assert [each.scaled(-2.0).noise for each in noisy.values()] == [2 * noise] * 3


def test_a_weight_without_conflict_passes_unchanged() -> None:
    common = _random(0, 12, 16)
    alike = {"a": common, "b": common + 0.1 * _random(1, 12, 16)}
    edit = _project(alike, conflict_below=0.5)
    assert all(edit.deltas[name].dense() is each for name, each in alike.items())
    assert (edit.facts["orthogonalised"], edit.own["a"]["norm_ratio"]) == (0.0, 1.0)
    cosine = float((alike["a"] * alike["b"]).sum() / (alike["a"].norm() * alike["b"].norm()))
    assert edit.facts["least_cosine"] == pytest.approx(cosine)
    opposed = alike | {"c": -common}
    assert _project(opposed, conflict_below=0.5).facts["orthogonalised"] == 1.0
    _require_equal(_slots(_project(opposed, conflict_below=0.5)), _slots(_project(opposed)))
    assert _project({"a": common}, conflict_below=1.0).facts["orthogonalised"] == 0.0


def test_the_inner_product_of_factored_deltas_needs_no_product() -> None:
    first, second = (Factored(_random(seed, 7, 2), _random(seed + 1, 2, 9)) for seed in (0, 5))
    expected = float((first.dense() * second.dense()).sum())
    for one in (first, Dense(first.dense())):
        for other in (second, Dense(second.dense())):
            assert inner(one, other) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e22])
def test_the_cosine_of_deltas_does_not_depend_on_their_unit(scale: float) -> None:
    first, second = _random(0, 12, 16), _random(1, 12, 16)
    expected = float((first * second).sum() / (first.norm() * second.norm()))
    one, other = (Dense((scale * each).float()) for each in (first, second))
    assert cosine(one, other) == pytest.approx(expected, rel=1e-5)
    assert cosine(one, Dense(one.values.clone())) == 1.0
    assert cosine(one, Dense(torch.zeros(12, 16))) == 0.0
    factored = Factored(one.values, torch.eye(16))
    assert cosine(factored, other) == pytest.approx(expected, rel=1e-5)
    assert _project({"a": one, "b": other}, conflict_below=0.9).facts["least_cosine"] == pytest.approx(expected, 1e-5)


def test_slots_are_factored_where_that_takes_less_memory() -> None:
    deltas = _deltas("random", 0, (24, 24), count=2)
    assert all(isinstance(each, Factored) for each in _project(deltas).deltas.values())
    assert isinstance(_project({"a": deltas["a"]}, rank=20).deltas["a"], Dense)


@pytest.mark.parametrize(
    ("options", "count", "told"),
    [
        ({"rank": 13}, 2, "keep 26 singular directions together .a 13, b 13.*room for 24.*rank: 12 or less"),
        ({"rank": 7}, 4, "rank: 6 or less in place of 7"),
    ],
)
def test_more_directions_than_a_matrix_has_are_refused(options: dict[str, int], count: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        _project(_deltas("random", 0, (40, 24), count=count), **options)


def test_more_deltas_than_dimensions_are_refused() -> None:
    with pytest.raises(InputError, match="3 deltas reach a matrix of shape"):
        _project({name: _random(number, 2, 9) for number, name in enumerate("abc")})


def test_low_rank_deltas_may_ask_for_more_than_they_have() -> None:
    edit = _project(_deltas("deficient", 0, (24, 30)), rank=20)
    assert [own["rank"] for own in edit.own.values()] == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"rank": 2.5},
        {"rank": "all"},
        {"rtol": 0.0},
        {"rtol": 1.0},
        {"preset": "x"},
        {"spectrum": "two"},
        {"conflict_below": 1.5},
        {"geometry": "g"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PROJECTOR.options(**options)
    assert (PROJECTOR.options().cut, PROJECTOR.options(preset="tsv_m").cut) == (0.3, 1e-6)


def test_costs_grow_with_deltas_and_vanish_for_a_lone_one() -> None:
    assert PROJECTOR.cost is not None
    usual, small = PROJECTOR.options(), PROJECTOR.options(rank=64)
    asked = [([None], usual), ([None, None], usual), ([None, None], small), ([None, 16], usual)]
    alone, two, few, mixed = (PROJECTOR.cost((2048, 4096), ranks, options) for ranks, options in asked)
    assert (alone.flops, alone.memory) == (0, 0)
    assert few.flops < two.flops
    assert few.memory < two.memory
    assert mixed.flops < two.flops


@pytest.mark.parametrize(("shape", "rank", "count"), [((300, 200), 8, 3), ((64, 48), 4, 2), ((200, 260), 16, 8)])
def test_the_cost_of_factors_is_that_of_the_products_that_are_taken(
    shape: tuple[int, int], rank: int, count: int
) -> None:
    deltas: dict[str, Delta] = {
        str(number): Factored(_random(number, shape[0], rank), _random(count + number, rank, shape[1]))
        for number in range(count)
    }
    with FlopCounterMode(display=False) as counted:
        PROJECTOR.function(deltas, {}, options=PROJECTOR.options())
    assert PROJECTOR.cost is not None
    planned, dense = (PROJECTOR.cost(shape, [each] * count, PROJECTOR.options()) for each in (rank, None))
    assert counted.get_total_flops() <= planned.flops < 2 * counted.get_total_flops()  # decompositions are not counted
    assert planned.memory < dense.memory
