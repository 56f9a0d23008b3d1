"""Steps that make deltas orthogonal are told of by their interference: in the verdict, the text and the page."""

from typing import Any

from tests.report.example import record
from vecsurgery import report
from vecsurgery.report import orthogonal


def _step(delta: str, **facts: float) -> dict[str, Any]:
    return {"step": "spectral", "method": "spectral", "delta": delta, "facts": facts, "warnings": []}


def _record(changed: list[dict[str, float]], passed: int = 0) -> Any:
    """Matrices of two deltas with these facts each, and some that passed."""
    example: Any = record() | {"geometry": {}, "fits": []}
    facts = [{"orthogonalised": 1.0, "norm": 2.0, "norm_ratio": 0.5, **figures} for figures in changed]
    facts += [{"orthogonalised": 0.0, "norm": 2.0, "norm_ratio": 1.0}] * passed
    example["matrices"] = [
        {
            **example["matrices"][0],
            "tensor": f"{place}.weight",
            "stored": {},
            "steps": [_step(name, **each) for name in "ab"],
        }
        for place, each in enumerate(facts)
    ]
    return example


def _figures(before: float, after: float, outputs: float, inputs: float) -> dict[str, float]:
    return {"interference": before, "interference_after": after, "cut_outputs": outputs, "cut_inputs": inputs}


def test_each_matrix_counts_once_whatever_the_number_of_its_deltas() -> None:
    found = _record([_figures(3.0, 1e-9, 0.0, 0.5), _figures(1.0, 3e-9, 0.5, 0.0), _figures(2.0, 2e-9, 0.0, 0.0)], 1)
    (total,) = orthogonal.orthogonal(found)
    assert (total.step, total.deltas, total.matrices, total.passed) == ("spectral", ("a", "b"), 3, 1)
    assert (total.before, total.after) == (2.0, 2e-9)
    assert total.cut_outputs == total.cut_inputs == 0.5 / 3


def test_the_verdict_tells_the_interference_and_what_passed() -> None:
    figures = _figures(0.25, 2.5e-9, 0.0, 0.0)
    assert report.verdict(_record([figures])).startswith(
        "Made `a` and `b` orthogonal in 1 matrix (interference 0.25 before, 2.5e-09 after); 1 norm"
    )
    assert "2.5e-09 after), left them as they are in 2 matrices;" in report.verdict(_record([figures], 2))
    assert report.verdict(_record([], 2)).startswith("Left `a` and `b` as they are in 2 matrices;")
    lone = _record([], 2)
    for matrix in lone["matrices"]:
        matrix["steps"] = matrix["steps"][:1]
    told = report.verdict(lone)
    assert told.startswith("Left `a` as it is in 2 matrices (there is no other delta to make it orthogonal to);")


def test_the_text_and_the_page_have_a_line_of_figures() -> None:
    found = _record([_figures(0.25, 2.5e-9, 0.125, 0.0)])
    for rendering in (report.text(found), report.html(found)):
        assert all(cell in rendering for cell in ("a + b", "0.25", "2.5e-09", "12 %"))
    assert "Interference" not in report.text(record())
    assert "Interference" not in report.html(record())
