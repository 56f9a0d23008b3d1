"""Fits, evaluation and gates: what they say, what they may not say, and that their text is read back as the same."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vecsurgery.recipe import DataSpec, GateSpec, Method, Recipe, load, parse_reference, schema, with_references

Read = Callable[..., Recipe]
Problems = Callable[..., list[str]]

START = """\
into: original
deltas: {change: {tuned: tuned}}
geometry: {kept: {data: retain.jsonl}}
"""
FULL = f"""\
{START}steps:
  - {{project: soft, geometry: kept, keep: 0.1}}
  - {{fit: louder, id: loud, data: [forget.jsonl, more.jsonl], rows: 0-7, limit: 4, template: chat.jinja, seed: 3,
     share: 0.8, range: [1, 4], like: tuned, delta: change, modules: [down], layers: 0-1}}
evaluate:
  forget: test.jsonl
  retain: [retain.jsonl, more.jsonl]
  text: {{data: more.jsonl, max_length: 32, limit: 9}}
gates:
  - {{measure: forgetting, min: 0.8}}
  - {{measure: retention, max: 0.5, min: -1, data: test.jsonl, rows: 1-2}}
  - {{measure: smoke}}
  - {{measure: perplexity_ratio, max: 1.1, data: more.jsonl}}
"""


def _meaning(recipe: Recipe) -> Any:
    """What the recipe says, without how and where it was written."""

    def model(reference: Any) -> Any:
        return reference.path, reference.model, reference.revision, reference.adapter and model(reference.adapter)

    steps = [
        (replace(step, line=0, models={}), {key: model(each) for key, each in step.models.items()})
        for step in recipe.steps
    ]
    return steps, recipe.evaluate, [replace(gate, line=0) for gate in recipe.gates], recipe.text


def _again(recipe: Recipe, folder: Path, methods: Mapping[str, Method]) -> Recipe:
    (folder / "elsewhere").mkdir(exist_ok=True)
    (folder / "elsewhere" / "again.yaml").write_text(recipe.text, encoding="utf-8")
    return load(folder / "elsewhere" / "again.yaml", methods)


def test_a_fit_is_read_with_its_rows_its_options_and_its_model(read: Read, folder: Path) -> None:
    recipe = read(FULL)
    project, fit = recipe.steps
    assert (fit.id, fit.verb, fit.method, fit.selection.deltas) == ("loud", "fit", "louder", ("change",))
    assert (fit.selection.modules, fit.selection.layers, fit.line) == (("down",), (0, 1), 6)
    files = (folder / "forget.jsonl", folder / "more.jsonl")
    assert fit.data == DataSpec(files, str(folder / "chat.jinja"), (0, 7), limit=4, seed=3)
    assert fit.models["like"].path == folder / "tuned"
    assert fit.options is not None
    assert fit.options.model_dump() == {"share": 0.8, "range": (1.0, 4.0), "like": str(folder / "tuned")}
    assert (project.data, project.models) == (None, {})


def test_the_only_delta_and_every_default_need_not_be_named(read: Read, folder: Path) -> None:
    (fit,) = read(f"{START}steps: [{{fit: louder, data: forget.jsonl}}]\n").steps
    assert (fit.id, fit.selection.deltas, fit.data) == ("louder", ("change",), DataSpec((folder / "forget.jsonl",)))
    assert fit.options is not None
    assert fit.options.model_dump()["share"] == 0.9
    assert fit.models == {}


def test_rows_of_evaluation_are_paths_lists_or_maps(read: Read, folder: Path) -> None:
    evaluate = read(FULL).evaluate
    assert evaluate["forget"] == DataSpec((folder / "test.jsonl",))
    assert evaluate["retain"] == DataSpec((folder / "retain.jsonl", folder / "more.jsonl"))
    assert evaluate["text"] == DataSpec((folder / "more.jsonl",), limit=9, max_length=32)


def test_gates_are_read_and_smoke_is_one_of_them_unless_there_are_none(read: Read, folder: Path) -> None:
    forgetting, retention, smoke, ratio = read(FULL).gates
    assert forgetting == GateSpec("forgetting", min=0.8, line=13)
    assert retention == GateSpec("retention", -1.0, 0.5, DataSpec((folder / "test.jsonl",), rows=(1, 2)), line=14)
    assert (smoke.measure, ratio.data) == ("smoke", DataSpec((folder / "more.jsonl",)))
    assert read(START).gates == (GateSpec("smoke"),)
    assert read(f"{START}gates:\n").gates == (GateSpec("smoke"),)
    assert read(f"{START}gates: []\n").gates == ()
    added = read(f"{START}gates: [{{measure: perplexity_ratio, max: 2, data: more.jsonl}}]\n").gates
    assert [gate.measure for gate in added] == ["perplexity_ratio", "smoke"]


def test_the_canonical_text_is_read_back_as_the_same_recipe_from_any_folder(
    read: Read, folder: Path, methods: Mapping[str, Method]
) -> None:
    hub = FULL.replace("like: tuned", "like: org/model@v1+original")
    for text in (FULL, hub, START, f"{START}gates: []\n"):
        recipe = read(text)
        assert _meaning(_again(recipe, folder, methods)) == _meaning(recipe)


def test_models_of_a_fit_change_with_the_others(read: Read, folder: Path, methods: Mapping[str, Method]) -> None:
    recipe = read(FULL.replace("like: tuned", "like: org/model"))
    pinned = with_references(
        recipe, lambda reference: replace(reference, revision="abc") if not reference.path else reference
    )
    assert pinned.steps[1].models["like"].revision == "abc"
    assert pinned.steps[1].options is not None
    assert pinned.steps[1].options.model_dump()["like"] == "org/model@abc"
    assert _meaning(_again(pinned, folder, methods)) == _meaning(pinned)


def test_a_geometry_file_may_name_the_model_it_was_measured_on(
    read: Read, folder: Path, methods: Mapping[str, Method]
) -> None:
    recipe = read(START.replace("{data: retain.jsonl}", "{file: old.safetensors, model: tuned}"))
    geometry = recipe.geometry["kept"]
    assert (geometry.file, geometry.data) == (folder / "old.safetensors", None)
    assert geometry.model == parse_reference("tuned", folder)
    again = _again(recipe, folder, methods)
    assert again.text == recipe.text
    assert again.geometry["kept"].model is not None
    assert again.geometry["kept"].model.path == folder / "tuned"


def test_a_fit_is_overridden_by_its_method_or_its_id(read: Read) -> None:
    plain = FULL.replace("id: loud, ", "")
    for text, address in ((plain, "louder"), (FULL, "loud"), (FULL, "louder")):
        (_, fit) = read(text, f"{address}.share=0.5", f"{address}.limit=2").steps
        assert fit.options is not None
        assert fit.data is not None
        assert (fit.options.model_dump()["share"], fit.data.limit) == (0.5, 2)
    assert read(FULL, "gates=[]", "evaluate.forget=more.jsonl").gates == ()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("fit: lauder, data: forget.jsonl", "steps[0].fit: unknown fit 'lauder'; did you mean 'louder'?"),
        ("fit: soft, data: forget.jsonl", "steps[0].fit: 'soft' is a projector; write project: soft"),
        ("fit: 3, data: forget.jsonl", "steps[0].fit: expected the name of a fit (louder); got a number 3"),
        ("project: louder", "steps[0].project: 'louder' is a fit; write fit: louder"),
        ("project: hard, geometry: kept, data: more.jsonl", "steps[0].data: unknown key 'data'"),
        ("fit: louder", "steps[0].data: this key is required"),
        ("fit: louder, data: forgot.jsonl", "steps[0].data: there is no file"),
        ("fit: louder, data: {data: forget.jsonl}", "steps[0].data: expected text or a list of texts; got a map"),
        ("fit: louder, data: forget.jsonl, row: 0-7", "steps[0].row: unknown key 'row'; did you mean 'rows'?"),
        ("fit: louder, data: forget.jsonl, rows: 7", "steps[0].rows: expected"),
        ("fit: louder, data: forget.jsonl, shaer: 1", "steps[0].shaer: unknown key 'shaer'; did you mean 'share'?"),
        ("fit: louder, data: forget.jsonl, share: 2", "steps[0].share: expected less than or equal to 1; got 2"),
        ("fit: louder, data: forget.jsonl, tokens: all", "steps[0].tokens: unknown key 'tokens'"),
        ("fit: louder, data: forget.jsonl, like: ./gone", "steps[0].like: there is no folder"),
        ("fit: louder, data: forget.jsonl, range: [1]", "steps[0].range[1]: this key is required"),
        ("fit: louder, data: forget.jsonl, others: drop", "steps[0].others: unknown key 'others'"),
        ("fit: louder, scale: 2", "steps[0]: a step has one of the keys project, fit, merge, scale; got fit and scale"),
    ],
)
def test_a_wrong_fit_is_refused_with_its_reason(problems: Problems, keys: str, says: str) -> None:
    (found,) = problems(f"{START}steps:\n  - {{{keys}}}\n")
    assert found.startswith(f"5: {says}")


def test_a_fit_takes_exactly_one_delta(problems: Problems) -> None:
    start = START.replace("{tuned: tuned}}", "{tuned: tuned}, lora: {adapter: adapter}}")
    (found,) = problems(f"{start}steps: [{{fit: louder, data: forget.jsonl}}]\n")
    assert found == (
        "4: steps[0].delta: louder takes one delta, the recipe has 2: change, lora; name one, as in delta: change"
    )
    (found,) = problems(f"{start}steps: [{{fit: louder, data: forget.jsonl, deltas: [lora, change]}}]\n")
    assert found.startswith("4: steps[0].deltas: louder takes one delta, 2 are named: lora, change")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("evaluate: test.jsonl", "evaluate: expected a map from names to paths, lists of paths, or maps with some of"),
        ("evaluate: {forget: }", "evaluate.forget: expected text or a list of texts; got nothing; a map"),
        ("evaluate: {forget: 3}", "evaluate.forget: expected text or a list of texts; got 3"),
        ("evaluate: {forget: gone.jsonl}", "evaluate.forget: there is no file"),
        ("evaluate: {forget: [test.jsonl, gone.jsonl]}", "evaluate.forget[1]: there is no file"),
        ("evaluate: {forget: {rows: 0-3}}", "evaluate.forget.data: this key is required"),
        ("evaluate: {forget: {data: test.jsonl, limt: 3}}", "evaluate.forget.limt: unknown key 'limt'; did you mean"),
        ("evaluate: {forget: {data: test.jsonl, tokens: all}}", "evaluate.forget.tokens: unknown key 'tokens'"),
        ("evaluate: {a b: test.jsonl}", "evaluate.a b: 'a b' cannot be a name"),
        ("evalute: {}", "evalute: unknown key 'evalute'; did you mean 'evaluate'?"),
    ],
)
def test_wrong_rows_of_evaluation_are_refused_with_their_reason(problems: Problems, line: str, says: str) -> None:
    (found,) = problems(f"{START}{line}\n")
    assert found.startswith(f"4: {says}")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("measure: retension, max: 1", ".measure: expected 'retention', 'forgetting', 'perplexity_ratio', "),
        ("max: 1", ".measure: this key is required"),
        ("measure: retention, data: test.jsonl", ".max: this key is required for retention"),
        ("measure: retention, min: 0, data: test.jsonl", ".max: this key is required for retention"),
        ("measure: forgetting, max: 1, data: test.jsonl", ".min: this key is required for forgetting"),
        ("measure: perplexity_ratio, data: test.jsonl", ".max: this key is required for perplexity_ratio"),
        ("measure: perplexity_ratio, max: 1.1", ".data: this key is required"),
        ("measure: perplexity_ratio, max: -1, data: test.jsonl", ".max: a ratio of perplexities is above 0; got"),
        ("measure: retention, max: 1", ".data: this key is required (or rows under evaluate.retain)"),
        ("measure: forgetting, min: 1", ".data: this key is required (or rows under evaluate.forget)"),
        ("measure: retention, max: 1, rows: 0-3", ".rows: rows goes with data, which is missing here"),
        ("measure: retention, max: 1, min: 2, data: test.jsonl", ".min: min 2 is above max 1"),
        ("measure: retention, max: .inf, data: test.jsonl", ".max: a number must be finite"),
        ("measure: retention, max: '1', data: test.jsonl", ".max: expected a number; got '1'"),
        ("measure: retention, max: 1, data: gone.jsonl", ".data: there is no file"),
        ("measure: retention, max: 1, dat: test.jsonl", ".dat: unknown key 'dat'; did you mean 'data'?"),
        ("measure: think_format, data: test.jsonl", ".min: this key is required for think_format"),
        ("measure: think_format, min: 0.9", ".data: this key is required"),
        ("measure: think_format, min: 99, data: test.jsonl", ".min: a share is at most 1; got min 99"),
        (
            "measure: think_format, min: 1, data: test.jsonl, max_length: 9",
            ".max_length: prompts are not cut; remove it",
        ),
        ("measure: think_format, min: 1, data: test.jsonl, samples: 0", ".samples: expected"),
        ("measure: think_format, min: 1, data: test.jsonl, tags: [<a>, <a>]", ".tags: expected two tags, neither"),
        ("measure: think_format, min: 1, data: test.jsonl, tags: [<a>]", ".tags"),
        ("measure: retention, max: 1, data: test.jsonl, longest: 9", ".longest: this key goes with think_format"),
        ("measure: smoke, longest: 9", ".longest: smoke takes neither"),
        ("measure: smoke, max: 1", ".max: smoke takes neither limits nor data; remove this key"),
        ("measure: smoke, data: test.jsonl", ".data: smoke takes neither limits nor data; remove this key"),
    ],
)
def test_a_wrong_gate_is_refused_with_its_reason(problems: Problems, keys: str, says: str) -> None:
    assert any(found.startswith(f"5: gates[0]{says}") for found in problems(f"{START}gates:\n  - {{{keys}}}\n"))


def test_gates_are_a_list_in_which_smoke_stands_once(problems: Problems) -> None:
    assert problems(f"{START}gates: {{measure: smoke}}\n") == [
        "4: gates: expected a list of gates, or [] for none; got a map"
    ]
    assert problems(f"{START}gates: [smoke]\n")[0].startswith("4: gates[0]: expected a map with some of the keys")
    assert problems(f"{START}gates:\n- {{measure: smoke}}\n- {{measure: smoke}}\n") == [
        "6: gates[1]: smoke stands twice (first in gates[0]); keep one"
    ]


def test_problems_of_fits_evaluation_and_gates_come_with_all_others(problems: Problems) -> None:
    found = problems(
        "into: original\n"
        "deltas: {change: {tuned: ./gone}}\n"
        "steps:\n"
        "  - {fit: louder, data: gone.jsonl, share: 7}\n"
        "evaluate: {retain: gone.jsonl}\n"
        "gates:\n"
        "  - {measure: retention}\n"
        "  - {measure: forgetting, min: 1}\n"
    )
    assert [each.split(": ")[:2] for each in found] == [
        ["2", "deltas.change.tuned"],
        ["4", "steps[0].share"],
        ["4", "steps[0].data"],
        ["5", "evaluate.retain"],
        ["7", "gates[0].max"],
        ["8", "gates[1].data"],
    ]


def test_the_editor_schema_knows_fits_evaluation_and_gates(methods: Mapping[str, Method]) -> None:
    made = schema(methods)
    validator = jsonschema.Draft202012Validator(made)
    validator.validate(yaml.safe_load(FULL))
    for before, after in (
        ("data: [forget.jsonl, more.jsonl], ", ""),
        ("fit: louder", "fit: soft"),
        ("share: 0.8", "shaer: 0.8"),
        ("measure: smoke", "measure: smoek"),
        ("forget: test.jsonl", "forget: 3"),
        ("limit: 9", "limt: 9"),
    ):
        assert before in FULL
        assert not validator.is_valid(yaml.safe_load(FULL.replace(before, after)))
    (fit,) = [step for step in made["properties"]["steps"]["items"]["anyOf"] if step["title"] == "fit: louder"]
    assert "reference" not in fit["properties"]["like"]
