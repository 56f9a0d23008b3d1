"""Merges stand in one table of the report, with their weights and how alike the deltas were; not among the steps."""

from typing import Any

import pytest

from tests.report.example import matrix, record
from vecsurgery import report

CELLS = ("merge", "ties", "math × 0.5, code", "skills", "1,234", "5", "-0.2 to 0.7")


def _merged(**changes: Any) -> Any:
    """Two matrices that one merge made; no geometry unless `changes` give one."""
    matrices = []
    for layer, norm in ((0, 3.0), (1, 4.0)):
        facts = {"merged": 2.0, "merged_norm": norm, "cosine_least": 0.7, "cosine_largest": 0.7}
        step = {"step": "merge", "method": "ties", "delta": "skills", "geometry": None, "facts": facts, "warnings": []}
        matrices.append({**matrix(layer, "q", 1.0, 1.0, 1.0), "steps": [step], "stored": {}})
    merge = {
        "step": "merge",
        "method": "ties",
        "deltas": ["math", "code"],
        "delta": "skills",
        "weights": {"math": 0.5},
        "tensors": 1234,
        "facts": {"merged_norm": 5.0, "cosine_least": -0.2, "cosine_largest": 0.7},
    }
    return record() | {"geometry": {}, "matrices": matrices, "merges": [merge]} | changes


def test_a_merge_is_a_row_of_its_table_and_no_step_of_the_other() -> None:
    shown, page = report.text(_merged()), report.html(_merged())
    (row,) = [line for line in shown.splitlines() if line.startswith("merge ")]
    assert all(cell in row for cell in CELLS)
    assert all(f">{cell}</td>" in page for cell in CELLS)
    assert "No step touched a matrix" not in shown + page
    assert "norm kept" not in shown


def test_the_settings_of_a_merge_stand_beside_it() -> None:
    steps = "steps:\n- {merge: ties, id: merge, as: skills, density: 0.3}\n"
    changed = _merged(recipe=f"into: org/original\n{steps}")
    assert "density 0.3" in report.text(changed)
    assert "density 0.3" in report.html(changed)


@pytest.mark.parametrize("count", [1, 2])
def test_the_largest_merged_matrices_are_named_where_no_bias_was_measured(count: int) -> None:
    told = report.text(_merged(), worst=count).partition("Matrices with the largest merged delta")[2].splitlines()
    assert [line.split() for line in told[2:4]][: count + 1] == [
        ["model.layers.1.self_attn.q_proj.weight", "merge", "2", "4", "0.7"],
        *([["model.layers.0.self_attn.q_proj.weight", "merge", "2", "3", "0.7"]] if count == 2 else [[]]),
    ]


def test_matrices_of_a_merge_are_not_listed_beside_those_of_a_geometry() -> None:
    changed = _merged(geometry=record()["geometry"])
    changed["matrices"][0]["stored"] = matrix(0, "q", 1.0, 1.0, 1.0)["stored"]
    assert "largest merged delta" not in report.text(changed)
