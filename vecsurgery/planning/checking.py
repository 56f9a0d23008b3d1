"""Is this surgery meaningful? What is compared before heavy work, from headers, side files and a few small tensors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vecsurgery.calibration import Samples, has_tokenizer, sanity
from vecsurgery.checkpoint import left_over, require_space
from vecsurgery.checkpoint.types import Weights
from vecsurgery.delta import DeltaSource, Difference, check_tying
from vecsurgery.delta.reading import Finder
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import require_heard, require_loadable
from vecsurgery.planning.alike import alike
from vecsurgery.planning.disjoint import require_disjoint
from vecsurgery.planning.inputs import Inputs, Pair
from vecsurgery.planning.lineage import distance, distance_warning, lineage_warnings
from vecsurgery.planning.plans import Plan
from vecsurgery.planning.plantext import disk_text
from vecsurgery.planning.vocabulary import check_same_tokens
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import DeltaSpec, Step

_ROWS = 4096
"""Rows of a tensor that are checked for NaN at a time."""
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Endings of tables that old files carry along and every loader recomputes."""
_MATRICES = ("proj.weight", "c_attn.weight", "c_fc.weight", "c_proj.weight", "query_key_value.weight", "dense.weight")
"""Endings of block matrices: never dropped, whatever `others` says."""


@dataclass(frozen=True)
class Check:
    """What was found: warnings for the user to judge, and facts that were looked at. Faults raise InputError."""

    warnings: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    data_warnings: tuple[str, ...] = ()
    """Those about calibration data; reports show them with the geometry."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"warnings": [*self.warnings, *self.data_warnings], "facts": self.facts}


def check_inputs(inputs: Inputs) -> Check:
    """Lineage, tokens, tokenizers, tying, measurable sites, rows of calibration, fits and evaluation.

    Errors: InputError (UnsupportedError for refused kinds) for what cannot work; everything else is a warning.
    """
    warnings: list[str] = []
    data_warnings: list[str] = []
    facts: dict[str, Any] = {
        "architecture": inputs.into.layout.architecture,
        "blocks": inputs.into.layout.blocks,
        "tensors": len(inputs.into.layout.tensors),
        "sites": len(inputs.into.layout.sites),
        "models": {"into": inputs.recipe.into.text},
        "deltas": {name: delta_text(spec) for name, spec in inputs.recipe.deltas.items()},
        "distances": {},
        "geometry": {},
    }
    _ = inputs.touches, inputs.files  # selections that match nothing and geometry files of another model stop here
    warnings += alike(inputs)
    warnings += _tokenizers(inputs)
    for name, pair in inputs.pairs.items():
        warnings += _pair(inputs, name, pair, facts)
    for name, alignment in inputs.alignments.items():
        warnings += alignment.warnings
        facts.setdefault("vocabulary rows without delta", {})[name] = len(alignment.differing)
    for name, model in inputs.models.items():
        _measurable(inputs, name, model)
    for name, samples in inputs.samples.items():
        facts["geometry"][name] = {**samples.counts, "fingerprint": samples.fingerprint}
        data_warnings += [f"geometry {name!r}: {warning}" for warning in samples.warnings]
    warnings += _measured(inputs, facts)
    require_disjoint(inputs)
    return Check(tuple(dict.fromkeys(warnings)), facts, tuple(data_warnings))


def delta_text(spec: DeltaSpec) -> str:
    """A delta in the recipe's words."""
    if spec.adapter is not None:
        return f"adapter {spec.adapter.text}"
    if spec.file is not None:
        return f"delta {spec.file}"
    return f"{spec.tuned.text if spec.tuned else ''} − {spec.base.text if spec.base else 'into'}"


def require_disk(plan: Plan, out: Path) -> None:
    """Stop where the output does not fit beside what an interrupted run left of it. Errors: InputError with both
    numbers.
    """
    output = plan.inputs.recipe.output.format
    what = f"the {'edited checkpoint' if output == 'checkpoint' else output} (at most {disk_text(plan)})"
    require_space(out, max(0, plan.disk - left_over(out)), what)


def verify_deltas(inputs: Inputs, progress: Progress = silent) -> None:
    """Compare the files of every delta folder with their recorded SHA-256. Errors: InputError naming the file."""
    for name, pair in inputs.pairs.items():
        files = pair.file.description.files if pair.file is not None else {}
        for number, file in enumerate(files, 1):
            assert pair.file is not None  # it has files
            pair.file.verify(file)
            progress(f"verifying the delta {name}", number, len(files), "files")


def check_weights(inputs: Inputs, progress: Progress = silent) -> None:
    """Read every tensor of every checkpoint and name those with NaN or infinity; compare delta folders' SHA-256.

    Errors: InputError listing all of them; for a file of a delta that is not the one that was written.
    """
    verify_deltas(inputs, progress)
    bad: list[str] = []
    total = sum(len(model.layout.tensors) for model in inputs.stored.values())
    done = 0
    for folder, model in inputs.stored.items():
        for name in model.layout.order:
            if not _finite(model, name):
                bad.append(f"{folder}: {name}")
            done += 1
            progress("checking weights", done, total, "tensors")
    if bad:
        listed = "\n  ".join(bad)
        raise InputError(
            f"checking weights: {len(bad)} tensors hold NaN or infinity, expected finite weights; repair or replace "
            f"the checkpoints:\n  {listed}"
        )


def _finite(model: Weights, name: str) -> bool:
    info = model.layout.tensors[name]
    if not info.shape or len(info.shape) == 1:
        chunks: Iterable[torch.Tensor] = [model.read(name)]
    else:
        chunks = (model.read(name, slice(row, row + _ROWS)) for row in range(0, info.shape[0], _ROWS))
    return all(not chunk.is_floating_point() or bool(torch.isfinite(chunk).all()) for chunk in chunks)


def _tokenizers(inputs: Inputs) -> list[str]:
    """Ids of every tokenizer of the recipe, against its raw tokenizer.json; warnings."""
    folders = [folder for folder in inputs.stored if has_tokenizer(folder)]
    return [warning for folder in folders for warning in sanity(folder, inputs.tokenizers[folder])]


def _pair(inputs: Inputs, name: str, pair: Pair, facts: dict[str, Any]) -> list[str]:
    if pair.base is None:
        return []
    named = {"tuned": pair.tuned, "base": pair.base if pair.base is not inputs.into else None}
    models = {role: model for role, model in named.items() if model is not None}
    warnings = lineage_warnings(name, inputs.into, models)
    if pair.base is not inputs.into:
        value = distance(inputs.into, pair.base)
        facts["distances"][name] = value
        warning = distance_warning(name, value)
        warnings += [warning] if warning else []
    if pair.tuned is not None and inputs.recipe.output.format == "delta":
        warnings += _wider(name, inputs.into, pair.tuned)
    return warnings + check_fit(inputs.deltas[name], inputs.recipe.steps)


def _wider(name: str, into: Weights, tuned: Weights) -> list[str]:
    """A warning about tensors of `tuned` whose numbers do not fit the type of `into`: they come back rounded."""
    finder = Finder(tuned.layout)
    pairs = [(info, other) for info in into.layout.tensors.values() if (other := finder.find(info.parameter))]
    found = [
        pair
        for pair in pairs
        if torch.promote_types(*(getattr(torch, each.dtype) for each in pair)) != getattr(torch, pair[0].dtype)
    ]
    if not found:
        return []
    info, other = found[0]
    return [
        f"deltas.{name}: {len(found)} tensors of tuned have types that those of `into` do not hold ({info.name}: "
        f"{other.dtype}, not {info.dtype}): applying the delta gives them rounded to the types of `into`, not "
        "their own bytes"
    ]


def check_fit(source: DeltaSource, steps: Sequence[Step]) -> list[str]:
    """Refuse a delta with changes that `into` has no place for: tied tensors, tensors that it lacks.

    Returns warnings about those that the steps drop. Errors: InputError, UnsupportedError.
    """
    dropped = _drops(steps, source.name)
    check_tying(source, others="drop" if dropped else "source")
    return _unmatched(source, dropped)


def check_distinct(source: DeltaSource) -> None:
    """Refuse a delta that is zero in every tensor. Errors: InputError."""
    if not any(source.changed(parameter) for parameter in source.names):
        raise InputError(
            f"delta {source.name!r}: tuned and base are equal in every tensor, so there is nothing to edit; name a "
            "checkpoint that training changed"
        )


def _drops(steps: Sequence[Step], delta: str) -> bool:
    """True where some step drops the tensors of this delta that are no block matrix."""
    return any(getattr(step.options, "others", None) == "drop" and delta in step.selection.deltas for step in steps)


def _unmatched(source: DeltaSource, dropped: bool) -> list[str]:
    """Changes that `into` has no place for: refused, unless the recipe drops such tensors or they are only buffers."""
    if not isinstance(source, Difference):
        return []
    lost = {tensor: why for tensor, why in source.unmatched().items() if not tensor.endswith(BUFFERS)}
    refused = {tensor: why for tensor, why in lost.items() if not dropped or tensor.endswith(_MATRICES)}
    if refused:
        tensor, why = next(iter(refused.items()))
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise UnsupportedError(
            f"deltas.{source.name}: tensor {tensor!r}{more}: {why}; "
            "expected members of one family with the same tensors (in a recipe, a projecting step with `others: drop` "
            "leaves out tensors that are no block matrix)"
        )
    return [
        f"deltas.{source.name}: {tensor}: {why}; it is dropped with the other tensors" for tensor, why in lost.items()
    ]


def _measurable(inputs: Inputs, geometry: str, model: Weights) -> None:
    """Refuse a model that cannot be streamed, unless its geometry comes from a file."""
    if inputs.recipe.geometry[geometry].file is None:
        _require_streamable(f"geometry {geometry!r}", model)


def _require_streamable(what: str, model: Weights) -> None:
    try:
        require_loadable(model)
    except UnsupportedError as error:
        raise UnsupportedError(f"{what}: {error}") from error


def _require_heard(what: str, model: Weights) -> None:
    try:
        require_heard(model)
    except UnsupportedError as error:
        raise UnsupportedError(f"{what}: {error}") from error


def _measured(inputs: Inputs, facts: dict[str, Any]) -> list[str]:
    """The rows of fits, evaluation and gates, and the models that read them; warnings."""
    found: dict[str, Samples] = {f"step {step!r}": samples for step, samples in inputs.fit_samples.items()}
    found |= {f"evaluate.{name}": samples for name, samples in inputs.evaluation.items()}
    own = {index: samples for index, samples in inputs.gate_samples.items() if inputs.recipe.gates[index].data}
    found |= {f"gates[{index}] ({inputs.recipe.gates[index].measure})": samples for index, samples in own.items()}
    facts["rows"] = {what: {**samples.counts, "fingerprint": samples.fingerprint} for what, samples in found.items()}
    if found:
        _require_streamable(next(iter(found)), inputs.into)
    elif inputs.recipe.gates:
        _require_streamable("gates: smoke (`gates: []` does without)", inputs.into)
    for planned in inputs.recipe.steps:
        if planned.verb == "fit" and inputs.fits[planned.method].asks == "attention":
            _require_heard(f"step {planned.id!r}", inputs.into)
    for step, models in inputs.fit_models.items():
        ids = {index for sample in inputs.fit_samples[step].samples for index in sample.ids}
        for key, model in models.items():
            _require_streamable(f"step {step!r}: {key}", model)
            check_same_tokens(f"step {step!r}: {key}", inputs.into, model, ids, inputs.tokenizers)
    return [f"{what}: {warning}" for what, samples in found.items() for warning in samples.warnings]
