"""The recipe's tree from its files and overrides: `extends` chains and `--set`."""

from collections.abc import Sequence
from pathlib import Path

from . import shipped
from .problems import OVERRIDE, Place, Problems, unknown
from .tree import Node, merged, read_text

METHOD_VERBS = ("project", "fit", "merge")
"""Keys of a step whose value names a method."""


def read_file(path: Path, problems: Problems) -> Node | None:
    """The tree of a recipe file with everything that it extends merged under it; None where there is none."""
    return _read(path, Place(str(path), None, path.parent), (), problems)


def _read(path: Path, named_at: Place, chain: tuple[Path, ...], problems: Problems) -> Node | None:
    """`named_at`: where the file is asked for; `chain`: the files that lead to it, from the first."""
    asked = "extends" if chain else ""
    try:
        real = path.resolve()
        if real in chain:
            names = " → ".join(each.name for each in (*chain[chain.index(real) :], real))
            problems.add(named_at, asked, f"recipes extend each other in a circle: {names}")
            return None
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(named_at, asked, f"the recipe {path} is not UTF-8 text (byte {error.start})")
        return None
    except (OSError, RuntimeError, ValueError) as error:  # missing, a folder, a circle of links, an unknown ~user
        reason = error.strerror if isinstance(error, OSError) else None
        missing = f"; {_advice(path)}" if isinstance(error, FileNotFoundError) else ""
        problems.add(named_at, asked, f"the recipe {path} cannot be read: {reason or error}{missing}")
        return None
    place = Place(str(path), None, path.parent)
    node = read_text(text, place, problems)
    if node is None:
        return None
    if not isinstance(node.value, dict):
        what = "the recipe is empty" if node.value is None else f"a recipe is a map of keys; got {node.describe()}"
        problems.add(node.place, "", f"{what}; expected at least the keys into and deltas")
        return None
    return _extended(node, (*chain, real), problems)


def _advice(path: Path) -> str:
    """What to do where there is no such recipe."""
    if path.stem in shipped.names() and path.suffix in ("", ".yaml"):
        return f"`vecsurgery new {path.stem}` copies the shipped recipe of this name into the current folder"
    with_suffix = path.with_name(f"{path.name}.yaml")
    if with_suffix.is_file():
        return f"did you mean {with_suffix}?"
    return "expected the path of a recipe, a YAML file; `vecsurgery new` lists the recipes that are shipped"


def _extended(node: Node, chain: tuple[Path, ...], problems: Problems) -> Node | None:
    entries = dict(node.children())
    asked = entries.pop("extends", None)
    own = Node(entries, node.place)
    if asked is None or asked.value is None:
        return own
    if not isinstance(asked.value, str):
        problems.add(asked.place, "extends", f"expected the path of a recipe; got {asked.describe()}")
        return own
    try:
        path = asked.place.folder / Path(asked.value).expanduser()
    except RuntimeError as error:
        problems.add(asked.place, "extends", f"the path {asked.value} cannot be resolved: {error}")
        return own
    under = _read(path, asked.place, chain, problems)
    return own if under is None else merged(under, own)


def overridden(root: Node, overrides: Sequence[str], known: Sequence[str], problems: Problems) -> Node:
    """The tree with every `ADDRESS=VALUE` applied, in order.

    An address starts with a top-level key (one of `known`) or with a step's id or method name, then the keys under it;
    a number names an element of a list. The value is YAML; relative paths start at the recipe's folder.
    """
    for text in overrides:
        place = Place(f"{OVERRIDE}{text}", None, root.place.folder)
        address, equals, value_text = text.partition("=")
        parts = address.strip().split(".")
        if not equals or not all(parts):
            problems.add(place, "", "expected ADDRESS=VALUE, as in retain_energy.keep=0.05")
            continue
        value = read_text(value_text, place, problems, one_line=True)
        full = _full_address(root, parts, known, place, problems)
        if value is not None and full is not None:
            root = _placed(root, full, value, address.strip(), problems)
    return root


def step_method(step: Node) -> str | None:
    """The method that a step names: the projector's, fit's or merge's name, or "scale"; None where it names none."""
    for verb in METHOD_VERBS:
        named = step.child(verb)
        if named is not None:
            return named.value if isinstance(named.value, str) else None
    return "scale" if step.child("scale") is not None else None


def step_id(step: Node) -> str | None:
    """The step's own id, else its method's name."""
    own = step.child("id")
    return own.value if own is not None and isinstance(own.value, str) else step_method(step)


def _full_address(
    root: Node, parts: list[str], known: Sequence[str], place: Place, problems: Problems
) -> list[str] | None:
    """The address from the root: a step's name becomes `steps`, its index."""
    if parts[0] in known:
        return parts
    steps = root.child("steps")
    entries = steps.value if steps is not None and isinstance(steps.value, tuple) else ()
    by_id = [index for index, step in enumerate(entries) if step.child("id") and step_id(step) == parts[0]]
    by_method = [index for index, step in enumerate(entries) if step_method(step) == parts[0]]
    found = by_id or by_method
    if not found:
        names = [name for step in entries for name in (step_id(step), step_method(step)) if name is not None]
        problems.add(place, "", unknown("step or key", parts[0], dict.fromkeys([*known, *names])))
    elif len(found) > 1:
        problems.add(place, "", f"{len(found)} steps are called '{parts[0]}'; give each its own id and use that")
    elif len(parts) == 1:
        problems.add(place, "", f"'{parts[0]}' is a step; say which of its keys, as in {parts[0]}.layers=0-3")
    else:
        return ["steps", str(found[0]), *parts[1:]]
    return None


def _placed(node: Node, parts: list[str], value: Node, address: str, problems: Problems) -> Node:
    """`node` with `value` at the end of the path `parts`; maps that are missing on the way are made."""
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    if isinstance(node.value, tuple) and head.isdecimal() and int(head) < len(node.value):
        items = list(node.value)
        items[int(head)] = _placed(items[int(head)], rest, value, address, problems)
        return Node(tuple(items), node.place)
    if isinstance(node.value, dict) or node.value is None:
        entries = dict(node.children())
        under = entries.get(head, Node(None, value.place))
        entries[head] = _placed(under, rest, value, address, problems)
        return Node(entries, value.place if node.value is None else node.place)
    where = address if len(address.split(".")) == len(parts) else address.rpartition(f".{'.'.join(parts)}")[0]
    what = (
        _elements(node.value, where) if isinstance(node.value, tuple) else f"'{head}' would stand in {node.describe()}"
    )
    problems.add(value.place, "", f"'{address}' leads nowhere: {what}")
    return node


def _elements(entries: tuple[Node, ...], where: str) -> str:
    """What the list at `where` has to be addressed by."""
    if not entries:
        return f"the list {where} is empty"
    last = f" to {where}.{len(entries) - 1}" if len(entries) > 1 else ""
    return f"{where} has {len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {where}.0{last}"
