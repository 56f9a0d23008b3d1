"""The demonstration: the shipped recipe with its own settings, and a page that says what came out."""

from pathlib import Path

import pytest
import yaml

from vecsurgery.demo.unlearning import showing
from vecsurgery.demo.unlearning.cache import Prepared
from vecsurgery.demo.unlearning.showing import Model, Row, with_own_files
from vecsurgery.recipe import shipped

_PREPARED = Prepared(0, Path("/demo/original"), Path("/demo/unlearned"), Path("/demo/data"))


def _row(*, scaled: bool = True) -> Row:
    models = (
        Model("original", 0.01, 0.01, 0.99, 0.02, 0.98),
        Model("unlearned", 5.0, 4.01, 0.2, 3.0, 0.3),
        Model("cleaned", 4.5, 3.61, 0.25, 1.0, 0.7),
        Model("scaled 0.93", 4.4, 3.61, 0.24, 2.0, 0.5),
    )
    return Row(1, models if scaled else models[:3], 3.25, 0.93 if scaled else None, Path("out"), "verdict")


def test_every_setting_of_the_shipped_recipe_stays() -> None:
    text = shipped.text(showing.RECIPE)
    own, example = yaml.safe_load(with_own_files(text, _PREPARED)), yaml.safe_load(text)
    assert own["into"] == "/demo/original"
    assert own["geometry"]["retain"]["data"] == ["/demo/data/retain.jsonl", "/demo/data/general.txt"]
    for recipe in (own, example):
        recipe["into"] = recipe["deltas"] = recipe["evaluate"] = None
        for entry in (recipe["geometry"]["retain"], *recipe["steps"], *recipe["gates"]):
            entry.pop("data", None)
    assert own == example


def test_an_example_that_the_recipe_lacks_is_told() -> None:
    with pytest.raises(ValueError, match="names 'into: org/original' 0 times"):
        with_own_files("into: other", _PREPARED)


def test_the_ratio_compares_cleaned_and_scaled_where_both_forget_equally() -> None:
    row = _row()
    assert row.ratio == pytest.approx(0.5)
    assert row.forgetting == pytest.approx(0.9)
    text = showing._text([row])
    assert "amplified by 3.25, cleaning keeps 90% of the forgetting" in text
    assert "retain NLL is 0.50 times that of scaling" in text


def test_a_model_that_forgets_more_than_scaling_can_has_no_ratio() -> None:
    row = _row(scaled=False)
    assert row.ratio is None
    assert "never forgets as much" in showing._text([row])
