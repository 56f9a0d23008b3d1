"""Merges: what a step says that makes one delta of several, under a new name, and which names are left behind it."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel

from .grammar import MergeKeys, StepKeys, number_kind
from .live import NAME, Live
from .problems import Problems, join, unknown
from .tree import Node
from .types import Selection
from .validation import key_names, validated
from .weighing import is_weights

_PLACES = [key for key in key_names(StepKeys) if key not in key_names(MergeKeys)]
"""Keys with which other steps choose tensors."""


class Merging(Protocol):
    """What the recipe needs to know of a merge, beside what it needs of every method."""

    @property
    def name(self) -> str:
        """The name in `merge: NAME`."""
        ...

    @property
    def options(self) -> type[BaseModel]:
        """The options."""
        ...

    @property
    def least(self) -> int:
        """Fewest deltas that it merges."""
        ...

    @property
    def most(self) -> int | None:
        """Most deltas that it merges; None for any number."""
        ...

    @property
    def weighted(self) -> bool:
        """Whether it takes a weight for each delta."""
        ...


def refuse_places(node: Node, path: str, problems: Problems) -> None:
    """Records the keys of other steps that choose tensors."""
    for key in _PLACES:
        if key in node.children():
            what = "a merge takes every tensor of its deltas, since it replaces them; remove this key (numbers may "
            problems.add(node.children()[key].place, join(path, key), what + "differ: a list of {filter, value})")


def merge_keys(
    node: Node, path: str, method: Merging, selection: Selection | None, live: Live, problems: Problems
) -> tuple[str, dict[str, Any]] | None:
    """The name and the weights of a merge's result; None where something is wrong (then recorded).

    `live`: the deltas that the step may name.
    """
    own = Node({key: child for key, child in node.children().items() if key in key_names(MergeKeys)}, node.place)
    if selection is not None:
        _check_weights(node, path, method, selection.deltas, problems)
    keys = validated(own, MergeKeys, path, problems)
    _check_result(node, path, live, problems)
    if selection is None:
        return None
    _check_count(node, path, method, selection.deltas, problems)
    for key, field in key_names(method.options).items():
        if number_kind(field) == "each":
            _check_names(node.child(key), join(path, key), selection.deltas, problems)
            if field.is_required():
                _check_whole(node.child(key), join(path, key), selection.deltas, problems)
    if keys is None:
        return None
    return keys.result, {name: keys.weights.get(name, 1.0) for name in selection.deltas} if method.weighted else {}


def below(node: Node, path: str, live: Live) -> Live:
    """The deltas that steps below this one may name, whatever else is wrong with it."""
    result = node.child("as")
    if node.child("merge") is None or result is None or not isinstance(result.value, str) or live.taken(result.value):
        return live
    named = [child for key in ("delta", "deltas") if (child := node.child(key)) is not None]
    chosen = [name for child in named for _, _, name in child.texts()]
    return live.merged([name for name in live.names if not named or name in chosen], result.value, path)


def _check_result(node: Node, path: str, live: Live, problems: Problems) -> None:
    result = node.child("as")
    if result is None or not isinstance(result.value, str) or not result.value:
        return
    if not NAME.fullmatch(result.value):
        what = f"'{result.value}' cannot be a name; expected letters, digits, '_' and '-'"
        problems.add(result.place, join(path, "as"), what)
    elif live.taken(result.value):
        what = f"the name '{result.value}' is taken by a delta; expected a new one"
        problems.add(result.place, join(path, "as"), what)


def _check_count(node: Node, path: str, method: Merging, deltas: tuple[str, ...], problems: Problems) -> None:
    least, most = method.least, method.most
    if least <= len(deltas) and (most is None or len(deltas) <= most):
        return
    key = next((key for key in ("delta", "deltas") if node.child(key) is not None), None)
    place = node.place if key is None else node.children()[key].place
    came = f"there are {len(deltas)}" if key is None else f"{len(deltas)} {'is' if len(deltas) == 1 else 'are'} named"
    wanted = f"{'at least ' if most is None else ''}{'one delta' if least == 1 else f'{least} deltas'}"
    if most is not None and most != least:
        wanted = f"{least} to {most} deltas"
    hint = "name those that it shall merge"
    if method.most == 1:  # of two models, as mergekit counts
        hint = "it goes from `into` to one other model: make one of the two `into`, and name the other"
    elif len(deltas) < least:
        hint = "declare another, or choose another method"
    what = f"{method.name} takes {wanted}, {came}: {', '.join(deltas)}; {hint}"
    problems.add(place, join(path, key or "deltas"), what)


def _check_weights(node: Node, path: str, method: Merging, deltas: tuple[str, ...], problems: Problems) -> None:
    weights = node.child("weights")
    if weights is None:
        return
    if not method.weighted:
        what = f"{method.name} takes no weights; remove this key"
        problems.add(node.children()["weights"].place, join(path, "weights"), what)
        return
    if is_weights(weights, join(path, "weights"), deltas, problems):
        _check_names(weights, join(path, "weights"), deltas, problems)


def _check_names(node: Node | None, path: str, deltas: Iterable[str], problems: Problems) -> None:
    """Every key of a map from deltas to numbers must be a delta that is merged."""
    entries: Mapping[str, Node] = node.value if node is not None and isinstance(node.value, dict) else {}
    for name, child in entries.items():
        if name not in deltas:
            problems.add(child.place, join(path, name), unknown("delta of this merge", name, deltas))


def _check_whole(node: Node | None, path: str, deltas: Iterable[str], problems: Problems) -> None:
    """A map of numbers that have no default must have one for every delta."""
    if node is None or not isinstance(node.value, dict):
        return
    for name in deltas:
        if name not in node.value:
            problems.add(node.place, join(path, name), "this key is required: every delta needs its number")
