"""`extends` and `--set`: how files and overrides become one recipe."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vecsurgery.recipe import Method, Recipe, RecipeError, load

Read = Callable[..., Recipe]
Problems = Callable[..., list[str]]


def test_maps_merge_and_lists_are_replaced(read: Read, valid: str, folder: Path) -> None:
    (folder / "base.yaml").write_text(valid)
    recipe = read(
        "extends: base.yaml\n"
        "geometry: {kept: {limit: 3}}\n"
        "steps:\n  - {project: hard, geometry: kept}\n"
        "output: {dtype: float32}\n"
    )
    assert set(recipe.deltas) == {"change", "lora"}
    assert recipe.geometry["kept"].data is not None
    assert (recipe.geometry["kept"].data.limit, recipe.geometry["kept"].data.data) == (3, (folder / "retain.jsonl",))
    assert [step.method for step in recipe.steps] == ["hard"]
    assert (recipe.output.dtype, recipe.weights) == ("float32", {"change": 2.0})


def test_an_inherited_key_is_removed_by_null(read: Read, valid: str, folder: Path) -> None:
    (folder / "base.yaml").write_text(valid)
    recipe = read("extends: base.yaml\ndeltas: {lora: {adapter: null, tuned: tuned}}\nweights: null\n")
    assert recipe.deltas["lora"].adapter is None
    assert recipe.weights == {}


def test_paths_and_errors_belong_to_the_file_that_states_them(
    read: Read, problems: Problems, valid: str, folder: Path
) -> None:
    inner = folder / "inner"
    inner.mkdir()
    (inner / "base.yaml").write_text("geometry:\n  kept: {data: retain.jsonl, limt: 3}\n")
    (inner / "middle.yaml").write_text("extends: base.yaml\n")
    (found,) = problems(f"extends: inner/middle.yaml\n{valid.replace('{data: retain.jsonl}', '{}')}")[1:]
    assert (
        found
        == (
            f"{inner / 'base.yaml'}:2: geometry.kept.data: there is no file {inner / 'retain.jsonl'} "
            "(relative paths start at the folder of the recipe)"
        )
        or "limt" in found
    )
    (inner / "base.yaml").write_text("geometry:\n  kept: {data: retain.jsonl}\n")
    (inner / "retain.jsonl").touch()
    recipe = read(f"extends: inner/middle.yaml\n{valid.replace('{data: retain.jsonl}', '{limit: 2}')}")
    assert recipe.geometry["kept"].data is not None
    assert recipe.geometry["kept"].data.data == (inner / "retain.jsonl",)


def test_recipes_that_extend_each_other_in_a_circle_are_refused(problems: Problems, folder: Path) -> None:
    (folder / "other.yaml").write_text("extends: recipe.yaml\n")
    found = problems("extends: other.yaml\n")
    assert any("in a circle: recipe.yaml → other.yaml → recipe.yaml" in each for each in found)
    assert any("in a circle: recipe.yaml → recipe.yaml" in each for each in problems("extends: recipe.yaml\n"))


def test_a_missing_or_wrong_parent_is_named_where_it_is_asked_for(problems: Problems, valid: str) -> None:
    (found,) = problems(f"{valid}extends: gone.yaml\n")
    assert found.startswith("11: extends: the recipe ")
    assert "gone.yaml cannot be read: No such file" in found
    (found,) = problems(f"{valid}extends: [a]\n")
    assert found == "11: extends: expected the path of a recipe; got a list"


def test_a_top_level_key_is_overridden(read: Read, valid: str) -> None:
    recipe = read(valid, "output.dtype=float16", "weights.lora=[0, 1e-1]", "geometry.kept.limit=7", "into=tuned")
    assert (recipe.output.dtype, recipe.weights["lora"]) == ("float16", [0.0, 0.1])
    assert recipe.geometry["kept"].data is not None
    assert recipe.geometry["kept"].data.limit == 7
    assert recipe.into.text == "tuned"


def test_a_step_is_addressed_by_method_or_id_or_index(read: Read, valid: str) -> None:
    options = read(valid, "soft.keep=0.05").steps[0].options
    assert options is not None
    assert options.model_dump()["keep"] == 0.05
    named = valid.replace("{scale: 0.5", "{id: half, scale: 0.5")
    assert read(named, "half.scale=3").steps[1].number == 3.0
    assert read(named, "scale.scale=4").steps[1].number == 4.0
    assert read(valid, "steps.1.scale=5").steps[1].number == 5.0


def test_the_elements_of_a_list_are_told_where_an_override_names_none(problems: Problems, valid: str) -> None:
    one = valid.replace("  - {scale: 0.5, layers: 0-3}\n", "")
    (found,) = problems(one, "steps.1.keep=0.1")
    assert found.endswith("'steps.1.keep' leads nowhere: steps has 1 entry, steps.0")
    (found,) = problems(one.replace("keep: 1e-3", "keep: 1e-3, where: [a, b]"), "soft.where.2=c")
    assert found.endswith("'soft.where.2' leads nowhere: soft.where has 2 entries, soft.where.0 to soft.where.1")
    (found,) = problems(f"{one}gates: []\n", "gates.0.max=1")
    assert found.endswith("'gates.0.max' leads nowhere: the list gates is empty")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("sage", "; `vecsurgery new sage` copies the shipped recipe of this name"),
        ("sage.yaml", "; `vecsurgery new sage` copies"),
        ("nothere.yaml", ": No such file or directory; expected the path of a recipe, a YAML file"),
        ("mine", "; did you mean {folder}/mine.yaml?"),
    ],
)
def test_a_recipe_that_is_not_there_is_told_with_the_way_on(
    folder: Path, methods: Mapping[str, Method], asked: str, says: str
) -> None:
    (folder / "mine.yaml").touch()
    with pytest.raises(RecipeError) as caught:
        load(folder / asked, methods)
    assert f"the recipe {folder / asked} cannot be read: No such file" in str(caught.value)
    assert says.format(folder=folder) in str(caught.value)


def test_later_overrides_win_and_null_removes(read: Read, valid: str) -> None:
    options = read(valid, "soft.keep=0.5", "soft.keep=null", "soft.strength=2").steps[0].options
    assert options is not None
    assert (options.model_dump()["keep"], options.model_dump()["strength"]) == (None, 2.0)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sotf.keep=1", "unknown step or key 'sotf'; did you mean 'soft'?"),
        ("soft.kep=1", "steps[0].kep: unknown key 'kep'; did you mean 'keep'?"),
        ("soft.keep=2", "steps[0].keep: expected less than 1; got 2"),
        ("soft.keep", "expected ADDRESS=VALUE"),
        ("=3", "expected ADDRESS=VALUE"),
        ("soft=3", "'soft' is a step; say which of its keys"),
        ("into.x=3", "'into.x' leads nowhere: 'x' would stand in text 'original'"),
        ("steps.3.rtol=0.1", "'steps.3.rtol' leads nowhere: steps has 2 entries, steps.0 to steps.1"),
        ("steps.soft.rtol=0.1", "leads nowhere: steps has 2 entries, steps.0 to steps.1"),
        ("output.dtype=[", "not valid YAML"),
        ("extends=a.yaml", "unknown step or key 'extends'"),
        ("geometry.kept.data=gone.jsonl", "geometry.kept.data: there is no file"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_written(problems: Problems, valid: str, override: str, says: str) -> None:
    (found,) = problems(valid, override)
    assert found.startswith(f"--set {override}: ")
    assert says in found


def test_a_method_that_two_steps_use_must_be_addressed_by_id(problems: Problems, read: Read, valid: str) -> None:
    twice = valid.replace("weights", "  - {id: second, project: soft, geometry: kept, keep: 0.1}\nweights")
    (found,) = problems(twice, "soft.keep=0.5")
    assert "2 steps are called 'soft'; give each its own id and use that" in found
    options = read(twice, "second.keep=0.5").steps[2].options
    assert options is not None
    assert options.model_dump()["keep"] == 0.5
