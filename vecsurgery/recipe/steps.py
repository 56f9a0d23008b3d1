"""Steps: from the tree's list to frozen steps with validated options."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel

from .grammar import TOP_LEVEL, DataKeys, MergeKeys, ScaleKeys, StepKeys
from .live import NAME, Live
from .merging import Merging, below, merge_keys, refuse_places
from .named import Named
from .problems import Place, Problems, join, nearest, unknown
from .references import canonical
from .sources import METHOD_VERBS, step_id
from .tree import Node, from_python
from .types import Reference, Selection, Step
from .validation import check_keys, is_map, key_names, validated
from .weighing import refuse_weights

VERBS = (*METHOD_VERBS, "scale")
KINDS = {"project": "projector", "fit": "fit", "merge": "merge method"}
"""Verb → what its method is called."""
_NAMED = 3
"""Most methods that a message names as those that have an option."""
Verb = Literal["project", "fit", "merge"]


class Method(Protocol):
    """What the recipe needs to know of a projector, a fit or a merge (which says more: `Merging`)."""

    @property
    def verb(self) -> Verb:
        """The key of a step that names it."""
        ...

    @property
    def name(self) -> str:
        """The name in `project: NAME`, `fit: NAME` or `merge: NAME`."""
        ...

    @property
    def options(self) -> type[BaseModel]:
        """The options. A field with `json_schema_extra={"reference": "geometry"}` names a declared geometry, one with
        `{"reference": "model"}` a model.
        """
        ...


@dataclass(frozen=True)
class Known:
    """What a step may name: methods, deltas that are there, geometries that the recipe declares, models and files."""

    methods: Mapping[str, Method]
    deltas: Live
    geometry: Collection[str]
    named: Named


def parse_steps(
    steps: Sequence[Mapping[str, Any]],
    methods: Mapping[str, Method],
    *,
    deltas: Collection[str],
    geometry: Collection[str] = (),
) -> tuple[Step, ...]:
    """The steps of a list of maps, as a recipe's `steps` would be read, for callers that have models in memory.

    `deltas` and `geometry`: the names that steps may use. Raises RecipeError with everything that is wrong.
    """
    problems = Problems()
    place = Place("steps", None, Path())
    known = Known(methods, Live(tuple(deltas)), geometry, Named(problems, require_files=True))
    built, _ = build_steps(from_python(list(steps), place, problems), known, problems)
    problems.raise_any()
    return built


def build_steps(node: Node | None, known: Known, problems: Problems) -> tuple[tuple[Step, ...], Live]:
    """The steps of the tree, and the deltas that are left below them; steps with problems are left out, and the
    problems recorded.
    """
    if node is None:
        return (), known.deltas
    if not isinstance(node.value, tuple):
        problems.add(node.place, "steps", f"expected a list of steps; got {node.describe()}")
        return (), known.deltas
    built = []
    for index, step in enumerate(node.value):
        path = join("steps", index)
        built.append(_step(step, path, known, problems))
        known = replace(known, deltas=below(step, path, known.deltas))
    _check_ids(node.value, problems)
    return tuple(step for step in built if step is not None), known.deltas


def _check_ids(steps: Sequence[Node], problems: Problems) -> None:
    seen: dict[str, int] = {}
    for index, step in enumerate(steps):
        name = step_id(step)
        if name is None:
            continue
        path, own = join("steps", index), step.child("id")
        place = step.place if own is None else own.place
        if own is not None and (not NAME.fullmatch(name) or name in TOP_LEVEL):
            what = f"'{name}' cannot be a step's id; expected letters, digits, '_' and '-', and no top-level key"
            problems.add(place, join(path, "id"), what)
        elif name in seen:
            what = f"steps[{seen[name]}] has the id '{name}' already; give each step its own, as in id: {name}-2"
            problems.add(place, join(path, "id"), what)
        seen.setdefault(name, index)


def _step(node: Node, path: str, known: Known, problems: Problems) -> Step | None:
    if not is_map(node, [*VERBS, *key_names(StepKeys)], path, problems):
        return None
    verbs = verbs_of(node, known.methods)
    if len(verbs) != 1:
        _record_verb(node, verbs, path, problems)
        return None
    selection = _selection(node, path, known.deltas, problems)
    touched = known.deltas.names if selection is None else selection.deltas
    if verbs == ["scale"]:
        refuse_weights(node, path, touched, problems, beside=", or the number of the scale itself")
        scale = validated(node, ScaleKeys, path, problems)
        if scale is None or selection is None:
            return None
        return Step(scale.id or "scale", "scale", "scale", selection, number=scale.scale, line=node.place.line or 0)
    verb = cast(Verb, verbs[0])
    method = _method(node, verb, path, known.methods, problems)
    if method is None:
        return None
    if verb == "merge":
        return _merge(node, path, method, selection, known, problems)
    if not {"weight", "weights"} & key_names(method.options).keys():
        refuse_weights(node, path, touched, problems, beside=", or another step `scale: …`")
    beside = {**key_names(StepKeys), **(key_names(DataKeys) if verb == "fit" else {})}
    _check_keys(node, method, [verb, *beside], path, known, problems)
    _check_geometry(node, path, method, known.geometry, problems)
    models = {key: known.named.reference(node.child(key), join(path, key)) for key in model_keys(method.options)}
    found = {key: model for key, model in models.items() if model is not None}
    options = validated(_own(node, method, found), method.options, path, problems)
    rows = None
    if verb == "fit":
        known.named.require_data(node, path)
        rows = known.named.data(node, path, validated(_part(node, DataKeys), DataKeys, path, problems))
        _require_one_delta(node, path, method.name, selection, problems)
    if options is None or selection is None:
        return None
    name, line = cast(str, step_id(node)), node.place.line or 0
    return Step(name, verb, method.name, selection, options=options, line=line, data=rows, models=found)


def _merge(
    node: Node, path: str, method: Method, selection: Selection | None, known: Known, problems: Problems
) -> Step | None:
    refuse_places(node, path, problems)
    _check_keys(node, method, ["merge", *key_names(MergeKeys)], path, known, problems)
    options = validated(_part(node, method.options), method.options, path, problems)
    found = merge_keys(node, path, cast(Merging, method), selection, known.deltas, problems)
    if options is None or selection is None or found is None:
        return None
    name, line = cast(str, step_id(node)), node.place.line or 0
    result, weights = found
    return Step(name, "merge", method.name, selection, options=options, line=line, result=result, weights=weights)


def _check_keys(node: Node, method: Method, beside: Sequence[str], path: str, known: Known, problems: Problems) -> None:
    """Records the keys that are neither in `beside` nor the method's; of one that another method has, whose it is."""
    own = list(key_names(method.options))
    for key, child in node.children().items():
        others = [each for _, each in known.methods.items() if key in key_names(each.options)]
        if key in own or key in beside or not others:
            continue
        same = [each.name for each in others if each.verb == method.verb] or [each.name for each in others]
        owners = ", ".join(sorted(same)[:_NAMED]) + (f" and {len(same) - _NAMED} more" if len(same) > _NAMED else "")
        has = f"has {', '.join(own)}" if own else "has no options"
        what = f"unknown key '{key}': it is an option of {owners}; {method.name} {has}"
        problems.add(child.place, join(path, key), what)
    check_keys(node, [*beside, *own], path, problems)


def verbs_of(node: Node, methods: Mapping[str, Method]) -> list[str]:
    """The keys of a step that say what it does; one that is an option of the method named before it does not."""
    verbs = [verb for verb in VERBS if verb in node.children()]
    if len(verbs) < 2:
        return verbs
    named = node.children()[verbs[0]].value
    method = methods.get(named) if isinstance(named, str) else None
    own = key_names(method.options) if method is not None else {}
    return [verb for verb in verbs if verb not in own]


def _part(node: Node, keys: type[BaseModel]) -> Node:
    """The map with the keys of one options model alone."""
    return Node({key: child for key, child in node.children().items() if key in key_names(keys)}, node.place)


def _own(node: Node, method: Method, models: Mapping[str, Reference]) -> Node:
    """The method's options; models stand there as text that means the same from any folder."""
    own = dict(_part(node, method.options).children())
    return Node(own | {key: Node(canonical(model), own[key].place) for key, model in models.items()}, node.place)


def _require_one_delta(node: Node, path: str, method: str, selection: Selection | None, problems: Problems) -> None:
    """A fit finds coefficients for one delta, measured against that delta as it was loaded."""
    if selection is None or len(selection.deltas) < 2:
        return
    key = next((key for key in ("delta", "deltas") if node.child(key) is not None), None)
    place = node.place if key is None else node.children()[key].place
    came = f"the recipe has {len(selection.deltas)}" if key is None else f"{len(selection.deltas)} are named"
    what = f"{method} takes one delta, {came}: {', '.join(selection.deltas)}; name one, as in delta: "
    problems.add(place, join(path, key or "delta"), what + selection.deltas[0])


def _record_verb(node: Node, verbs: Sequence[str], path: str, problems: Problems) -> None:
    """A step with no verb or with two. The key that may have been meant as the verb is named."""
    if verbs:
        problems.add(node.place, path, f"a step has one of the keys {', '.join(VERBS)}; got {' and '.join(verbs)}")
        return
    known = [*VERBS, *key_names(StepKeys)]
    for key, child in node.children().items():
        if key not in known and nearest(key, known) in VERBS:
            problems.add(child.place, join(path, key), unknown("key", key, known))
            return
    first = next((key for key in node.children() if key not in known), None)
    if first is not None:
        child = node.children()[first]
        problems.add(child.place, join(path, first), f"unknown key '{first}'; a step has one of: {', '.join(VERBS)}")
    else:
        problems.add(node.place, path, f"a step needs one of the keys: {', '.join(VERBS)}")


def _method(node: Node, verb: Verb, path: str, methods: Mapping[str, Method], problems: Problems) -> Method | None:
    named, kind = node.children()[verb], KINDS[verb]
    names = sorted(name for name, method in methods.items() if method.verb == verb)
    method = methods.get(named.value) if isinstance(named.value, str) else None
    if method is not None and method.verb == verb:
        return method
    if method is not None:
        what = f"'{method.name}' is a {KINDS[method.verb]}; write {method.verb}: {method.name}"
    elif isinstance(named.value, str):
        what = unknown(kind, named.value, names)
    else:
        what = f"expected the name of a {kind} ({', '.join(names)}); got {named.describe()}"
    problems.add(named.place, join(path, verb), what)
    return None


def _check_geometry(node: Node, path: str, method: Method, geometry: Collection[str], problems: Problems) -> None:
    """Every option that names a geometry must name a declared one."""
    for key in geometry_keys(method.options):
        named = node.child(key)
        for index, child, name in named.texts() if named is not None else ():
            if name not in geometry:
                where = join(path, key) if index is None else join(join(path, key), index)
                problems.add(child.place, where, unknown("geometry", name, geometry))


def geometry_keys(options: type[BaseModel]) -> list[str]:
    """The options that name a geometry."""
    return _reference_keys(options, "geometry")


def model_keys(options: type[BaseModel]) -> list[str]:
    """The options that name a model."""
    return _reference_keys(options, "model")


def _reference_keys(options: type[BaseModel], kind: str) -> list[str]:
    extras = [(key, field.json_schema_extra) for key, field in key_names(options).items()]
    return [key for key, extra in extras if isinstance(extra, dict) and extra.get("reference") == kind]


def _selection(node: Node, path: str, deltas: Live, problems: Problems) -> Selection | None:
    """What the step touches, from the keys that every step may have."""
    wrong = _check_deltas(node, path, deltas, problems)
    keys = validated(_part(node, StepKeys), StepKeys, path, problems)
    if keys is None or wrong:
        return None
    chosen = (keys.delta,) if keys.delta is not None else keys.deltas
    return Selection(
        deltas=deltas.names if chosen is None else chosen,
        modules=None if keys.modules is None else tuple(dict.fromkeys(keys.modules)),
        layers=keys.layers,
        where=keys.where or (),
        exclude=keys.exclude or (),
    )


def _check_deltas(node: Node, path: str, deltas: Live, problems: Problems) -> bool:
    """Whether something is wrong with `delta` and `deltas`; recorded."""
    wrong = False
    if node.child("delta") is not None and node.child("deltas") is not None:
        problems.add(node.children()["deltas"].place, join(path, "deltas"), "give one of delta and deltas, not both")
        wrong = True
    for key in ("delta", "deltas"):
        named = node.child(key)
        seen: set[str] = set()
        for index, child, name in named.texts() if named is not None else ():
            where = join(path, key) if index is None else join(join(path, key), index)
            if name not in deltas.names:
                problems.add(child.place, where, deltas.missing(name))
                wrong = True
            elif name in seen:
                problems.add(child.place, where, f"the delta '{name}' stands twice; keep one")
                wrong = True
            seen.add(name)
    return wrong
