"""Deltas that are nearly one and the same are told of once for each step."""

from typing import Any

import pytest

from tests.report.example import record
from vecsurgery import report
from vecsurgery.report import alike


def _record(steps: list[dict[str, Any]], *cosines: float) -> Any:
    """A matrix for each cosine, with these steps in each."""
    example: Any = record()
    example["matrices"] = [
        {
            **example["matrices"][0],
            "tensor": f"{number}.weight",
            "steps": [{**step, "facts": {**step["facts"], "cosine_largest": cosine}} for step in steps],
        }
        for number, cosine in enumerate(cosines)
    ]
    return example


def _step(delta: str, name: str = "apart", method: str = "spectral") -> dict[str, Any]:
    return {"step": name, "method": method, "delta": delta, "facts": {"norm": 1.0, "norm_ratio": 1.0}, "warnings": []}


def test_two_deltas_are_named_with_the_matrices_that_they_share() -> None:
    found = _record([_step("math"), _step("code")], 0.2, 0.9995, 1.0)
    (told,) = alike.warnings(found)
    assert told.startswith(
        "apart: the deltas math and code are nearly the same in 2 of 3 matrices (cosine up to 1.0000)"
    )
    assert told in report.warnings(found)


def test_a_merge_names_what_it_merged() -> None:
    found = _record([_step("skills", "ties", "ties")], 0.9991)
    found["merges"] = [
        {"step": "ties", "method": "ties", "deltas": ["a", "b", "c"], "delta": "skills", "tensors": 1, "facts": {}}
    ]
    (told,) = alike.warnings(found)
    assert told.startswith("ties: two of the deltas a, b and c are nearly the same in 1 of 1 matrices")


@pytest.mark.parametrize("cosine", [-1.0, 0.0, 0.998])
def test_others_are_not_told_of(cosine: float) -> None:
    assert alike.warnings(_record([_step("math"), _step("code")], cosine)) == []
    assert alike.warnings(record()) == []
