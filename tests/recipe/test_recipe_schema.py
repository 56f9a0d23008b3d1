"""The editor schema agrees with what `load` accepts."""

from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
import yaml

from vecsurgery.recipe import Method, schema, shipped


@pytest.fixture
def validator(methods: Mapping[str, Method]) -> Any:
    made = schema(methods)
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_a_valid_recipe_validates(validator: Any, valid: str) -> None:
    validator.validate(yaml.safe_load(valid.replace("1e-3", "0.001")))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("into: original", "int: original"),
        ("keep:", "kep:"),
        ("keep: 1e-3", "keep: 2"),
        ("project: soft", "project: sotf"),
        ("tuned:", "tund:"),
        ("data: retain.jsonl", "data: 3"),
        ("scale: 0.5", "scale: [{filter: a}]"),
        ("weights: {change: 2}", "weights: {change: x}"),
    ],
)
def test_a_wrong_recipe_does_not_validate(validator: Any, valid: str, before: str, after: str) -> None:
    assert before in valid
    wrong = valid.replace(before, after).replace("1e-3", "0.001")
    assert not validator.is_valid(yaml.safe_load(wrong))


def test_every_option_carries_its_sentence_and_default(methods: Mapping[str, Method]) -> None:
    steps = schema(methods)["properties"]["steps"]["items"]["anyOf"]
    by_title = {step["title"]: step["properties"] for step in steps}
    assert by_title["project: hard"]["rtol"]["default"] == 0.1
    assert by_title["project: hard"]["rtol"]["description"] == "Where to cut."
    assert "reference" not in by_title["project: hard"]["geometry"]
    for properties in by_title.values():
        assert all(key in ("project", "fit", "merge") or "description" in value for key, value in properties.items())


def test_the_schema_does_not_change_from_call_to_call(methods: Mapping[str, Method]) -> None:
    assert schema(methods) == schema(dict(list(methods.items())[::-1]))


@pytest.mark.parametrize("name", shipped.names())
def test_shipped_recipes_validate_with_the_methods_of_this_package(name: str) -> None:
    from vecsurgery import methods

    jsonschema.validate(yaml.safe_load(shipped.text(name)), schema(methods.builtin()))
