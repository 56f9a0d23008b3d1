"""The difference of two checkpoints: exact, by parameter name, refused by name where it makes no sense."""

import pytest
import torch
from delta_fakes import Fake, fake, with_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.delta import Dense, Difference
from vecsurgery.errors import InputError

MATRIX = "model.layers.0.q.weight"
CONV = "model.layers.0.c_attn.weight"
NORM = "model.layers.0.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def weights(seed: int = 0, dtype: torch.dtype = torch.bfloat16, rows: int = 10) -> Fake:
    generator = torch.Generator().manual_seed(seed)
    shapes = {EMBEDDING: (rows, 4), MATRIX: (6, 4), CONV: (4, 12), NORM: (4,), HEAD: (rows, 4)}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    tensors["model.layers.0.count"] = torch.tensor([1, 2])
    return fake(tensors, transposed=frozenset({CONV}))


def values(source: Difference, parameter: str, rows: slice | torch.Tensor | None = None) -> torch.Tensor:
    delta = source.read(parameter, rows)
    assert isinstance(delta, Dense)
    return delta.values


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]), st.integers(0, 100))
def test_the_delta_is_the_difference_of_the_stored_tensors_in_float32_or_wider(dtype: torch.dtype, seed: int) -> None:
    base = weights(seed, dtype)
    tuned = base.moved(seed=seed)
    source = Difference("x", tuned, base, base)
    for name in (MATRIX, NORM, EMBEDDING):
        wide = torch.promote_types(dtype, torch.float32)
        assert torch.equal(values(source, name), tuned.tensors[name].to(wide) - base.tensors[name].to(wide))
    assert source.names == base.layout.order


def test_tensors_of_different_types_are_subtracted_without_rounding_either() -> None:
    base, tuned = weights(0, torch.bfloat16), weights(1, torch.float32)
    assert torch.equal(values(Difference("x", tuned, base, base), MATRIX), tuned.tensors[MATRIX] - base.tensors[MATRIX])


def test_a_matrix_stored_turned_is_seen_as_out_by_in() -> None:
    base = weights()
    source = Difference("x", base.moved(), base, base)
    whole = values(source, CONV)
    assert whole.shape == (12, 4)
    assert torch.equal(whole.T, source.tuned.read(CONV).float() - base.tensors[CONV].float())
    assert torch.equal(values(source, CONV, slice(2, 7)), whole[2:7])


def test_reading_leaves_the_checkpoints_unchanged() -> None:
    base = weights(dtype=torch.float32)
    tuned = base.moved()
    before = tuned.tensors[MATRIX].clone()
    Difference("x", tuned, base, base).read(MATRIX)
    assert torch.equal(tuned.tensors[MATRIX], before)


def test_equal_tensors_have_no_delta_and_are_known_to_be_equal() -> None:
    base = weights()
    tuned = with_tensor(base, NORM, base.tensors[NORM] + 1)
    source = Difference("x", tuned, base, base)
    assert [name for name in source.names if source.changed(name)] == [NORM]
    assert [name for name in source.names if source.read(name) is not None] == [NORM]


def test_comparison_stops_at_the_first_difference() -> None:
    base = fake({EMBEDDING: torch.zeros(3_000_000, 4)})
    tuned = with_tensor(base, EMBEDDING, torch.ones(3_000_000, 4))
    base.reads.clear()
    assert Difference("x", tuned, base, base).changed(EMBEDDING)
    assert base.reads[EMBEDDING] < 5_000_000


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 12), st.integers(6, 12), st.integers(6, 12), st.data())
def test_token_rows_that_a_model_lacks_or_that_are_masked_get_a_zero_delta(
    into_rows: int, tuned_rows: int, base_rows: int, data: st.DataObject
) -> None:
    into, tuned, base = weights(0, rows=into_rows), weights(1, rows=tuned_rows), weights(2, rows=base_rows)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=into_rows, max_size=into_rows)))
    expected = torch.zeros(into_rows, 4)
    common = min(into_rows, tuned_rows, base_rows)
    expected[:common] = tuned.tensors[EMBEDDING][:common].float() - base.tensors[EMBEDDING][:common].float()
    expected[~mask] = 0.0
    source = Difference("x", tuned, base, into, {EMBEDDING: mask})
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, into_rows - 1), min_size=1, max_size=5)))
    for rows in (None, slice(2, 5), slice(4, None), slice(0, 9, 2), chosen):
        delta = source.read(EMBEDDING, rows)
        found = torch.zeros(1) if delta is None else delta.dense()
        wanted = expected if rows is None else expected[rows]
        assert torch.equal(found.expand_as(wanted), wanted)
    assert source.changed(EMBEDDING) == bool(expected.any())


def test_shapes_that_differ_are_refused_with_both_shapes() -> None:
    base = weights()
    tuned = with_tensor(base, MATRIX, torch.zeros(6, 5))
    with pytest.raises(InputError, match=r"model\.layers\.0\.q\.weight is \(6, 5\) in tuned, \(6, 4\) in into\."):
        Difference("x", tuned, base, base)
    with pytest.raises(InputError, match=r"embed_tokens.weight is \(10, 5\)"):
        Difference("x", with_tensor(base, EMBEDDING, torch.zeros(10, 5)), base, base)
    other = with_tensor(with_tensor(base, MATRIX, torch.zeros(9, 9)), CONV, torch.zeros(3, 3))
    other = with_tensor(other, NORM, torch.zeros(7))
    with pytest.raises(
        InputError, match=r"differ in the shape of 3 tensors: .* in tuned, .* in base and into; .*; and 1"
    ):
        Difference("x", other, base, weights())
    with pytest.raises(InputError, match="has 3 entries, expected one for each of the 10 rows"):
        Difference("x", base, base, base, {EMBEDDING: torch.ones(3, dtype=torch.bool)})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["tuned", "base"])
def test_numbers_that_are_none_are_refused_with_tensor_and_checkpoint(number: float, place: str) -> None:
    base = weights()
    broken = base.tensors[MATRIX].clone()
    broken[3, 1] = number
    damaged = with_tensor(base, MATRIX, broken)
    damaged.folder = "damaged-folder"  # type: ignore[attr-defined]
    pair = (damaged, base) if place == "tuned" else (base, damaged)
    with pytest.raises(InputError, match=r"'model\.layers\.0\.q\.weight' of damaged-folder: it holds NaN or infinity"):
        Difference("x", *pair, base).read(MATRIX)


def test_integers_must_be_equal() -> None:
    base = weights()
    name = "model.layers.0.count"
    assert Difference("x", base.moved(), base, base).read(name) is None
    tuned = with_tensor(base, name, torch.tensor([1, 3]))
    with pytest.raises(InputError, match="only floating-point tensors can be subtracted"):
        Difference("x", tuned, base, base).read(name)


def test_tensors_are_matched_by_parameter_whatever_their_stored_names() -> None:
    base = weights()
    stored = {name.removeprefix("model."): tensor for name, tensor in base.moved().tensors.items()}
    names = {name.removeprefix("model."): name for name in base.tensors}
    tuned = fake(stored, transposed=frozenset({CONV.removeprefix("model.")}), parameters=names)
    source = Difference("x", tuned, base, base)
    assert source.names == base.layout.order
    assert values(source, CONV).shape == (12, 4)
    assert source.stored(MATRIX) == [(tuned, "layers.0.q.weight"), (base, MATRIX)]
    assert source.reads(MATRIX) == 2 * 6 * 4 * 2


def test_what_cannot_be_added_is_listed_with_its_reason() -> None:
    base = weights()
    into = fake({name: tensor for name, tensor in base.tensors.items() if name not in (NORM, MATRIX)})
    tuned = with_tensor(base, NORM, base.tensors[NORM] + 1)
    tuned = with_tensor(tuned, "model.layers.0.q.bias", torch.zeros(6))
    into = with_tensor(into, CONV, base.tensors[CONV])
    found = Difference("x", tuned, base, fake(into.tensors, transposed=frozenset({CONV}))).unmatched()
    assert found == {
        NORM: "it changed, but `into` has no such tensor",
        "model.layers.0.q.bias": "the base model has no such tensor",
    }


def test_the_fingerprint_depends_on_the_models_and_the_masks() -> None:
    base = weights()
    tuned = base.moved()
    mask = torch.ones(10, dtype=torch.bool)
    sources = [
        Difference("x", tuned, base, base),
        Difference("x", base, tuned, base),
        Difference("x", tuned, base, base, {EMBEDDING: mask}),
        Difference("x", tuned, base, base, {EMBEDDING: ~mask}),
    ]
    assert len({source.fingerprint for source in sources}) == 4
