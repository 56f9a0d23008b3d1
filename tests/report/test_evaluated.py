"""An evaluation as text and picture: every figure that some model has, a dash where one has none, the same bytes."""

import math
from pathlib import Path

import pytest

from vecsurgery import report
from vecsurgery.errors import InputError, RunError
from vecsurgery.evaluation import EvaluatedModel, Evaluation, Figure, Measured


def _evaluation() -> Evaluation:
    first = {
        "forget": Measured({"nll": Figure(5.25), "leak@2": Figure(0.0), "perturbed_probability": Figure(0.5)}, 3, 20),
        "general": Measured({"perplexity": Figure(math.inf)}, 1, 9),
    }
    second = {"forget": Measured({"nll": Figure(0.000123), "truth_ratio": Figure(None)}, 4, 21)}
    models = (EvaluatedModel("before", "a", "x", first), EvaluatedModel("after", "b", "y", second))
    return Evaluation(models, {"forget": ("forget.jsonl",)}, {}, ("take care",))


def test_text_is_aligned_and_says_what_is_missing() -> None:
    assert report.evaluation_text(_evaluation()) == (
        "forget: 3 to 4 rows (should be forgotten)\n"
        "measure      unit    before     after  good is\n"
        "answer NLL   nats      5.25  0.000123     high\n"
        "truth ratio  0 to 1       –         –     high\n"
        "leak@2       0 to 1       0         –      low\n"
        "\n"
        "general: 1 row\n"
        "measure     unit         before  after\n"
        "perplexity  1 and above       ∞      –\n"
        "\n"
        "Warnings (1)\n"
        "- take care\n"
    )


def test_the_same_evaluation_draws_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        report.evaluation_picture(_evaluation(), path)
    drawn = paths[0].read_text()
    assert drawn == paths[1].read_text()
    assert all(text in drawn for text in ("forget: answer NLL (nats)", "before", "after", "5.25"))
    assert "wrong answers" not in drawn


@pytest.mark.parametrize("name", ["figures.pdf", "figures", "absent/figures.svg"])
def test_a_picture_that_could_not_be_written_is_refused_first(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="drawing into"):
        report.require_picture(tmp_path / name)


def test_nothing_to_draw_and_a_place_that_is_taken_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no figure to draw"):
        report.evaluation_picture(Evaluation((), {}, {}), tmp_path / "a.svg")
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(RunError, match=r"b\.svg"):
        report.evaluation_picture(_evaluation(), tmp_path / "b.svg")
