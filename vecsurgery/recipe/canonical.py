"""The canonical text of a recipe: everything resolved and written out, the same bytes for the same meaning."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import yaml

from .grammar import plain_tokens
from .numbers import plain_number
from .references import canonical
from .selection import plain_layers
from .tree import Loader
from .types import DataSpec, DeltaSpec, GateSpec, GeometrySpec, Output, Recipe, Reference, Selection, Step
from .validation import key_names


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either our loader or a YAML 1.1 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text; with line breaks or invisible characters it is written with escapes, so that it is read back unchanged."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.yaml_implicit_resolvers = {
    start: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(start, []),
        *Loader.yaml_implicit_resolvers.get(start, []),
    ]
    for start in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
}


def canonical_text(recipe: Recipe) -> str:
    """The recipe as YAML with every key written out, paths absolute, one spelling: what is hashed and run again."""
    return yaml.dump(
        _plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1_000
    )


def with_references(recipe: Recipe, change: Callable[[Reference], Reference]) -> Recipe:
    """The recipe with every model reference replaced by `change(reference)`, and its text written anew."""

    def changed(reference: Reference | None) -> Reference | None:
        return None if reference is None else change(reference)

    recipe = replace(
        recipe,
        into=change(recipe.into),
        deltas={
            name: DeltaSpec(changed(delta.tuned), changed(delta.base), changed(delta.adapter), delta.file)
            for name, delta in recipe.deltas.items()
        },
        geometry={name: replace(geometry, model=changed(geometry.model)) for name, geometry in recipe.geometry.items()},
        steps=tuple(_with_models(step, change) for step in recipe.steps),
    )
    return replace(recipe, text=canonical_text(recipe))


def _with_models(step: Step, change: Callable[[Reference], Reference]) -> Step:
    """The step with its models changed, in `models` and in the options alike."""
    if not step.models or step.options is None:
        return step
    models = {key: change(model) for key, model in step.models.items()}
    named = {key: canonical(model) for key, model in models.items()}
    return replace(step, models=models, options=step.options.model_copy(update=named))


def _plain(recipe: Recipe) -> dict[str, Any]:
    weights = {name: recipe.weights.get(name, 1.0) for name in recipe.live}
    return {
        "into": canonical(recipe.into),
        "deltas": {name: _delta(delta) for name, delta in recipe.deltas.items()},
        "geometry": {name: _geometry(geometry) for name, geometry in recipe.geometry.items()},
        "steps": [_step(step) for step in recipe.steps],
        "weights": {name: plain_number(weight) for name, weight in weights.items()},
        "output": _output(recipe.output),
        "evaluate": {name: _data(data) for name, data in recipe.evaluate.items()},
        "gates": [_gate(gate) for gate in recipe.gates],
    }


def _output(output: Output) -> dict[str, Any]:
    values = {"format": output.format, "dtype": output.dtype}
    adapter = output.format == "adapter"
    cut = _given({"rank": output.rank, "others": output.others}) if adapter else {"shard_size": output.shard_size}
    return {**values, **cut, "keep_geometry": output.keep_geometry}


def _delta(delta: DeltaSpec) -> dict[str, str]:
    references = {"tuned": delta.tuned, "base": delta.base, "adapter": delta.adapter}
    named = {key: canonical(reference) for key, reference in references.items() if reference is not None}
    return named if delta.file is None else {"file": str(delta.file), **named}


def _geometry(geometry: GeometrySpec) -> dict[str, Any]:
    model = None if geometry.model is None else canonical(geometry.model)
    if geometry.data is None:
        return _given({"file": str(geometry.file), "model": model})
    measured = {
        "model": model,
        "tokens": plain_tokens(geometry.tokens),
        "skip_first": geometry.skip_first,
        "max_directions": geometry.max_directions,
    }
    return {**_data(geometry.data), **_given(measured)}


def _data(data: DataSpec) -> dict[str, Any]:
    return _given(
        {
            "data": [str(path) for path in data.data],
            "template": data.template,
            "rows": None if data.rows is None else f"{data.rows[0]}-{data.rows[1]}",
            "limit": data.limit,
            "max_tokens": data.max_tokens,
            "max_length": data.max_length,
            "seed": data.seed,
        }
    )


def _gate(gate: GateSpec) -> dict[str, Any]:
    limits = _given({"measure": gate.measure, "min": gate.min, "max": gate.max})
    writing = gate.writing
    written = {} if writing is None else {**vars(writing), "tags": list(writing.tags)}
    return {**limits, **({} if gate.data is None else _data(gate.data)), **written}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _step(step: Step) -> dict[str, Any]:
    named: dict[str, Any] = {"scale": plain_number(step.number)} if step.verb == "scale" else {step.verb: step.method}
    data = {} if step.data is None else _data(step.data)
    return {**named, "id": step.id, **_merge(step), **data, **_options(step), **_selection(step.selection)}


def _merge(step: Step) -> dict[str, Any]:
    """What only a merge says: the name of its result, and the weight of each delta where its method takes weights."""
    if step.result is None:
        return {}
    weights = {name: plain_number(number) for name, number in step.weights.items()}
    return {"as": step.result, **({"weights": weights} if weights else {})}


def _options(step: Step) -> Mapping[str, Any]:
    """The method's options; one that is null by default and null here is left out."""
    if step.options is None:
        return {}
    values = step.options.model_dump(mode="json", by_alias=True)
    fields = key_names(type(step.options))
    return {key: value for key, value in values.items() if value is not None or fields[key].default is not None}


def _selection(selection: Selection) -> dict[str, Any]:
    return _given(
        {
            "deltas": list(selection.deltas),
            "modules": None if selection.modules is None else list(selection.modules),
            "layers": None if selection.layers is None else plain_layers(selection.layers),
            "where": list(selection.where) or None,
            "except": list(selection.exclude) or None,
        }
    )
