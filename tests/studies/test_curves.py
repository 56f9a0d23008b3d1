"""The curve of a recipe: its points against single evaluations, its levels, its refusals."""

import json

import pytest
from click.testing import CliRunner
from support import models
from support.workspace import Workspace

import vecsurgery
from tests.surgery.test_fits import unlearned as unlearned
from vecsurgery.checkpoint import Stored
from vecsurgery.cli import main
from vecsurgery.errors import InputError
from vecsurgery.evaluation import answer_nll
from vecsurgery.report import curve_text
from vecsurgery.studies.curves import scaled_to
from vecsurgery.surgery.api import opened


@pytest.fixture
def drawn(unlearned: Workspace) -> Workspace:
    """A recipe with rows to judge by that nothing else uses."""
    for name, first in (("forget-test", 60), ("retain-test", 90)):
        models.write_answers(unlearned.root / "into", unlearned.root / f"{name}.jsonl", first=first)
    unlearned.recipe["evaluate"] = {"forget": "forget-test.jsonl", "retain": "retain-test.jsonl"}
    return unlearned


def test_points_are_what_written_models_measure(drawn: Workspace) -> None:
    curve = vecsurgery.curve(drawn.write(), points=4)
    samples = opened(drawn.root / "recipe.yaml").evaluation
    scaled = next(point for point in curve.scaling if point.factor == 0.5)
    drawn.recipe["steps"] = [{"scale": 0.5}]
    vecsurgery.run(drawn.write(), drawn.root / "half")
    drawn.recipe["steps"] = [{"project": "retain_energy", "geometry": "retain", "keep": 0.02}]
    point = curve.method[-1]
    drawn.recipe["steps"].append({"scale": point.factor, "where": "*proj.weight"})
    vecsurgery.run(drawn.write(), drawn.root / "amplified")
    for folder, expected in (("half", scaled), ("amplified", point)):
        forget, retain = (answer_nll(Stored(drawn.root / folder), samples[name]) for name in ("forget", "retain"))
        assert forget.capped == pytest.approx(expected.forget_capped, rel=1e-5)
        assert retain.mean == pytest.approx(expected.retain_nll, rel=1e-5)
        assert retain.probability == pytest.approx(expected.retain_probability, rel=1e-5)


def test_the_whole_raw_delta_forgets_everything_and_into_nothing(drawn: Workspace) -> None:
    curve = vecsurgery.curve(drawn.write(), points=3, levels=(0.5, 3.0))
    assert curve.scaling[-1].factor == 1.0
    assert curve.scaling[-1].forgetting == pytest.approx(1.0)
    assert (curve.into.forgetting, curve.into.damage) == (0.0, 0.0)
    assert curve.passes == 2
    half, never = curve.levels
    assert half.method is not None
    assert half.scaling is not None
    assert half.ratio == pytest.approx(half.method / half.scaling)
    assert never.scaling is None
    assert never.ratio is None


def test_curves_that_are_ordered_by_factor_cross_the_levels_between_finer_points(drawn: Workspace) -> None:
    curve = vecsurgery.curve(drawn.write(), points=5)
    for points in (curve.method, curve.scaling):
        factors = [point.factor for point in points]
        assert factors == sorted(set(factors))
    assert len(curve.scaling) > 10


def test_a_model_whose_losses_are_not_finite_is_named(drawn: Workspace) -> None:
    models.perturbed(drawn.root / "into", drawn.root / "tuned", seed=7, size=0.12)
    drawn.recipe["steps"] = [{"scale": 1e37, "where": "*norm.weight"}]
    drawn.recipe["geometry"] = {}
    with pytest.raises(InputError, match=r"losses of edited × 0\.25 are not finite"):
        vecsurgery.curve(drawn.write(), points=3)


def test_geometry_is_kept_and_used_again(drawn: Workspace) -> None:
    folder = drawn.root / "kept"
    first = vecsurgery.curve(drawn.write(), points=3, folder=folder)
    stamp = (folder / "retain.safetensors").stat().st_mtime_ns
    assert vecsurgery.curve(drawn.write(), points=3, folder=folder) == first
    assert (folder / "retain.safetensors").stat().st_mtime_ns == stamp


def test_a_recipe_without_rows_to_judge_by_is_refused(drawn: Workspace) -> None:
    del drawn.recipe["evaluate"]["retain"]
    with pytest.raises(InputError, match=r"evaluate\.retain"):
        vecsurgery.curve(drawn.write())


def test_the_command_prints_tables_or_json_and_draws(drawn: Workspace) -> None:
    picture = drawn.root / "curve.svg"
    shown = CliRunner().invoke(main, ["curve", str(drawn.write()), "--points", "3", "--picture", str(picture)])
    assert shown.exit_code == 0, shown.output
    assert "at equal forgetting" in shown.output
    assert "Ratio: damage of retain_energy" in shown.output
    assert picture.read_text().startswith("<?xml")
    as_json = CliRunner().invoke(main, ["curve", str(drawn.write()), "--points", "3", "--json"])
    assert json.loads(as_json.stdout)["delta"] == "change"


def test_the_raw_delta_is_scaled_to_a_loss(drawn: Workspace) -> None:
    curve = vecsurgery.curve(drawn.write(), points=3)
    wanted = curve.into.forget_capped + 0.6 * (curve.scaling[-1].forget_capped - curve.into.forget_capped)
    point = scaled_to(drawn.root / "recipe.yaml", wanted)
    assert point is not None
    assert point.forget_capped == pytest.approx(wanted, rel=2e-3)
    drawn.recipe["steps"] = [{"scale": point.factor}]
    vecsurgery.run(drawn.write(), drawn.root / "scaled")
    samples = opened(drawn.root / "recipe.yaml").evaluation
    assert answer_nll(Stored(drawn.root / "scaled"), samples["retain"]).mean == pytest.approx(
        point.retain_nll, rel=1e-5
    )
    assert scaled_to(drawn.root / "recipe.yaml", 1e3) is None


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.8, None, 0.75], "It is 0.75 to 0.8 here:\nit is better than scaling at each of these levels."),
        ([1.0, 1.25], "It is 1 to 1.25 here:\nscaling the raw delta is as good or better, and simpler."),
        ([0.5, 1.5], "it depends on the level which of the two is better."),
        ([None], "No level of forgetting is reached by both"),
    ],
)
def test_the_curve_ends_with_what_it_says_about_the_method(ratios: list[float | None], expected: str) -> None:
    levels = [{"forgetting": 0.5, "method": 1.0, "scaling": 1.0, "ratio": ratio} for ratio in ratios]
    text = curve_text({"name": "clean", "delta": "d", "method": [], "scaling": [], "levels": levels})
    assert expected in text.split("\n\n")[-1]
