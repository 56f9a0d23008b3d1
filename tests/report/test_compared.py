"""The records of two runs side by side, and the keys in which their recipes differ."""

from typing import Any

from tests.report.example import amplified, gate, record
from vecsurgery.report import Comparison


def _compared(first: Any, second: Any) -> Comparison:
    return Comparison("first", "second", (), records=(first, second))


def test_figures_of_fits_evaluation_and_gates_stand_side_by_side() -> None:
    other = amplified(2.0)
    other["gates"] = [gate("retention", 0.3, passed=False, max=0.2)]
    measures = _compared(amplified(), other).measures()
    assert measures["amplify: factor"] == (4.0, 2.0)
    assert measures["amplify: share of the raw forgetting kept"] == (0.9, 0.9)
    assert measures["forget: capped answer loss"] == (4.75, 4.75)
    assert measures["gate retention"] == ("passed (0.15)", "FAILED (0.3)")
    assert measures["gate smoke"] == ("passed", None)


def test_a_figure_that_only_one_has_is_a_dash() -> None:
    text = _compared(record(), amplified()).text()
    (line,) = [line for line in text.splitlines() if line.startswith("amplify: factor")]
    assert line.split()[-2:] == ["–", "4"]


def test_two_gates_on_one_measure_keep_their_own_lines() -> None:
    first = amplified()
    first["gates"] = [gate("retention", 0.1, max=0.2), gate("retention", 0.3, max=0.4)]
    measures = _compared(first, first).measures()
    assert (measures["gate retention"][0], measures["gate retention 2"][0]) == ("passed (0.1)", "passed (0.3)")


def test_recipes_are_compared_key_by_key() -> None:
    first, second = record(), record()
    first["recipe"] = "into: a\nsteps:\n- scale: 0.5\n  id: half\nevaluate: {}\ngates:\n- measure: smoke\n"
    second["recipe"] = (
        "into: a\nsteps:\n- scale: 0.25\n  id: half\n- fit: amplify\n  id: amplify\n  data: [b]\n"
        "evaluate: {}\ngates: []\n"
    )
    assert _compared(first, second).recipe_changes() == [
        "- steps[half].scale: 0.5",
        "+ steps[half].scale: 0.25",
        '+ steps[amplify].fit: "amplify"',
        '+ steps[amplify].id: "amplify"',
        '+ steps[amplify].data: ["b"]',
        '- gates[smoke].measure: "smoke"',
        "+ gates: []",
    ]
    assert "The recipes are the same." in _compared(first, first).text()
