"""Coefficient files keep every digit, and nothing that was not written by this package is taken for one."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.errors import InputError
from vecsurgery.fits import Coefficients, CurvePoint

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
EXAMPLE = Coefficients(
    step="amplify",
    method="amplify",
    delta="unlearning",
    tensors={"model.layers.0.mlp.up_proj.weight": 1.7, "b": 1.7},
    facts={"target": 3.25},
    curve=(CurvePoint(1.0, 2.0, 2.5, 0.1),),
    warnings=("never met",),
)


@given(numbers=st.dictionaries(st.text(), NUMBERS, max_size=4), point=st.tuples(*[NUMBERS] * 4))
@settings(max_examples=25, deadline=None)
def test_coefficients_are_read_back_exactly(numbers: dict[str, float], point: tuple[float, ...]) -> None:
    written = Coefficients("s", "amplify", "d", numbers, numbers, (CurvePoint(*point),), ("w",))
    text = written.to_json()
    assert Coefficients.from_json(text, where="f") == written
    assert Coefficients.from_json(text, where="f").to_json() == text


def test_the_text_does_not_depend_on_the_order_of_the_tensors() -> None:
    turned = Coefficients(**{**vars(EXAMPLE), "tensors": dict(reversed(EXAMPLE.tensors.items()))})
    assert turned.to_json() == EXAMPLE.to_json()


def test_a_number_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Coefficients("s", "m", "d", {"a": float("nan")}, {}, ()).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1, this release reads version 2"),
        ({"step": 3}, "step is 3, expected text"),
        ({"tensors": {"a": "1.5"}}, "tensors.a is '1.5', expected a finite number"),
        ({"tensors": [1.5]}, "tensors is .* expected a map"),
        ({"facts": {"a": True}}, "facts.a is True"),
        ({"curve": [{"factor": 1.0}]}, r"curve\[0\] has the entries \['factor'\]"),
        ({"curve": None}, "curve is None, expected a list"),
        ({"extra": 1}, "'extra'"),
    ],
)
def test_a_changed_coefficient_file_is_refused_by_the_entry(change: dict[str, Any], message: str) -> None:
    content = {**json.loads(EXAMPLE.to_json()), **change}
    with pytest.raises(InputError, match=f"out/amplify.coefficients.json: .*{message}"):
        Coefficients.from_json(json.dumps(content), where="out/amplify.coefficients.json")


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1', "[" * 100_000, EXAMPLE.to_json().replace("1.7", "NaN")])
def test_what_is_no_coefficient_file_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="reading coefficients from f: "):
        Coefficients.from_json(text, where="f")
