"""Weights in a wrong form or place: the message holds what to write instead."""

from collections.abc import Callable

import pytest

Problems = Callable[..., list[str]]

START = "into: original\ndeltas: {math: {tuned: tuned}, code: {adapter: adapter}}\n"


@pytest.mark.parametrize(
    ("given", "meant", "got"),
    [
        ("[0.5, 1]", "{math: 0.5, code: 1}", "a list"),
        ("[0.5]", "{math: 1.0, code: 1.0}", "a list"),
        ("0.5", "{math: 0.5, code: 0.5}", "a number 0.5"),
        ("'math: 1'", "{math: 1.0, code: 1.0}", "text 'math: 1'"),
    ],
)
def test_weights_that_are_no_map_are_answered_with_one(problems: Problems, given: str, meant: str, got: str) -> None:
    (found,) = problems(f"{START}weights: {given}\n")
    assert found.endswith(f"3: weights: expected a map from deltas to numbers, as in {meant}; got {got}")


@pytest.mark.parametrize("key", ["weight", "weights"])
def test_a_weight_inside_a_delta_is_pointed_to_the_top_level(problems: Problems, key: str) -> None:
    text = f"into: original\ndeltas:\n  math: {{tuned: tuned, {key}: 0.5}}\n  code: {{adapter: adapter}}\n"
    (found,) = problems(text)
    assert found.endswith(
        f"3: deltas.math.{key}: unknown key '{key}'; did you mean `weights: {{math: 0.5}}` at the top level?"
    )


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("{scale: 0.5, weight: 2}", "{math: 2, code: 2}` at the top level, or the number of the scale itself?"),
        ("{scale: 0.5, delta: code, weight: 2}", "{code: 2}` at the top level, or the number of the scale itself?"),
        (
            "{project: hard, geometry: kept, weight: 2}",
            "{math: 2, code: 2}` at the top level, or another step `scale: …`?",
        ),
        ("{project: hard, geometry: kept, weight: {code: 2}}", "`weights: {math: 1.0, code: 2}` at the top level"),
    ],
)
def test_a_weight_inside_a_step_is_pointed_to_the_top_level(problems: Problems, step: str, says: str) -> None:
    (found,) = problems(f"{START}geometry: {{kept: {{data: retain.jsonl}}}}\nsteps:\n  - {step}\n")
    assert "steps[0].weight: unknown key 'weight'; did you mean `weights: {" in found
    assert says in found
