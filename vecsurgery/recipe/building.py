"""From the tree to a Recipe: references, names, data files, and the rules between keys."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from .grammar import TOP_LEVEL, DataKeys, DeltaKeys, GeometryKeys, OutputKeys
from .judging import Judging
from .live import NAME, Live
from .named import Named
from .numbers import parse_number
from .problems import Problems, join
from .steps import Known, Method, build_steps
from .tree import Node
from .types import DeltaSpec, GateSpec, GeometrySpec, Output, Recipe
from .validation import check_keys, key_names, validated
from .weighing import is_weights, refuse_weights

Built = TypeVar("Built")


class Builder:
    """Builds one recipe; every problem on the way is recorded, and the parts that are wrong come out as None."""

    def __init__(self, methods: Mapping[str, Method], problems: Problems, *, require_files: bool) -> None:
        self.methods, self.problems = methods, problems
        self.named = Named(problems, require_files=require_files)

    def recipe(self, root: Node, source: Path | None) -> Recipe | None:
        """The recipe of a tree (a map), or None where anything is wrong."""
        check_keys(root, TOP_LEVEL if source is None else (*TOP_LEVEL, "extends"), "", self.problems)
        for key in ("into", "deltas"):
            if root.child(key) is None:
                self.problems.add(root.place, key, "this key is required")
        into = self.named.reference(root.child("into"), "into")
        deltas = self.entries(root.child("deltas"), "deltas", _maps_of(DeltaKeys), self.delta)
        geometry = self.entries(root.child("geometry"), "geometry", _maps_of(GeometryKeys), self.geometry)
        known = Known(self.methods, Live(tuple(deltas)), list(geometry), self.named)
        steps, live = build_steps(root.child("steps"), known, self.problems)
        weights = self.weights(root.child("weights"), live)
        output = self.output(root.child("output"))
        paths = f"paths, lists of paths, or {_maps_of(DataKeys)}"
        evaluate = self.entries(root.child("evaluate"), "evaluate", paths, self.named.rows)
        gates = Judging(self.named, self.problems, list(evaluate)).gates(root.child("gates"))
        self._require_loadable(root, output, gates)
        if self.problems or into is None or output is None:
            return None
        return Recipe(
            into=into,
            deltas={name: delta for name, delta in deltas.items() if delta is not None},
            geometry={name: each for name, each in geometry.items() if each is not None},
            steps=steps,
            weights=weights,
            output=output,
            evaluate={name: data for name, data in evaluate.items() if data is not None},
            gates=gates,
            source=source,
        )

    def entries(
        self, node: Node | None, path: str, expected: str, build: Callable[[Node, str], Built | None]
    ) -> dict[str, Built | None]:
        """The entries of a map under names of the user's choice; None stands for one that is wrong."""
        if node is None:
            return {}
        if not isinstance(node.value, dict) or (path == "deltas" and not node.value):
            got = "an empty map" if node.value == {} else node.describe()
            self.problems.add(node.place, path, f"expected a map from names to {expected}; got {got}")
            return {}
        for name, child in node.value.items():
            if not NAME.fullmatch(name):
                what = f"'{name}' cannot be a name; expected letters, digits, '_' and '-'"
                self.problems.add(child.place, join(path, name), what)
        return {name: build(child, join(path, name)) for name, child in node.value.items()}

    def delta(self, node: Node, path: str) -> DeltaSpec | None:
        """One entry of `deltas`."""
        if isinstance(node.value, dict):
            refuse_weights(node, path, [path.rpartition(".")[2]], self.problems)
        keys = validated(node, DeltaKeys, path, self.problems)
        given = {key: node.child(key) for key in ("tuned", "base", "adapter")}
        built = {key: self.named.reference(child, join(path, key)) for key, child in given.items()}
        file = self.named.delta_folder(node.child("file"), join(path, "file"))
        origins = [key for key in ("tuned", "adapter", "file") if node.child(key) is not None]
        if isinstance(node.value, dict) and len(origins) != 1:
            got = " and ".join(origins) or "none of them"
            self.problems.add(
                node.place, path, f"a delta has exactly one of the keys tuned, adapter and file; got {got}"
            )
        elif given["adapter"] is not None and given["base"] is not None:
            what = "base goes with tuned and file; an adapter is added to into and has no base here"
            self.problems.add(given["base"].place, join(path, "base"), what)
        return None if keys is None else DeltaSpec(built["tuned"], built["base"], built["adapter"], file)

    def geometry(self, node: Node, path: str) -> GeometrySpec | None:
        """One entry of `geometry`."""
        keys = validated(node, GeometryKeys, path, self.problems)
        model = self.named.reference(node.child("model"), join(path, "model"))
        files = self.named.files(node.child("file"), join(path, "file"))
        data = self.named.data(node, path, keys)
        self._check_source(node, path)
        if keys is None or data is None:
            return None
        if files:
            return GeometrySpec(data=None, model=model, file=files[0])
        return GeometrySpec(data, model, keys.tokens, keys.skip_first, keys.max_directions)

    def _check_source(self, node: Node, path: str) -> None:
        """A geometry is either measured (`data`) or read (`file`, at most with the `model` it was measured on)."""
        if not isinstance(node.value, dict):
            return
        file, data = node.child("file"), node.child("data")
        if file is None and data is None:
            self.problems.add(node.place, path, "a geometry needs data (to measure it) or file (one measured before)")
        others = [key for key in node.value if key not in ("file", "model") and node.child(key) is not None]
        if file is not None and others:
            what = f"file stands alone or with model: what was measured is recorded in it; remove {', '.join(others)}"
            self.problems.add(file.place, join(path, "file"), what)

    def _require_loadable(self, root: Node, output: Output | None, gates: tuple[GateSpec, ...]) -> None:
        """`think_format` loads the written model, which only a checkpoint is."""
        node = root.child("gates")
        if node is not None and output is not None and output.format != "checkpoint":
            for gate in gates:
                if gate.writing is not None:
                    what = f"think_format loads the written model; it goes with format: checkpoint, not {output.format}"
                    self.problems.add(node.place, "gates", what)

    def weights(self, node: Node | None, live: Live) -> dict[str, object]:
        """The top-level weights, by delta. `live`: the deltas that are left below all steps."""
        if node is None:
            return {}
        if not is_weights(node, "weights", live.names, self.problems):
            return {}
        found: dict[str, object] = {}
        for name, child in node.children().items():
            if name not in live.names:
                self.problems.add(child.place, join("weights", name), live.missing(name))
            if child.value is None:
                continue
            try:
                found[name] = parse_number(child.plain())
            except ValueError as error:
                self.problems.add(child.place, join("weights", name), str(error))
        return found

    def output(self, node: Node | None) -> Output | None:
        """What is written."""
        if node is None:
            return Output()
        keys = validated(node, OutputKeys, "output", self.problems)
        if keys is None:
            return None
        self._check_format(node, keys)
        return Output(keys.format, keys.dtype, keys.shard_size, keys.keep_geometry, keys.rank, keys.others)

    def _check_format(self, node: Node, keys: OutputKeys) -> None:
        """Keys that only an adapter has, and one that it lacks."""
        for key in ("rank", "others") if keys.format != "adapter" else ("shard_size",):
            child = node.child(key)
            if child is not None:
                what = "goes with format: adapter" if keys.format != "adapter" else "an adapter is one file"
                self.problems.add(child.place, join("output", key), f"{what}; remove this key")


def _maps_of(keys: type[BaseModel]) -> str:
    return f"maps with some of the keys {', '.join(key_names(keys))}"
