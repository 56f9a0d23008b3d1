"""A misspelt key is told once: its consequences are not told, and the mistakes below it are."""

import pytest

from tests.recipe.conftest import Problems


def _paths(found: list[str]) -> list[str]:
    return [each.split(": ")[1] for each in found]


def test_a_misspelt_top_level_key_hides_neither_its_contents_nor_makes_a_required_key_missing(
    problems: Problems,
) -> None:
    found = problems("into: original\ndelta: {change: {tunde: tuned}}\nwieghts: {chnage: 1}\n")
    assert _paths(found) == ["delta", "deltas.change.tunde", "wieghts", "weights.chnage"]
    assert all("did you mean" in each for each in found)


def test_a_misspelt_method_is_read_as_the_one_that_was_meant(problems: Problems) -> None:
    start = "into: original\ndeltas: {change: {tuned: tuned}}\ngeometry: {kept: {data: retain.jsonl}}\nsteps:\n"
    found = problems(f"{start}  - {{porject: null_spaec, geometry: kept, rtlo: 3}}\n")
    assert _paths(found)[:1] == ["steps[0].porject"]
    found = problems(f"{start}  - {{project: soft, geometry: kept, kepe: 3}}\n")
    assert found[0].endswith("steps[0].kepe: unknown key 'kepe'; did you mean 'keep'?")
    assert "steps[0].keep: expected less than 1; got 3" in found[1]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("outptu: {dtyp: x}", ["outptu", "output.dtyp", "output.dtype"]),
        ("evaluate: {forget: {data: retain.jsonl, limt: 0}}", ["evaluate.forget.limt", "evaluate.forget.limit"]),
        ("gates: [{measure: smoke, dtaa: retain.jsonl}]", ["gates[0].dtaa", "gates[0].data"]),
        ("steps: [{scale: 1, layesr: x}]", ["steps[0].layesr", "steps[0].layers"]),
    ],
)
def test_mistakes_below_a_misspelt_key_are_told_too(problems: Problems, text: str, paths: list[str]) -> None:
    found = problems(f"into: original\ndeltas: {{change: {{tuned: tuned}}}}\n{text}\n")
    assert _paths(found) == paths


def test_two_keys_that_may_mean_the_same_are_left_as_they_are(problems: Problems) -> None:
    found = problems("into: original\ndelta: {a: {tuned: tuned}}\ndeltsa: {b: {tuned: tuned}}\n")
    assert sorted(_paths(found)) == ["delta", "deltas", "deltsa"]


def test_a_word_that_is_only_a_little_like_a_key_is_not_read_as_it(problems: Problems) -> None:
    (found,) = problems("into: original\ndeltas: {change: {tuned: tuned}}\nmodels: [1, 2]\n")
    assert "models: unknown key 'models'" in found


MERGEKIT = [
    "merge_method: ties\nbase_model: org/base\nmodels: [{model: a}]\ndtype: bfloat16\n",
    "slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nmerge_method: passthrough\n",
    "base_model: org/base\nexperts: [{source_model: a}]\n",
    "models: [{model: a}]\nbase_model: org/base\nmerge_method: vecsurgery_trim\n",
]


WAYS = [
    "vecsurgery-mergekit runs it as it is, and in a recipe a method of mergekit is a step, `merge: ties` with `as: ",
    "vecsurgery-mergekit runs it as it is.",
    "run it with mergekit-moe.",
    "vecsurgery-mergekit runs it as it is, and in a recipe its method is a step, `project: trim`.",
]


@pytest.mark.parametrize(
    ("text", "way"), list(zip(MERGEKIT, WAYS, strict=True)), ids=["models", "slices", "experts", "ours"]
)
def test_a_mergekit_configuration_is_told_as_what_it_is(problems: Problems, text: str, way: str) -> None:
    (found,) = problems(text)
    assert "this is a mergekit configuration" in found
    assert way in found
    assert "unknown key" not in found
    assert ("into: org/base" in found) == ("org/base" in text)


def test_a_recipe_with_a_key_of_mergekit_is_a_recipe_with_a_mistake(problems: Problems) -> None:
    (found,) = problems("into: original\ndeltas: {change: {tuned: tuned}}\nmerge_method: ties\n")
    assert "unknown key 'merge_method'" in found
