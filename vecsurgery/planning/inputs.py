"""Opening what a recipe names: models, deltas, tokenizers and samples, before anything heavy runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vecsurgery.calibration import OtherAnswers, Prompt, Samples
from vecsurgery.checkpoint import Stored, named_at, plan_download, require_space, resolve, revision_of
from vecsurgery.checkpoint.types import Weights
from vecsurgery.delta import Adapter, DeltaFolder, DeltaSource, Difference, FromFile, WithAdapter
from vecsurgery.editing.touches import Touch, touches
from vecsurgery.errors import UnsupportedError
from vecsurgery.fits import Fit
from vecsurgery.geometry import Geometry
from vecsurgery.merges import Merge
from vecsurgery.planning.sampling import (
    as_samples,
    asked_prompts,
    attention_samples,
    calibration_samples,
    measured_answers,
    measured_samples,
)
from vecsurgery.planning.tokenizers import Tokenizers
from vecsurgery.planning.vocabulary import Alignment, align
from vecsurgery.projectors import Projector
from vecsurgery.recipe import with_references
from vecsurgery.recipe.types import ROLES, DeltaSpec, Recipe, Reference, Step


@dataclass(frozen=True)
class Pair:
    """The models behind one delta; `tuned` and `base` are None for an adapter, `tuned` for a delta folder."""

    tuned: Weights | None
    base: Weights | None
    adapter: Path | None = None
    file: DeltaFolder | None = None


@dataclass(frozen=True)
class Inputs:
    """Everything a recipe names, opened: headers and configurations are read, weights are not."""

    recipe: Recipe
    projectors: Mapping[str, Projector]
    into: Stored
    pairs: Mapping[str, Pair]
    deltas: Mapping[str, DeltaSource]
    alignments: Mapping[str, Alignment]
    models: Mapping[str, Weights]
    """Geometry name → the model it is measured on (or was, where it is read from a file)."""
    stored: Mapping[Path, Stored] = field(default_factory=dict)
    """Every checkpoint that is open, by its folder."""
    fits: Mapping[str, Fit] = field(default_factory=dict)
    fit_models: Mapping[str, Mapping[str, Weights]] = field(default_factory=dict)
    """Id of a fit → its option that names a model → that model."""
    merges: Mapping[str, Merge] = field(default_factory=dict)
    """Those that the recipe names."""
    tokenizers: Tokenizers = field(default_factory=Tokenizers)
    _changed: dict[tuple[str, str], bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def changes(self, delta: str, parameter: str) -> bool:
        """Whether a delta changes a parameter; the checkpoints are compared once."""
        key = (delta, parameter)
        if key not in self._changed:
            self._changed[key] = self.deltas[delta].changed(parameter)
        return self._changed[key]

    @cached_property
    def touches(self) -> dict[str, tuple[Touch, ...]]:
        """Stored tensor name → the steps that concern it."""
        return touches(self.recipe.steps, self.into.layout)

    @cached_property
    def samples(self) -> dict[str, Samples]:
        """Geometry name → rendered calibration samples, of the geometries that are measured here."""
        return {
            name: calibration_samples(name, spec, self.models[name], self.tokenizers)
            for name, spec in self.recipe.geometry.items()
            if spec.data is not None
        }

    @cached_property
    def fit_samples(self) -> dict[str, Samples]:
        """Id of a fit → the rows that it measures on: all with answers, or with spans where it asks for attention."""
        found = {}
        for step in self.recipe.steps:
            if step.data is None:
                continue
            what = f"step {step.id!r}"
            if self.fits[step.method].asks == "attention":
                found[step.id] = attention_samples(what, step.data, self.into, self.tokenizers)
            else:
                found[step.id] = measured_samples(what, step.data, self.into, self.tokenizers, answers=True)
        return found

    @cached_property
    def evaluation(self) -> dict[str, Samples]:
        """Name under `evaluate` → its rows; those of `forget` and `retain` all have answers."""
        return {
            name: measured_samples(f"evaluate.{name}", data, self.into, self.tokenizers, answers=name in ROLES.values())
            for name, data in self.recipe.evaluate.items()
        }

    def other_answers(self, name: str) -> list[OtherAnswers]:
        """Other answers to the rows of a name under `evaluate`, where they have wrong ones: for truth ratios."""
        return measured_answers(self.recipe.evaluate[name], self.evaluation[name], self.into, self.tokenizers)

    @cached_property
    def gate_prompts(self) -> dict[int, list[Prompt]]:
        """Index of a gate that looks at generations → what is asked for it."""
        return {
            index: asked_prompts(f"gates[{index}] ({gate.measure})", gate, self.into, self.tokenizers)
            for index, gate in enumerate(self.recipe.gates)
            if gate.writing is not None
        }

    @cached_property
    def gate_samples(self) -> dict[int, Samples]:
        """Index of a gate → the rows that it measures on: its own, or those of `evaluate` in the same role."""
        found = {}
        for index, gate in enumerate(self.recipe.gates):
            role = ROLES.get(gate.measure)
            if index in self.gate_prompts:
                found[index] = as_samples(self.gate_prompts[index])
            elif gate.data is not None:
                what = f"gates[{index}] ({gate.measure})"
                answers = role is not None
                found[index] = measured_samples(what, gate.data, self.into, self.tokenizers, answers=answers)
            elif role is not None:
                found[index] = self.evaluation[role]
        return found

    @cached_property
    def files(self) -> dict[str, Geometry]:
        """Geometry name → the geometry file that the recipe names, verified against the model."""
        opened = {}
        for name, spec in self.recipe.geometry.items():
            if spec.file is not None:
                opened[name] = Geometry.open(spec.file)
                key = f"geometry.{name}.model"
                opened[name].require_model(self.models[name], f"measure it again, or name that model as `{key}`")
        return opened

    @property
    def roles(self) -> dict[int, str]:
        """id of an open checkpoint → the first place of the recipe that names it."""
        named: list[tuple[str, Weights | None]] = [("into", self.into)]
        for name, pair in self.pairs.items():
            named += [(f"deltas.{name}.tuned", pair.tuned), (f"deltas.{name}.base", pair.base)]
        named += [(f"geometry.{name}.model", model) for name, model in self.models.items()]
        for step, models in self.fit_models.items():
            named += [(f"steps.{step}.{key}", model) for key, model in models.items()]
        roles: dict[int, str] = {}
        for role, model in named:
            plain = model.weights if isinstance(model, WithAdapter) else model
            roles.setdefault(id(plain), role)
        return roles

    @property
    def folders(self) -> list[Path]:
        """Folders of all inputs: none of them may be the output."""
        adapters = [pair.adapter for pair in self.pairs.values() if pair.adapter is not None]
        files = [pair.file.path for pair in self.pairs.values() if pair.file is not None]
        return [*self.stored, *adapters, *files]


def label(reference: Reference) -> str:
    """A model's name in files that are published: the hub id, or the folder's name without its place."""
    return reference.path.name if reference.path is not None else reference.text


def open_inputs(recipe: Recipe, methods: Mapping[str, Projector | Fit | Merge]) -> Inputs:
    """Resolve every model of the recipe, open each once, and make the deltas' sources."""
    _require_room_for_downloads(recipe)
    stored: dict[Path, Stored] = {}
    tokenizers = Tokenizers()

    def model(reference: Reference) -> Weights:
        plain = replace(reference, adapter=None)
        folder = resolve(plain)
        if folder not in stored:
            with named_at(plain):
                stored[folder] = Stored(folder, reference=plain)
        if reference.adapter is None:
            return stored[folder]
        with named_at(reference.adapter):
            return WithAdapter(stored[folder], resolve(reference.adapter))

    into = model(recipe.into)
    if not isinstance(into, Stored):
        raise UnsupportedError(
            f"into: {recipe.into.text}: the model that is edited cannot carry an adapter; merge the adapter into it "
            "first, or name it as a delta: deltas: {name: {adapter: …}}"
        )
    pairs = {name: _pair(spec, model, into) for name, spec in recipe.deltas.items()}
    alignments = {
        # What tuned was is no longer known where a file stands for it: its rows are those of its base.
        name: align(name, into, pair.tuned or pair.base, pair.base, tokenizers)
        for name, pair in pairs.items()
        if pair.base is not None
    }
    deltas = {}
    for name, pair in pairs.items():
        with named_at(recipe.deltas[name].adapter):
            deltas[name] = delta_source(name, pair, into, alignments.get(name))
    recipe = with_references(recipe, _pinned)
    models = {name: model(spec.model) if spec.model else into for name, spec in recipe.geometry.items()}
    return Inputs(
        recipe=recipe,
        projectors={name: each for name, each in methods.items() if isinstance(each, Projector)},
        into=into,
        pairs=pairs,
        deltas=deltas,
        alignments=alignments,
        models=models,
        stored=stored,
        fits={name: each for name, each in methods.items() if isinstance(each, Fit)},
        fit_models={
            step.id: {key: model(reference) for key, reference in step.models.items()}
            for step in recipe.steps
            if step.verb == "fit"
        },
        merges=named_merges(recipe.steps, methods),
        tokenizers=tokenizers,
    )


def named_merges(steps: Sequence[Step], methods: Mapping[str, Projector | Fit | Merge]) -> dict[str, Merge]:
    """The merges that steps name, by name."""
    found = {step.method: methods[step.method] for step in steps if step.verb == "merge"}
    return {name: each for name, each in found.items() if isinstance(each, Merge)}


def _pinned(reference: Reference) -> Reference:
    """A hub reference with the commit that was taken, so that the recipe means the same when the branch has moved."""
    if reference.path is not None:
        return reference
    adapter = _pinned(reference.adapter) if reference.adapter is not None else None
    plain = replace(reference, adapter=None)
    return replace(reference, revision=revision_of(resolve(plain)) or reference.revision, adapter=adapter)


def _pair(spec: DeltaSpec, model: Any, into: Weights) -> Pair:
    if spec.adapter is not None:
        return Pair(None, None, resolve(spec.adapter))
    base = model(spec.base) if spec.base else into
    if spec.file is not None:
        return Pair(None, base, file=DeltaFolder(spec.file))
    assert spec.tuned is not None  # the recipe's grammar: exactly one of tuned, adapter and file
    return Pair(model(spec.tuned), base)


def delta_source(name: str, pair: Pair, into: Weights, alignment: Alignment | None) -> DeltaSource:
    """The delta of a pair, to be added to `into`. Errors: InputError where it does not fit."""
    if pair.adapter is not None:
        return Adapter(name, pair.adapter, into)
    assert pair.base is not None
    masks = alignment.masks if alignment else {}
    if pair.file is not None:
        return FromFile(name, pair.file, pair.base, into, row_masks=masks)
    assert pair.tuned is not None
    return Difference(name, pair.tuned, pair.base, into, row_masks=masks)


def _references(recipe: Recipe) -> list[Reference]:
    named = [recipe.into]
    for spec in recipe.deltas.values():
        named += [reference for reference in (spec.tuned, spec.base, spec.adapter) if reference is not None]
    named += [spec.model for spec in recipe.geometry.values() if spec.model is not None]
    named += [reference for step in recipe.steps for reference in step.models.values()]
    return named + [reference.adapter for reference in named if reference.adapter is not None]


def _require_room_for_downloads(recipe: Recipe) -> None:
    """All models are looked up (access, size, free disk) before the first byte is fetched."""
    needed = plan_download(_references(recipe))
    if needed:
        from huggingface_hub.constants import HF_HUB_CACHE

        require_space(Path(HF_HUB_CACHE), needed, "the models that the recipe names")
