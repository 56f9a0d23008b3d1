"""The canonical text: one spelling for one meaning, and the same recipe when it is read again."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecsurgery.recipe import Method, Recipe, from_mapping, load

Read = Callable[..., Recipe]


def _without_spelling(recipe: Recipe) -> Any:
    """The recipe without what only tells how and where it was written."""
    steps = tuple(replace(step, line=0) for step in recipe.steps)
    weights = {name: recipe.weights.get(name, 1.0) for name in recipe.deltas}
    deltas = {
        name: [each and (each.path, each.model, each.revision) for each in (delta.tuned, delta.base, delta.adapter)]
        for name, delta in recipe.deltas.items()
    }
    geometry = {name: replace(each, model=None) for name, each in recipe.geometry.items()}
    return recipe.into.model, deltas, geometry, steps, weights, recipe.output, recipe.text


def _again(recipe: Recipe, folder: Path, methods: Mapping[str, Method]) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "again.yaml").write_text(recipe.text, encoding="utf-8")
    return load(folder / "again.yaml", methods)


FULL = """\
into: original
deltas: {change: {tuned: tuned, base: org/base@v1}, no: {tuned: original+adapter}}
geometry:
  kept: {data: [retain.jsonl, more.jsonl], template: chat.jinja, rows: 0-9, limit: 3, max_tokens: 9, max_length: 8,
         seed: 2, model: tuned, tokens: {around: ["<a>", "1e-3"], before: 0, after: 2}, max_directions: 7}
  read: {file: old.safetensors}
steps:
  - {project: soft, id: first, geometry: kept, strength: 3, mean: null, others: drop, modules: [q, o], layers: [0, 2-5]}
  - {project: hard, geometry: read, deltas: ["no"], where: "*.mlp.*", except: ["*.1.*"]}
  - {scale: [{filter: mlp, value: [0, 1e-9]}, {value: 2}]}
weights: {"no": [0, 1]}
output: {dtype: bfloat16, shard_size: 12MB, keep_geometry: false}
"""


def test_reading_the_canonical_text_gives_the_same_recipe(
    read: Read, valid: str, folder: Path, methods: Mapping[str, Method]
) -> None:
    for text in (valid, FULL):
        recipe = read(text)
        assert _without_spelling(_again(recipe, folder / "out", methods)) == _without_spelling(recipe)


def test_spelling_does_not_change_the_canonical_text(read: Read, valid: str, folder: Path) -> None:
    text = read(valid).text
    spelled = valid.replace("1e-3", "0.001").replace("original", str(folder / "original")).replace("0-3", "[3, 0-2]")
    assert read(f"# a comment\n{spelled}output: {{shard_size: 5000MB}}\n").text == text
    assert read(valid, "soft.keep=0.002").text != text


def test_old_yaml_readers_see_the_same_names(read: Read) -> None:
    plain = yaml.safe_load(read(FULL).text)
    assert list(plain["deltas"]) == ["change", "no"]
    assert plain["geometry"]["kept"]["tokens"]["around"] == ["<a>", "1e-3"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tag=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(str.strip),
    number=st.floats(-1e6, 1e6, allow_nan=False),
)
def test_any_text_and_number_survives(folder: Path, methods: Mapping[str, Method], tag: str, number: float) -> None:
    recipe = from_mapping(
        {
            "into": "original",
            "deltas": {"change": {"tuned": "tuned"}},
            "geometry": {"kept": {"data": "retain.jsonl", "tokens": {"around": [tag]}}},
            "steps": [{"scale": number}],
        },
        methods,
        folder=folder,
    )
    assert _without_spelling(_again(recipe, folder / "out", methods)) == _without_spelling(recipe)


@pytest.mark.parametrize("word", ["no", "1e-3", "~", "2024-01-01", "0o7", "1_0", "true", ".5"])
def test_words_that_look_like_something_else_stay_text(folder: Path, methods: Mapping[str, Method], word: str) -> None:
    values = {"kept": {"data": "retain.jsonl", "tokens": {"around": [word]}}}
    mapping = {"into": "original", "deltas": {"change": {"tuned": "tuned"}}, "geometry": values}
    recipe = from_mapping(mapping, methods, folder=folder)
    assert _again(recipe, folder / "out", methods).geometry["kept"].tokens == recipe.geometry["kept"].tokens
