"""The JSON Schema of the recipe language, for editors: made from the same models that validate."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .grammar import FitKeys, MergeKeys, RecipeKeys, ScaleKeys, StepKeys
from .steps import Method


def schema(methods: Mapping[str, Method]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe whose steps may use `methods`.

    It knows keys, types, ranges and defaults; names that a recipe declares itself, files, and rules between keys are
    checked by `load` alone.
    """
    models: list[type[BaseModel]] = [
        RecipeKeys,
        StepKeys,
        FitKeys,
        MergeKeys,
        ScaleKeys,
        *(method.options for method in methods.values()),
    ]
    unique = list(dict.fromkeys(models))
    references, definitions = models_json_schema(
        [(model, "validation") for model in unique], by_alias=True, ref_template="#/$defs/{model}"
    )
    models_by_name = definitions["$defs"]
    name_of = {model: references[model, "validation"]["$ref"].removeprefix("#/$defs/") for model in unique}
    keys: dict[str, type[BaseModel]] = {"project": StepKeys, "fit": FitKeys, "merge": MergeKeys}
    common = {verb: models_by_name[name_of[model]] for verb, model in keys.items()}
    steps = [models_by_name[name_of[ScaleKeys]]]
    for method in sorted(methods.values(), key=lambda method: method.name):
        steps.append(_step(method, common[method.verb], models_by_name[name_of[method.options]]))
    recipe = models_by_name[name_of[RecipeKeys]]
    recipe["properties"]["steps"]["items"] = {"anyOf": steps}
    inlined = {name_of[model] for model in unique}
    rest = {name: _cleaned(each) for name, each in models_by_name.items() if name not in inlined}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_cleaned({**recipe, "title": "vecsurgery recipe"}),
        "$defs": rest,
    }


def _step(method: Method, common: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The step that names a method, with the method's options beside the keys that every such step has."""
    description = str(options.get("description", "")).strip()
    needed = [method.verb, *(["data"] if method.verb == "fit" else []), *common.get("required", [])]
    needed += options.get("required", [])
    return {
        "type": "object",
        "title": f"{method.verb}: {method.name}",
        **({"description": description} if description else {}),
        "properties": {method.verb: {"const": method.name}, **options.get("properties", {}), **common["properties"]},
        "required": needed,
        "additionalProperties": False,
    }


def _cleaned(value: Any) -> Any:
    """The schema without our marks of fields that name something, and without defaults that only say "absent"."""
    if isinstance(value, dict):
        left_out = {"default"} if value.get("default", "") is None else set()
        left_out |= {"reference"} if value.get("reference") in ("geometry", "model") else set()
        return {key: _cleaned(each) for key, each in value.items() if key not in left_out}
    return [_cleaned(each) for each in value] if isinstance(value, list) else value
