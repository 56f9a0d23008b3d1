"""Merges: what they say, which names are live behind them, and that their text is read back as the same."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import jsonschema
import pytest
import yaml

from vecsurgery.recipe import FilteredNumber, Method, Recipe, schema

Read = Callable[..., Recipe]
Problems = Callable[..., list[str]]

START = """\
into: original
deltas: {math: {tuned: tuned}, code: {adapter: adapter}, chat: {tuned: tuned}}
geometry: {kept: {data: retain.jsonl}}
steps:
"""
FULL = f"""{START}\
  - {{project: hard, geometry: kept}}
  - {{merge: blend, as: skills, deltas: [math, code], density: {{math: [0.2, 0.8]}}, weights: {{code: 0.7}},
     balance: [{{filter: mlp, value: 1}}, {{value: 0.25}}]}}
  - {{scale: 0.5}}
  - {{merge: pick, as: all, delta: skills, t: 0.5}}
weights: {{all: 2, chat: 0.5}}
"""


def test_a_merge_takes_its_deltas_away_and_gives_a_new_one(read: Read) -> None:
    recipe = read(FULL)
    merge, scale, pick = recipe.steps[1:]
    assert (merge.verb, merge.method, merge.result, merge.selection.deltas) == (
        "merge",
        "blend",
        "skills",
        ("math", "code"),
    )
    assert merge.weights == {"math": 1.0, "code": 0.7}
    options = merge.options
    assert options is not None
    assert getattr(options, "density") == {"math": [0.2, 0.8]}  # noqa: B009 - the model is a test's own
    assert getattr(options, "balance") == (FilteredNumber("mlp", 1.0), FilteredNumber(None, 0.25))  # noqa: B009
    assert scale.selection.deltas == ("chat", "skills")
    assert (pick.weights, pick.result) == ({}, "all")
    assert recipe.live == ("chat", "all")
    assert recipe.merges == (merge, pick)
    assert recipe.weights == {"all": 2.0, "chat": 0.5}


def test_the_text_of_a_merge_is_read_back_as_the_same_recipe(read: Read) -> None:
    recipe = read(FULL)
    again = read(recipe.text)
    assert again.text == recipe.text
    assert [replace(step, line=0) for step in again.steps] == [replace(step, line=0) for step in recipe.steps]
    step = yaml.safe_load(recipe.text)["steps"][1]
    assert step["weights"] == {"math": 1.0, "code": 0.7}
    assert step["balance"] == [{"filter": "mlp", "value": 1.0}, {"value": 0.25}]
    assert yaml.safe_load(recipe.text)["weights"] == {"chat": 0.5, "all": 2.0}


def test_a_merge_is_addressed_by_its_method_or_id(read: Read) -> None:
    recipe = read(FULL, "blend.weights.math=0.1", "pick.t=0.9")
    assert recipe.steps[1].weights == {"math": 0.1, "code": 0.7}
    assert getattr(recipe.steps[3].options, "t") == 0.9  # noqa: B009


def test_an_option_of_a_merge_may_be_called_as_a_verb_is(read: Read) -> None:
    (merge,) = read(f"{START}  - {{merge: blend, as: all, scale: 3.0}}\n").steps
    assert merge.verb == "merge"
    assert getattr(merge.options, "scale") == 3.0  # noqa: B009


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("- {merge: blend}", "5: steps[0].as: this key is required"),
        ("- {merge: blend, as: math}", "5: steps[0].as: the name 'math' is taken by a delta; expected a new one"),
        ("- {merge: blend, as: a.b}", "5: steps[0].as: 'a.b' cannot be a name; expected letters"),
        ("- {merge: blnd, as: all}", "5: steps[0].merge: unknown merge method 'blnd'; did you mean 'blend'?"),
        ("- {merge: hard, as: all}", "5: steps[0].merge: 'hard' is a projector; write project: hard"),
        ("- {project: blend}", "5: steps[0].project: 'blend' is a merge method; write merge: blend"),
        (
            "- {merge: blend, as: all, weights: 1}",
            "5: steps[0].weights: expected a map from deltas to numbers, as in {math: 1, code: 1, chat: 1}; got",
        ),
        (
            "- {merge: pick, as: all, t: 1, delta: math, balance: 1}",
            "5: steps[0].balance: unknown key 'balance': it is an option of blend; pick has t",
        ),
        (
            "- {merge: blend, as: all, weight: {math: 1}}",
            "5: steps[0].weight: unknown key 'weight'; did you mean 'weights'?",
        ),
        ("- {merge: blend, as: all, weights: {maths: 1}}", "unknown delta of this merge 'maths'; did you mean 'math'?"),
        ("- {merge: blend, as: all, deltas: [math], weights: {code: 1}}", "unknown delta of this merge 'code'"),
        ("- {merge: blend, as: all, weights: {math: x}}", "5: steps[0].weights.math: expected a number"),
        ("- {merge: blend, as: all, density: {maths: 1}}", "5: steps[0].density.maths: unknown delta of this merge"),
        ("- {merge: blend, as: all, density: {math: true}}", "5: steps[0].density: math: expected a number"),
        ("- {merge: blend, as: all, balance: {math: 1}}", "5: steps[0].balance: expected a number"),
        ("- {merge: pick, as: all, delta: math}", "5: steps[0].t: this key is required"),
        ("- {merge: pick, as: all, t: 1}", "5: steps[0].deltas: pick takes one delta, there are 3: math, code, chat"),
        (
            "- {merge: pick, as: all, t: 1, deltas: [math, code]}",
            "2 are named: math, code; it goes from `into` to one other model: make one of the two",
        ),
        ("- {merge: pick, as: all, t: 1, delta: math, weights: {math: 2}}", "steps[0].weights: pick takes no weights"),
        ("- {merge: blend, as: all, layers: 0-3}", "5: steps[0].layers: a merge takes every tensor of its deltas"),
        (
            "- {merge: blend, as: all}\n  - {scale: 2, delta: code}",
            "6: steps[1].delta: the delta 'code' is merged into",
        ),
        ("- {merge: blend, as: all}\n  - {scale: 2, delta: al}", "6: steps[1].delta: unknown delta 'al'; did you mean"),
        (
            "- {merge: blend, as: all}\n  - {merge: blend, id: b, as: math}",
            "6: steps[1].as: the name 'math' is taken by a delta",
        ),
        (
            "- {merge: blend, as: all}\nweights: {math: 2}",
            "6: weights.math: the delta 'math' is merged into 'all' by steps[0]; name that",
        ),
    ],
)
def test_a_wrong_merge_is_refused_with_its_reason(problems: Problems, steps: str, says: str) -> None:
    found = problems(f"{START}  {steps}\n")
    assert len(found) == 1
    assert says in found[0]


def test_steps_below_a_wrong_merge_may_still_name_its_result(problems: Problems) -> None:
    found = problems(
        f"{START}  - {{merge: blend, as: all, balance: x}}\n  - {{scale: 2, delta: all}}\nweights: {{all: 2}}\n"
    )
    assert len(found) == 1
    assert "steps[0].balance: expected a number" in found[0]


def test_the_schema_knows_merges(methods: Mapping[str, Method]) -> None:
    checker = jsonschema.Draft202012Validator(schema(methods))
    assert checker.is_valid(yaml.safe_load(FULL))
    for wrong in ("{merge: blend}", "{merge: blend, as: x, density: {math: true}}", "{merge: blend, as: x, layers: 1}"):
        assert not checker.is_valid(yaml.safe_load(f"{START}  - {wrong}\n"))
