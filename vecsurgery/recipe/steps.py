"""Steps: from the tree's list to frozen steps with validated options."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from .grammar import TOP_LEVEL, ScaleKeys, StepKeys
from .problems import Place, Problems, join, nearest, unknown
from .sources import step_id
from .tree import Node, from_python
from .types import Selection, Step
from .validation import check_keys, is_map, key_names, validated

VERBS = ("project", "scale")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""What a delta, a geometry or a step may be called: names become parts of addresses and of file names."""


class Method(Protocol):
    """What the recipe needs to know of a projector."""

    @property
    def name(self) -> str:
        """The name in `project: NAME`."""
        ...

    @property
    def options(self) -> type[BaseModel]:
        """The options; a field with `json_schema_extra={"reference": "geometry"}` names a declared geometry."""
        ...

    @property
    def joint(self) -> bool:
        """Whether it wants all deltas of a step at once."""
        ...


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
    built = build_steps(from_python(list(steps), place, problems), methods, deltas, geometry, problems)
    problems.raise_any()
    return built


def build_steps(
    node: Node | None,
    methods: Mapping[str, Method],
    deltas: Collection[str],
    geometry: Collection[str],
    problems: Problems,
) -> tuple[Step, ...]:
    """The steps of the tree; those with problems are left out, and the problems recorded."""
    if node is None:
        return ()
    if not isinstance(node.value, tuple):
        problems.add(node.place, "steps", f"expected a list of steps; got {node.describe()}")
        return ()
    built = [
        _step(step, join("steps", index), methods, deltas, geometry, problems) for index, step in enumerate(node.value)
    ]
    _check_ids(node.value, problems)
    return tuple(step for step in built if step is not None)


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


def _step(
    node: Node,
    path: str,
    methods: Mapping[str, Method],
    deltas: Collection[str],
    geometry: Collection[str],
    problems: Problems,
) -> Step | None:
    if not is_map(node, [*VERBS, *key_names(StepKeys)], path, problems):
        return None
    verbs = [verb for verb in VERBS if verb in node.children()]
    if len(verbs) != 1:
        _record_verb(node, verbs, path, problems)
        return None
    selection = _selection(node, path, deltas, problems)
    if verbs == ["scale"]:
        scale = validated(node, ScaleKeys, path, problems)
        if scale is None or selection is None:
            return None
        return Step(scale.id or "scale", "scale", "scale", selection, number=scale.scale, line=node.place.line or 0)
    method = _method(node, path, methods, problems)
    if method is None:
        return None
    check_keys(node, ["project", *key_names(StepKeys), *key_names(method.options)], path, problems)
    _check_geometry(node, path, method, geometry, problems)
    own = {key: child for key, child in node.children().items() if key in key_names(method.options)}
    options = validated(Node(own, node.place), method.options, path, problems)
    if options is None or selection is None:
        return None
    name = cast(str, step_id(node))
    return Step(name, "project", method.name, selection, options=options, line=node.place.line or 0)


def _record_verb(node: Node, verbs: Sequence[str], path: str, problems: Problems) -> None:
    """A step with no verb or with two. The key that may have been meant as the verb is named."""
    if verbs:
        problems.add(node.place, path, f"a step has one of the keys {', '.join(VERBS)}; got both")
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


def _method(node: Node, path: str, methods: Mapping[str, Method], problems: Problems) -> Method | None:
    named = node.children()["project"]
    if isinstance(named.value, str) and named.value in methods:
        return methods[named.value]
    if isinstance(named.value, str):
        what = unknown("projector", named.value, sorted(methods))
    else:
        what = f"expected the name of a projector ({', '.join(sorted(methods))}); got {named.describe()}"
    problems.add(named.place, join(path, "project"), what)
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
    fields = key_names(options).items()
    extras = [(key, field.json_schema_extra) for key, field in fields]
    return [key for key, extra in extras if isinstance(extra, dict) and extra.get("reference") == "geometry"]


def _selection(node: Node, path: str, deltas: Collection[str], problems: Problems) -> Selection | None:
    """What the step touches, from the keys that every step may have."""
    wrong = _check_deltas(node, path, deltas, problems)
    own = {key: child for key, child in node.children().items() if key in key_names(StepKeys)}
    keys = validated(Node(own, node.place), StepKeys, path, problems)
    if keys is None or wrong:
        return None
    chosen = (keys.delta,) if keys.delta is not None else keys.deltas
    return Selection(
        deltas=tuple(deltas) if chosen is None else chosen,
        modules=None if keys.modules is None else tuple(dict.fromkeys(keys.modules)),
        layers=keys.layers,
        where=keys.where or (),
        exclude=keys.exclude or (),
    )


def _check_deltas(node: Node, path: str, deltas: Collection[str], problems: Problems) -> bool:
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
            if name not in deltas:
                problems.add(child.place, where, unknown("delta", name, deltas))
                wrong = True
            elif name in seen:
                problems.add(child.place, where, f"the delta '{name}' stands twice; keep one")
                wrong = True
            seen.add(name)
    return wrong
