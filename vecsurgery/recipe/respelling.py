"""Misspelt keys and methods: told once, then read as what was meant.

So the mistakes below a misspelt key are found in the same reading, and what follows from it (a required key that is
missing) is not told as a mistake of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher

from pydantic import BaseModel

from .grammar import DataKeys, DeltaKeys, GateKeys, GeometryKeys, MergeKeys, OutputKeys, ScaleKeys, StepKeys
from .problems import Problems, join, nearest, unknown
from .steps import KINDS, VERBS, Method, verbs_of
from .tree import Node
from .validation import key_names

_ALIKE, _LONGER = 0.75, 2
"""Least likeness of two words, and most letters more, at which one is read as the other: two swapped letters in a word
of four, but not `tokens` as `max_tokens`. Beyond that the nearest match is a guess.
"""
Change = Callable[[Node, str], Node]


def respelled(root: Node, methods: Mapping[str, Method], problems: Problems, *, top_level: Iterable[str]) -> Node:
    """The tree of a recipe with misspelt keys and methods as they were meant; each is recorded as a problem.

    `top_level`: the keys that a recipe may have here.
    """

    def keys_of(model: type[BaseModel]) -> Change:
        return lambda node, path: _keys(node, key_names(model), path, problems)

    def step(node: Node, path: str) -> Node:
        return _step(node, path, methods, problems)

    changes: dict[str, Change] = {
        "deltas": lambda node, path: _each(node, path, keys_of(DeltaKeys)),
        "geometry": lambda node, path: _each(node, path, keys_of(GeometryKeys)),
        "steps": lambda node, path: _each(node, path, step),
        "output": keys_of(OutputKeys),
        "evaluate": lambda node, path: _each(node, path, keys_of(DataKeys)),
        "gates": lambda node, path: _each(node, path, keys_of(GateKeys)),
    }
    root = _keys(root, top_level, "", problems)
    entries = {key: changes[key](node, key) if key in changes else node for key, node in root.children().items()}
    return Node(entries, root.place)


def _each(node: Node, path: str, change: Change) -> Node:
    """Every entry of a map or list changed; any other value as it is."""
    if isinstance(node.value, dict):
        return Node({key: change(child, join(path, key)) for key, child in node.value.items()}, node.place)
    if isinstance(node.value, tuple):
        items = enumerate(node.value)
        return Node(tuple(change(child, join(path, index)) for index, child in items), node.place)
    return node


def _keys(node: Node, known: Iterable[str], path: str, problems: Problems) -> Node:
    """The map with unknown keys renamed to the known ones that they resemble, where those are free."""
    known, children = list(known), node.children()
    meant = {key: _meant(key, known) for key in children if key not in known}
    wanted = Counter(name for name in meant.values() if name is not None)
    renamed = {key: name for key, name in meant.items() if name is not None and wanted[name] == 1}
    renamed = {key: name for key, name in renamed.items() if name not in children}
    for key in renamed:
        problems.add(children[key].place, join(path, key), unknown("key", key, known))
    return Node({renamed.get(key, key): child for key, child in children.items()}, node.place) if renamed else node


def _step(node: Node, path: str, methods: Mapping[str, Method], problems: Problems) -> Node:
    """One step: its verb, then the method that it names, then the keys that this method has."""
    if not isinstance(node.value, dict):
        return node
    verbs = verbs_of(node, methods)
    if not verbs:
        # Only a key that resembles a verb: what the other keys may be called depends on the method.
        unlike = [key for key in node.value if key not in key_names(StepKeys) and _meant(key, VERBS) is None]
        node = _keys(node, [*VERBS, *key_names(StepKeys), *unlike], path, problems)
        verbs = verbs_of(node, methods)
    if verbs == ["scale"]:
        return _keys(node, key_names(ScaleKeys), path, problems)
    if len(verbs) != 1:
        return node
    (verb,) = verbs
    method, node = _method(node, verb, path, methods, problems)
    if method is None:
        return node
    beside: dict[str, type[BaseModel]] = {"fit": DataKeys, "merge": MergeKeys}
    more = key_names(beside[verb]) if verb in beside else {}
    return _keys(node, [verb, *key_names(StepKeys), *more, *key_names(method.options)], path, problems)


def _method(
    node: Node, verb: str, path: str, methods: Mapping[str, Method], problems: Problems
) -> tuple[Method | None, Node]:
    """The method that a step names, and the step with that name spelt right; None where it cannot be told."""
    children = node.children()
    named = children[verb]
    if not isinstance(named.value, str):
        return None, node
    names = sorted(name for name, method in methods.items() if method.verb == verb)
    if named.value in methods:
        method = methods[named.value]
        return (method if method.verb == verb else None), node
    meant = _meant(named.value, names)
    if meant is None:
        return None, node
    problems.add(named.place, join(path, verb), unknown(KINDS[verb], named.value, names))
    return methods[meant], Node({**children, verb: Node(meant, named.place)}, node.place)


def _meant(word: str, known: Iterable[str]) -> str | None:
    match = nearest(word, known)
    if match is None or abs(len(word) - len(match)) > _LONGER:
        return None
    return match if SequenceMatcher(None, word.lower(), match.lower()).ratio() >= _ALIKE else None
