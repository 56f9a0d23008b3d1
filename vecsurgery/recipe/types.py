"""What a validated recipe says, as plain frozen values. No torch, no methods: only the grammar."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel


@dataclass(frozen=True)
class FilteredNumber:
    """One entry of a `{filter, value}` list; `filter` None applies to everything that no filter above matched."""

    filter: str | None
    value: "float | list[float]"


@dataclass(frozen=True)
class Reference:
    """A model: a local path taken literally, or a hub id with an optional revision, and an optional adapter.

    `text`: as the user wrote it. `path`: the local path where one exists, else None. `model`, `revision`: hub id.
    `place` and `folder` are for messages, no part of what it is: `FILE:LINE: KEY` where a recipe names it, else empty,
    and the folder in which a local one was looked for.
    """

    text: str
    path: Path | None
    model: str
    revision: str | None = None
    adapter: "Reference | None" = None
    place: str = field(default="", compare=False, repr=False)
    folder: Path | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class DataSpec:
    """Where rows come from and how many are used (the data keys of the recipe language)."""

    data: tuple[Path, ...]
    template: str = "auto"
    """auto, none, or the path of a Jinja file."""
    rows: tuple[int, int] | None = None
    """First and last row, 0-based, inclusive."""
    limit: int | None = None
    max_tokens: int | None = None
    max_length: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Between:
    """Positions from the opening to the closing tag, both included."""

    open: str
    close: str


@dataclass(frozen=True)
class Around:
    """Every token of each tag, `before` tokens before its first and `after` behind its last."""

    tags: tuple[str, ...]
    before: int = 1
    after: int = 0


TokenRule = Literal["all", "response"] | Between | Around


@dataclass(frozen=True)
class GeometrySpec:
    """One geometry: measured from data on a model, or read from a file (then `file` alone is set)."""

    data: DataSpec | None
    model: Reference | None = None
    """None: the recipe's `into`."""
    tokens: TokenRule = "all"
    skip_first: int = 1
    max_directions: int = 1024
    file: Path | None = None


@dataclass(frozen=True)
class DeltaSpec:
    """One delta: tuned − base, an adapter, or a delta folder made before. Exactly one of `tuned`, `adapter` and `file`
    is set; `base` None means `into`."""

    tuned: Reference | None = None
    base: Reference | None = None
    adapter: Reference | None = None
    file: Path | None = None
    """The folder that holds delta.json; `base` is then what it was made from."""


@dataclass(frozen=True)
class Selection:
    """What a step touches. None means no restriction; `layers` are block numbers, or (first, last) inclusive ranges."""

    deltas: tuple[str, ...]
    modules: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    """Block numbers, sorted; not yet compared with a model, which may lack some: `touches` refuses those."""
    where: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """The recipe's `except`."""


@dataclass(frozen=True)
class Step:
    """One step of a recipe: verb `project`, `fit`, `merge` with a method and its options, or `scale` with a number."""

    id: str
    verb: Literal["project", "scale", "fit", "merge"]
    method: str
    """Name of the projector, fit or merge; "scale" for scale."""
    selection: Selection
    options: BaseModel | None = None
    number: Any = None
    """scale: a float, a list (gradient over the blocks), or a tuple of FilteredNumber."""
    line: int = 0
    data: DataSpec | None = None
    """fit: the rows that it measures on."""
    models: Mapping[str, Reference] = field(default_factory=dict)
    """Option that names a model → that model."""
    result: str | None = None
    """merge: name of the delta that replaces those of the selection; None for every other verb."""
    weights: Mapping[str, Any] = field(default_factory=dict)
    """merge: delta → number, as in `Recipe.weights`; 1.0 where absent."""


def live_names(deltas: Iterable[str], steps: Sequence[Step]) -> tuple[str, ...]:
    """The deltas below these steps: the declared ones, and results of merges in place of what they merge."""
    names = list(deltas)
    for step in steps:
        if step.result is not None:
            names = [*(name for name in names if name not in step.selection.deltas), step.result]
    return tuple(names)


GateMeasure = Literal["retention", "forgetting", "perplexity_ratio", "think_format", "smoke"]
ROLES: Mapping[GateMeasure, str] = {"retention": "retain", "forgetting": "forget"}
"""Measure of answers → the name under `evaluate` whose rows serve where its gate has no `data`."""


@dataclass(frozen=True)
class WritingSpec:
    """How much the result writes for a gate: `samples` texts behind each prompt, of at most `longest` tokens.

    `tags`: the opening and closing tag of a thought.
    """

    samples: int = 4
    longest: int = 4096
    tags: tuple[str, str] = ("<think>", "</think>")


@dataclass(frozen=True)
class GateSpec:
    """A condition that the edited model has to meet before it gets its final name."""

    measure: GateMeasure
    min: float | None = None
    max: float | None = None
    data: DataSpec | None = None
    """Rows of the measure; None for `smoke`, and where the rows of `evaluate` in the same role serve."""
    line: int = 0
    writing: WritingSpec | None = None
    """`think_format` alone."""


@dataclass(frozen=True)
class Output:
    """What is written."""

    format: Literal["checkpoint", "delta", "adapter"] = "checkpoint"
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    shard_size: int = 5_000_000_000
    keep_geometry: bool = True
    rank: int | None = None
    """adapter: the rank of every matrix; None where every delta is of low rank by itself."""
    others: Literal["refuse", "drop"] = "refuse"
    """adapter: what becomes of changed tensors that an adapter cannot hold."""

    @property
    def weights_dtype(self) -> Literal["stored", "float32", "bfloat16", "float16"]:
        """The type of the edited weights: `dtype` says how a delta or an adapter stores its own numbers."""
        return self.dtype if self.format == "checkpoint" else "stored"


@dataclass(frozen=True)
class Recipe:
    """A validated recipe; everything is resolved against the folder of the file, nothing has been opened but it."""

    into: Reference
    deltas: Mapping[str, DeltaSpec]
    geometry: Mapping[str, GeometrySpec]
    steps: tuple[Step, ...]
    weights: Mapping[str, Any] = field(default_factory=dict)
    """live delta → number (float, gradient list, or tuple of FilteredNumber); 1.0 where absent."""
    output: Output = field(default_factory=Output)
    evaluate: Mapping[str, DataSpec] = field(default_factory=dict)
    """Rows to measure the result on; the names `forget` and `retain` fix the role."""
    gates: tuple[GateSpec, ...] = (GateSpec("smoke"),)
    """Every condition, `smoke` among them unless the recipe says `gates: []`."""
    source: Path | None = None
    text: str = ""
    """The recipe as resolved (extends and --set applied), canonical YAML: what is hashed, stored and run again."""

    @property
    def live(self) -> tuple[str, ...]:
        """The deltas that are added at the end: those that no step merged away, and results of merges."""
        return live_names(self.deltas, self.steps)

    @property
    def merges(self) -> tuple[Step, ...]:
        """The steps that merge: alone, they make of the deltas as loaded what the recipe compares its result with."""
        return tuple(step for step in self.steps if step.verb == "merge")

    @property
    def data(self) -> tuple[DataSpec, ...]:
        """Every data source that is rendered: of geometries, fits, evaluation and gates."""
        named = [geometry.data for geometry in self.geometry.values()]
        named += [step.data for step in self.steps]
        named += [*self.evaluate.values(), *(gate.data for gate in self.gates)]
        return tuple(data for data in named if data is not None)
