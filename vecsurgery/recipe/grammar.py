"""Every key of the recipe language with its type, default and one sentence: what validation and the schema read.

Rules between keys, names and paths are checked where the tree is at hand (building.py, steps.py).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic.fields import FieldInfo

from .numbers import NUMBER_SCHEMA, NUMBERS_SCHEMA, parse_number, parse_numbers, plain_number, plain_numbers
from .problems import shown
from .selection import parse_layers
from .types import Around, Between, GateMeasure, TokenRule

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)?\s*", re.IGNORECASE)
_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
_ROWS = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")


def parse_texts(value: Any) -> tuple[str, ...]:
    """One text or a list of texts, none of them empty. Raises ValueError for anything else."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("expected text or a list of texts; the list is empty")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"expected text or a list of texts; got {shown(text)}")
    return tuple(texts)


def parse_rows(value: Any) -> tuple[int, int]:
    """First and last row of `"a-b"`, 0-based, inclusive. Raises ValueError for anything else."""
    match = _ROWS.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f'expected "first-last", 0-based and inclusive, as in "0-99"; got {shown(value)}')
    return int(match[1]), int(match[2])


def parse_size(value: Any) -> int:
    """Bytes of a whole number or of text such as 5GB (10⁹ bytes), MB, KB. Raises ValueError for anything else."""
    match = _SIZE.fullmatch(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    size = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise ValueError(f"expected a size in bytes or with a decimal unit, as in 5GB or 500MB; got {shown(value)}")
    return size


def parse_tokens(value: Any) -> TokenRule:
    """A rule for token positions. Raises ValueError for anything else."""
    if value == "all":
        return "all"
    if value == "response":
        return "response"
    if isinstance(value, Mapping) and set(value) == {"between"}:
        tags = value["between"]
        if isinstance(tags, list) and len(tags) == 2 and len(set(parse_texts(tags))) == 2:
            return Between(tags[0], tags[1])
        raise ValueError(
            f'expected between: [opening tag, closing tag], as in ["<think>", "</think>"]; got {shown(tags)}'
        )
    if isinstance(value, Mapping) and "around" in value and set(value) <= {"around", "before", "after"}:
        tags = parse_texts(value["around"])
        if len(set(tags)) < len(tags):
            raise ValueError(f"expected different tags under around; got {', '.join(tags)}")
        return Around(tags, _count(value, "before", Around.before), _count(value, "after", Around.after))
    rules = "all, response, {between: [open, close]} or {around: [tags], before: 1, after: 0}"
    raise ValueError(f"expected {rules}; got {shown(value)}")


def _count(value: Mapping[str, Any], key: str, default: int) -> int:
    count = value.get(key, default)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"expected a whole number ≥ 0 under {key}; got {shown(count)}")
    return count


def plain_tokens(rule: TokenRule) -> Any:
    """The inverse of `parse_tokens`."""
    if isinstance(rule, Between):
        return {"between": [rule.open, rule.close]}
    if isinstance(rule, Around):
        return {"around": list(rule.tags), "before": rule.before, "after": rule.after}
    return rule


_TOKENS_SCHEMA = {
    "anyOf": [
        {"enum": ["all", "response"]},
        {
            "type": "object",
            "properties": {"between": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}},
            "required": ["between"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "around": _TEXTS_SCHEMA,
                "before": {"type": "integer", "minimum": 0, "default": Around.before},
                "after": {"type": "integer", "minimum": 0, "default": Around.after},
            },
            "required": ["around"],
            "additionalProperties": False,
        },
    ]
}
_LAYERS_SCHEMA = {
    "anyOf": [
        {"type": ["integer", "string"]},
        {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1},
    ]
}


Texts = Annotated[tuple[str, ...] | None, PlainValidator(parse_texts), WithJsonSchema(_TEXTS_SCHEMA)]
Paths = Annotated[tuple[str, ...], PlainValidator(parse_texts), WithJsonSchema(_TEXTS_SCHEMA)]
Rows = Annotated[
    tuple[int, int] | None, PlainValidator(parse_rows), WithJsonSchema({"type": "string", "pattern": _ROWS.pattern})
]
Tokens = Annotated[TokenRule, PlainValidator(parse_tokens), WithJsonSchema(_TOKENS_SCHEMA)]
Layers = Annotated[tuple[int, ...] | None, PlainValidator(parse_layers), WithJsonSchema(_LAYERS_SCHEMA)]
Size = Annotated[int, PlainValidator(parse_size), WithJsonSchema({"type": ["string", "integer"]})]
Number = Annotated[
    Any, PlainValidator(parse_number), PlainSerializer(plain_number), WithJsonSchema(NUMBER_SCHEMA, mode="validation")
]
Numbers = Annotated[
    Any,
    PlainValidator(parse_numbers),
    PlainSerializer(plain_numbers),
    WithJsonSchema(NUMBERS_SCHEMA, mode="validation"),
]
"""A number for all deltas, or a map from deltas to numbers."""
NUMBER_DESCRIPTION = (
    "A number, a list of numbers over the blocks, or a list of {filter, value}; the first match decides."
)
Role = Literal["q", "k", "v", "o", "gate", "up", "down", "other"]


class _Keys(BaseModel):
    """A map of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False, defer_build=True)


class DataKeys(_Keys):
    """Where rows come from and how many are used."""

    data: Texts = Field(
        default=None, description="Path or list of paths: JSON Lines, a JSON list, or text with blank lines between."
    )
    template: str = Field(
        default="auto", min_length=1, description="Chat template: auto (the model's, if it has one), none, or a file."
    )
    rows: Rows = Field(
        default=None, description='Rows to use, "first-last", 0-based and inclusive; all of them by default.'
    )
    limit: int | None = Field(default=None, ge=1, description="Most rows to use; all of them by default.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Most selected positions in total; no limit by default."
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of a sample; the smaller of the model's context and 2048 by default.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the order of rows where limit or max_tokens binds.")


class GeometryKeys(DataKeys):
    """What calibration text does at the inputs of a model's linear maps: measured from data, or read from a file."""

    model: str | None = Field(default=None, min_length=1, description="The model that is measured; into by default.")
    tokens: Tokens = Field(
        default="all",
        description="Positions: all, response, {between: [open, close]} or {around: [tags], before: 1, after: 0}.",
    )
    skip_first: int = Field(
        default=1, ge=0, description="Leading tokens of a sample that are left out (attention sink)."
    )
    max_directions: int = Field(default=1024, ge=1, description="Most input directions that are kept for a site.")
    file: str | None = Field(
        default=None,
        min_length=1,
        description="A geometry file measured before, instead of every other key but model, which then says on what.",
    )


class DeltaKeys(_Keys):
    """One delta: tuned − base, an adapter to add to into, or a delta folder that was made before."""

    tuned: str | None = Field(default=None, min_length=1, description="The model whose difference from base is edited.")
    base: str | None = Field(
        default=None,
        min_length=1,
        description="What tuned was trained from, or file was made from; into by default.",
    )
    adapter: str | None = Field(default=None, min_length=1, description="A PEFT adapter, instead of tuned and base.")
    file: str | None = Field(
        default=None,
        min_length=1,
        description="A folder that extract, or a run with output: {format: delta}, has made, instead of tuned.",
    )


class StepKeys(_Keys):
    """What every step may say."""

    id: str | None = Field(default=None, min_length=1, description="The step's name; its method's name by default.")
    delta: str | None = Field(default=None, description="The delta that the step edits; all of them by default.")
    deltas: Texts = Field(default=None, description="The deltas that the step edits; all of them by default.")
    modules: list[Role] | None = Field(
        default=None, min_length=1, description="Roles of the matrices that are touched; all of them by default."
    )
    layers: Layers = Field(
        default=None, description='Blocks that are touched: "first-last", 0-based and inclusive, a number, or a list.'
    )
    where: Texts = Field(default=None, description="Globs over full tensor names; one must match.")
    exclude: Texts = Field(default=None, alias="except", description="Globs over full tensor names; none may match.")


class ScaleKeys(StepKeys):
    """Multiply a delta by a number."""

    scale: Number = Field(description=NUMBER_DESCRIPTION)


class FitKeys(DataKeys, StepKeys):
    """What every fit may say beside its method's options."""


class MergeKeys(_Keys):
    """What every merge may say beside its method's options: it takes every tensor of its deltas."""

    id: str | None = Field(default=None, min_length=1, description="The step's name; its method's name by default.")
    delta: str | None = Field(default=None, description="The delta that is merged; all of them by default.")
    deltas: Texts = Field(default=None, description="The deltas that are merged; all of them by default.")
    result: str = Field(
        alias="as", min_length=1, description="New name of the delta that replaces them in the steps below."
    )
    weights: dict[str, Number] = Field(
        default={}, description="Weight of each delta in the merge, 1.0 by default; " + NUMBER_DESCRIPTION.lower()
    )


def number_kind(field: FieldInfo) -> Literal["one", "each"] | None:
    """Whether an option is a number that may differ from tensor to tensor: one, or one for each delta."""
    parsers = [each.func for each in field.metadata if isinstance(each, PlainValidator)]
    if parse_numbers in parsers:
        return "each"
    return "one" if parse_number in parsers else None


class GateKeys(DataKeys):
    """A condition that the result has to meet before it gets its final name."""

    measure: GateMeasure = Field(
        description="retention: retain answer NLL of the result minus that of into, in nats; forgetting: share of the "
        "raw delta's forgetting that is kept; perplexity_ratio: perplexity of the result over that of into; "
        "think_format: share of its generations that keep the think format; smoke: finite logits, perplexity not "
        "ruined, no loops in what it writes."
    )
    min: float | None = Field(default=None, allow_inf_nan=False, description="Least value that passes.")
    max: float | None = Field(default=None, allow_inf_nan=False, description="Largest value that passes.")
    samples: int | None = Field(
        default=None, ge=1, description="think_format: texts that are written behind each prompt, 4 by default."
    )
    longest: int | None = Field(default=None, ge=1, description="think_format: most tokens of a text, 4096 by default.")
    tags: tuple[str, str] | None = Field(
        default=None, description="think_format: tags around a thought, [<think>, </think>] by default."
    )


class OutputKeys(_Keys):
    """What is written."""

    format: Literal["checkpoint", "delta", "adapter"] = Field(
        default="checkpoint",
        description="A whole checkpoint, the edited delta alone with what it takes to apply and undo it bit for bit, "
        "or a PEFT adapter.",
    )
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = Field(
        default="stored",
        description="Storage type of the result; stored: each tensor's type in into, float32 for factors.",
    )
    rank: int | None = Field(
        default=None,
        ge=1,
        description="adapter: rank of every matrix; without it every delta must be of low rank by itself.",
    )
    others: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="adapter: what becomes of changed tensors that it cannot hold (norms, biases, embeddings): an "
        "error that names them (refuse), or left out (drop).",
    )
    shard_size: Size = Field(
        default=5_000_000_000, description="Most bytes of a weight file, as a number or as in 5GB (10⁹ bytes)."
    )
    keep_geometry: bool = Field(default=True, description="Keep the measured geometry files in the output folder.")


class RecipeKeys(_Keys):
    """A recipe of vecsurgery: the model to edit, deltas, geometry, and the steps between them."""

    into: str = Field(min_length=1, description="The model that is edited: a folder or a hub id.")
    deltas: dict[str, DeltaKeys] = Field(min_length=1, description="The deltas, each under a name of your choice.")
    geometry: dict[str, GeometryKeys] = Field(
        default={}, description="The geometries, each under a name of your choice."
    )
    steps: list[dict[str, Any]] = Field(default=[], description="The steps, in order; each edits the deltas.")
    weights: dict[str, Number] = Field(
        default={}, description="Weight of each delta in the sum, 1.0 by default; " + NUMBER_DESCRIPTION.lower()
    )
    output: OutputKeys = Field(default=OutputKeys(), description="What is written.")
    evaluate: dict[str, Paths | DataKeys] = Field(
        default={},
        description="Rows to measure the result on, each under a name: paths, or a map with data keys. The names "
        "forget and retain fix the role.",
    )
    gates: list[GateKeys] | None = Field(
        default=None, description="Conditions that the result must meet; smoke is always one of them, but for []."
    )
    extends: str | None = Field(
        default=None, min_length=1, description="A recipe that this one extends: maps merge, lists are replaced."
    )


TOP_LEVEL = tuple(name for name in RecipeKeys.model_fields if name != "extends")
"""Every top-level key of a recipe once `extends` is resolved."""
