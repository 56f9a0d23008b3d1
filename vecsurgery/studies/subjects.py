"""What is inspected: the deltas of a recipe, of models against a base, or the weights of a lone model, opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vecsurgery.checkpoint import Stored, resolve
from vecsurgery.delta import Adapter, DeltaFolder, Dense, Difference, FromFile, WithAdapter, reading
from vecsurgery.delta.description import DESCRIPTION_FILE
from vecsurgery.delta.reading import Finder
from vecsurgery.editing.audit import Remembered
from vecsurgery.editing.rounding import stored_types
from vecsurgery.errors import InputError
from vecsurgery.geometry import Geometry
from vecsurgery.planning.vocabulary import align
from vecsurgery.recipe import parse_reference
from vecsurgery.studies.labels import labelled
from vecsurgery.surgery.api import opened as opened_recipe
from vecsurgery.surgery.assembly import rewired
from vecsurgery.surgery.calls import weights_of

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.checkpoint.types import Layout, TensorInfo, Weights
    from vecsurgery.delta import Delta, DeltaSource
    from vecsurgery.delta.reading import Rows
    from vecsurgery.recipe.types import DeltaSpec, Reference
    from vecsurgery.surgery.calls import Model

_DOING = "inspecting"


@dataclass(frozen=True)
class Subject:
    """One change, or the weights of a lone model (`source` is None). Matrices are seen as (out, in)."""

    name: str
    described: str
    weights: Weights
    """The base of a change, or the lone model."""
    source: DeltaSource | None

    def read(self, info: TensorInfo, rows: Rows = None) -> Delta | None:
        """The change of one tensor of the layout, or the weights; None where nothing changed."""
        if self.source is not None:
            return self.source.read(info.parameter, rows, precise=True)
        weight = self.weight(info, rows)
        assert weight is not None  # the layout is this model's
        values = weight.to(reading.wide_type(weight.dtype))
        reading.require_finite(values, info.name, reading.label(self.weights))
        return Dense(values)

    def weight(self, info: TensorInfo, rows: Rows = None) -> Tensor | None:
        """The tensor of the base, in its stored type; None where it has none or fewer rows."""
        found = Finder(self.weights.layout).find(info.parameter)
        if found is None:
            return None
        if reading.is_transposed(found):
            whole = self.weights.read(found.name).T
            return whole if rows is None else whole[rows]
        return self.weights.read(found.name, rows)

    def dtype(self, info: TensorInfo) -> str:
        """The stored type whose rounding counts: the coarser of tuned and base; of what an adapter or a delta folder is
        added to.
        """
        types = stored_types(self.source, info.parameter) if self.source is not None else set()
        if not types:
            return info.dtype
        return str(max(types, key=lambda each: torch.finfo(each).eps)).removeprefix("torch.")

    def rounded(self, info: TensorInfo) -> bool:
        """Whether the change lies between two stored tensors, so that each entry of it that is not zero shows."""
        return self.source is not None and bool(stored_types(self.source, info.parameter))


@dataclass(frozen=True)
class Opened:
    """Everything that is looked at."""

    subjects: tuple[Subject, ...]
    layout: Layout
    """Whose tensors are walked: that of the model which the changes are for."""
    geometries: Mapping[str, Geometry]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def recipe_subjects(recipe: Path, overrides: Sequence[str]) -> Opened:
    """The deltas of a recipe, and its geometries that are files. Raises InputError."""
    inputs = opened_recipe(recipe, overrides)
    read = rewired(inputs, Remembered)
    subjects = [
        Subject(name, _described(inputs.recipe.deltas[name]), _base(source), source)
        for name, source in read.deltas.items()
    ]
    measured = [name for name, spec in inputs.recipe.geometry.items() if spec.file is None]
    notes = []
    if measured:
        notes.append(
            f"a run would measure {_listed('geometry', measured)}: not looked at; `vecsurgery measure` writes the "
            "file, --geometry names it"
        )
    return Opened(tuple(subjects), read.into.layout, inputs.files, tuple(notes))


def model_subjects(models: Any, base: Model | None) -> Opened:
    """Models against a base, or one model alone. Raises InputError.

    A folder that holds an adapter or a delta is added to the base; `base+adapter` alone is inspected against its own
    base.
    """
    named = labelled(_named_models(models), doing=_DOING)
    open_models = _Models()
    if base is None:
        return _alone(named, open_models)
    into = open_models.open(base, None)
    subjects: list[Subject] = []
    warnings: list[str] = []
    for name, given in named.items():
        source, told = open_models.source(name, given, into)
        warnings += told
        described = f"delta {given} of {_text(base)}" if isinstance(source, FromFile) else _told(given, base)
        subjects.append(Subject(name, described, into, source))
    return Opened(tuple(subjects), into.layout, {}, (), tuple(warnings))


def with_geometries(opened: Opened, named: Mapping[str, Geometry | str | Path] | Sequence[str | Path]) -> Opened:
    """With more geometries, by file or opened; "NAME=FILE" has the name NAME, FILE alone that of the file.

    Raises InputError for two of one name, and for what is no geometry file.
    """
    found = dict(opened.geometries)
    pairs = list(named.items()) if isinstance(named, Mapping) else [_named(each) for each in named]
    warnings = list(opened.warnings)
    known = {subject.weights.fingerprint for subject in opened.subjects} if pairs else set()
    for name, given in pairs:
        if name in found:
            raise InputError(
                f"{_DOING}: two geometries are called {name!r}; give NAME=FILE, with another name for each"
            )
        found[name] = given if isinstance(given, Geometry) else Geometry.open(given)
        if found[name].info.model_fingerprint not in known:
            warnings.append(
                f"geometry {name!r} was measured on {found[name].info.model}, which is not the base: its directions "
                "are those of that model's inputs"
            )
    return replace(opened, geometries=found, warnings=tuple(warnings))


def _named_models(models: Any) -> Any:
    """A model in memory is named `model`; names, and mappings of names to models, stay as they are."""
    held = isinstance(models, Mapping) and all(isinstance(each, torch.Tensor) for each in models.values())
    return models if isinstance(models, str | Path | Sequence | Mapping) and not held else {"model": models}


class _Models:
    """Opens each checkpoint once; what was read last is handed out again."""

    def __init__(self) -> None:
        self._stored: dict[Path, Remembered] = {}

    def open(self, given: Model, config: Any) -> Weights:
        if not isinstance(given, str | Path):
            return weights_of(given, config=config)
        reference = _reference(given)
        plain = self._plain(resolve(replace(reference, adapter=None)))
        return plain if reference.adapter is None else WithAdapter(plain, resolve(reference.adapter))

    def source(self, name: str, given: Model, into: Weights) -> tuple[DeltaSource, tuple[str, ...]]:
        """The change from `into` to a model, or the change that an adapter makes or a delta folder holds."""
        if isinstance(given, str | Path):
            reference = _reference(given)
            folder = None if reference.adapter is not None else resolve(reference)
            if folder is not None and is_adapter(folder):
                return Adapter(name, folder, into), ()
            if folder is not None and is_delta(folder):
                return FromFile(name, DeltaFolder(folder), into, into, advice="give that model as --base"), ()
        tuned = self.open(given, into.config)
        alignment = align(name, into, tuned, into)
        return Difference(name, tuned, into, into, row_masks=alignment.masks), alignment.warnings

    def _plain(self, folder: Path) -> Remembered:
        if folder not in self._stored:
            self._stored[folder] = Remembered(Stored(folder))
        return self._stored[folder]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def is_delta(folder: Path) -> bool:
    """Whether a folder holds a delta and no model."""
    return (folder / DESCRIPTION_FILE).is_file() and not (folder / "config.json").is_file()


def _alone(named: Mapping[str, Model], open_models: _Models) -> Opened:
    if len(named) > 1:
        raise InputError(
            f"{_DOING} {', '.join(named)}: several models are looked at as changes of one; give --base MODEL, or one "
            "model alone"
        )
    ((name, given),) = named.items()
    if isinstance(given, str | Path) and _reference(given).adapter is None:
        _require_model(given, resolve(_reference(given)))
    weights = open_models.open(given, None)
    source: DeltaSource | None = None
    if isinstance(weights, WithAdapter):
        source, weights = weights.adapter, weights.weights
    return Opened(
        (Subject(name, str(given) if isinstance(given, str | Path) else name, weights, source),), weights.layout, {}
    )


def _require_model(given: str | Path, folder: Path) -> None:
    if is_adapter(folder):
        raise InputError(f"{_DOING} {given}: this is an adapter, not a model; give --base MODEL")
    if is_delta(folder):
        made = DeltaFolder(folder).description.base.reference
        raise InputError(
            f"{_DOING} {given}: this is a delta, not a model; give --base with what it was made from, {made}"
        )


def _base(source: DeltaSource) -> Weights:
    """What the delta is relative to; an adapter is relative to what it is added to."""
    base: Weights = getattr(source, "base", source.into)
    return base


def _reference(given: str | Path) -> Reference:
    """The model, adapter or delta folder of this name; a delta folder also goes by its description's."""
    path = Path(given)
    named = path.parent if path.name == DESCRIPTION_FILE and path.is_file() else given
    try:
        return parse_reference(str(named), Path.cwd(), start="the current folder")
    except ValueError as error:
        raise InputError(f"{_DOING} the model {str(given)!r}: {error}") from error


def _named(given: str | Path) -> tuple[str, Path]:
    name, separator, file = str(given).partition("=")
    if separator and not Path(given).exists():
        return name, Path(file)
    return Path(given).stem, Path(given)


def _described(spec: DeltaSpec) -> str:
    if spec.adapter is not None:
        return f"adapter {spec.adapter.text}"
    if spec.file is not None:
        return f"delta {spec.file}"
    tuned = spec.tuned.text if spec.tuned is not None else ""
    return f"{tuned} − {spec.base.text if spec.base is not None else 'into'}"


def _told(given: Model, base: Model) -> str:
    return f"{_text(given)} − {_text(base)}"


def _text(model: Model) -> str:
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def _listed(noun: str, names: Sequence[str]) -> str:
    return f"{noun if len(names) == 1 else 'geometries'} {', '.join(map(repr, names))}"
