"""The reasoning demonstration: the shipped recipe with its own settings, its merges, and a page that says what came
out."""

from pathlib import Path

import pytest
import yaml

from vecsurgery.demo.reasoning import showing
from vecsurgery.demo.reasoning.models import Trained
from vecsurgery.recipe import shipped

_TRAINED = Trained(0, "sums", *(Path(f"/demo/{name}") for name in ("base", "reasoning", "instruct", "data")))


def test_every_setting_of_the_shipped_recipe_stays() -> None:
    text = shipped.text(showing.RECIPE)
    own, example = yaml.safe_load(showing.with_own_files(text, _TRAINED)), yaml.safe_load(text)
    assert own["into"] == "/demo/reasoning"
    assert own["deltas"]["instruct"] == {"tuned": "/demo/instruct", "base": "/demo/base"}
    for recipe in (own, example):
        recipe["into"] = recipe["deltas"] = None
        recipe["geometry"]["thinking"].pop("data")
    assert own == example


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name
def test_merges_stand_beside_the_models_that_they_are_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("PLAIN", 1), ("INSTRUCTED", 2), ("SAMPLES", 1)):
        monkeypatch.setattr(showing, name, value)
    shown = showing.show(out=tmp_path / "demo")
    rows = {row["name"]: row for row in shown["rows"]}
    assert list(rows) == ["reasoning", "instruct", "sum", "TIES", "rain", "rain × 3"]
    assert rows["reasoning"]["think_format"] == 1.0
    assert rows["reasoning"]["think_kl"] is None
    assert rows["instruct"]["think_format"] == 0.0
    assert 0.0 < rows["rain"]["think_kl"] < rows["rain × 3"]["think_kl"] < rows["sum"]["think_kl"]
    for name in ("sum-0", "ties-0", "rain-0", "rain-heavier-0"):
        assert (tmp_path / "demo" / name / "model.safetensors").is_file()
    assert "right and in the form that was asked for: sum" in shown["text"]
    assert len((tmp_path / "demo" / "questions-0.jsonl").read_text().splitlines()) == 3
