"""Judging the result: `evaluate` and `gates`, over the edited weights, in one pass.

Models are `into`, raw (`into` plus every delta as loaded, computed on demand) and edited, which is read from the
shards that were written: figures are those of the folder, and nothing is projected a second time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from vecsurgery.calibration import has_tokenizer
from vecsurgery.calibration.types import Sample
from vecsurgery.checkpoint import Stored, file_sha256
from vecsurgery.checkpoint.types import Weights
from vecsurgery.editing.edited import Edited
from vecsurgery.errors import NotFiniteError
from vecsurgery.evaluation import Measured, Source, Writer, figures, looping, measure_thinking, score_sources
from vecsurgery.forward import Compute, Several, Single, TokenScores, greedy
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.judged import (
    CONTINUATIONS,
    CONTINUED,
    MODELS,
    end_ids,
    judged_models,
    judged_sources,
    key,
)
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import DataSpec, GateSpec
from vecsurgery.report.record import EvaluationRecord, GateRecord

SMOKE_RATIO = 10.0
"""perplexity(edited)/perplexity(into) above which `smoke` fails."""
_END, _END_IDS = 60, 16
"""Characters and token ids of a looping continuation that its reason shows."""


@dataclass(frozen=True)
class Judgement:
    """Figures of `evaluate` and what became of every gate."""

    evaluation: dict[str, EvaluationRecord]
    gates: list[GateRecord]

    @property
    def failed(self) -> list[GateRecord]:
        return [gate for gate in self.gates if not gate["passed"]]


def judged(
    inputs: Inputs,
    raw: Edited,
    opened: Callable[[], AbstractContextManager[Weights]],
    compute: Compute = "float32",
    progress: Progress = silent,
) -> Judgement:
    """Measure everything that `evaluate` and `gates` ask for: one pass for all of it, and the continuations of `smoke`.

    `opened` opens the result. Nothing is done where the recipe asks for nothing.
    """
    sources = judged_sources(inputs)
    if not sources:
        return Judgement({}, [])
    with opened() as edited:
        return _judged(inputs, sources, raw, edited, compute, progress)


def _judged(
    inputs: Inputs, sources: Mapping[str, Source], raw: Edited, edited: Weights, compute: Compute, progress: Progress
) -> Judgement:
    models = judged_models(inputs)
    # One reader of `into` for itself and for raw, which asks for the same tensor next.
    weights = {"into": raw.into, "raw": raw, "edited": edited}
    models_read = Several([weights[name] for name in models])
    scores = score_sources(models_read, sources, compute=compute, progress=progress)
    vocabulary = int(inputs.into.config.get_text_config().vocab_size)
    measured = {
        model: {name: figures(source, own[name], vocabulary, name) for name, source in sources.items()}
        for model, own in zip(models, scores, strict=True)
    }
    evaluation = {
        name: _evaluation_record(name, data, {model: found[name] for model, found in measured.items()})
        for name, data in inputs.recipe.evaluate.items()
    }
    gates = []
    for index, gate in enumerate(inputs.recipe.gates):
        own = {model: found[key(index)] for model, found in measured.items() if key(index) in found}
        if gate.measure == "smoke":
            losses = scores[models.index("edited")][key(index)]
            gates.append(_smoke(inputs, edited, own, losses, sources[key(index)], compute, progress))
        elif gate.writing is not None:
            gates.append(_thinking(inputs, index, edited, compute, progress))
        else:
            gates.append(_gate(gate, own))
    return Judgement(evaluation, gates)


def _evaluation_record(name: str, data: DataSpec, measured: Mapping[str, Measured]) -> EvaluationRecord:
    values = {model: found.values() for model, found in measured.items()}
    broken = [f"{model}: {key}" for model, own in values.items() for key, value in own.items() if value is None]
    first = next(iter(measured.values()))
    return EvaluationRecord(
        rows=first.rows,
        tokens=first.tokens,
        data={str(file): file_sha256(file) for file in data.data},
        figures={
            model: {key: value for key, value in own.items() if value is not None} for model, own in values.items()
        },
        warnings=[f"evaluate.{name}: {text} is not finite and was left out" for text in broken],
    )


def _gate(gate: GateSpec, measured: Mapping[str, Measured]) -> GateRecord:
    value, words = _value(gate, measured)
    return _held(gate, value, words)


def _held(gate: GateSpec, value: float | None, words: str) -> GateRecord:
    """A value against its bounds; `words`: where it comes from."""
    limits = {"min": gate.min, "max": gate.max}
    bounds = {name: f"{name} {limit:g}" for name, limit in limits.items() if limit is not None}
    if value is None or not math.isfinite(value):
        return _gate_record(gate, None, False, f"{gate.measure}: {words}, which is no number to hold against a bound")
    missed = _missed(gate, value)
    side = "min" if gate.min is not None and value < gate.min else "max"
    verdict = f"misses {bounds[side]} by {missed:.4g}" if missed else f"within {' and '.join(bounds.values())}"
    return _gate_record(gate, value, not missed, f"{gate.measure} {value:.4g} ({words}), {verdict}")


def _thinking(inputs: Inputs, index: int, edited: Weights, compute: Compute, progress: Progress) -> GateRecord:
    """The think format of what the result writes: its folder in the making is loaded whole, its own sampling settings
    decide, and nothing else is asked of it."""
    gate, asked = inputs.recipe.gates[index], inputs.gate_prompts[index]
    assert gate.writing is not None
    assert gate.data is not None
    assert isinstance(edited, Stored)  # the shards that were written
    writing = gate.writing
    tokenizer = inputs.tokenizers[inputs.into.folder]
    try:
        writer = Writer(edited.folder, tokenizer, longest=writing.longest, compute=compute)
        found = measure_thinking(
            writer,
            asked,
            count=writing.samples,
            seed=gate.data.seed,
            tags=writing.tags,
            stage="thinking (edited)",
            progress=progress,
        ).figures["think_format"]
    except NotFiniteError:
        return _gate_record(gate, None, False, "think_format: the logits of a generation are not finite")
    assert found.interval is not None  # every prompt has a generation
    low, high = found.interval
    drawn = sum(len(entry["samples"]) for entry in found.by_index.values())
    return _held(gate, found.value, f"of {drawn} texts, 95 % interval {low:.3f} to {high:.3f}")


def _missed(gate: GateSpec, value: float) -> float:
    """By how much the value lies outside of the bounds; 0 inside."""
    below = gate.min - value if gate.min is not None else 0.0
    above = value - gate.max if gate.max is not None else 0.0
    return max(below, above, 0.0)


def _gate_record(gate: GateSpec, value: float | None, passed: bool, reason: str) -> GateRecord:
    record = GateRecord(measure=gate.measure, min=gate.min, max=gate.max, value=value, passed=passed, reason=reason)
    if gate.data is not None:
        record["data"] = {str(file): file_sha256(file) for file in gate.data.data}
    return record


def _value(gate: GateSpec, measured: Mapping[str, Measured]) -> tuple[float | None, str]:
    """The value of a measure (None where it is undefined), and where it comes from in words."""
    if gate.measure == "forgetting":
        into, raw, edited = (_number(measured[model], "capped_loss") for model in MODELS)
        words = f"capped answer loss: into {into:.4g}, raw {raw:.4g}, edited {edited:.4g}"
        return ((edited - into) / (raw - into) if raw > into else None), words
    name, words = ("nll", "answer NLL") if gate.measure == "retention" else ("perplexity", "perplexity")
    into, edited = (_number(measured[model], name) for model in ("into", "edited"))
    return edited - into if gate.measure == "retention" else edited / into, f"{words} {into:.4g} → {edited:.4g}"


def _number(measured: Measured, name: str) -> float:
    """A figure; NaN where there is none, as of texts of one token."""
    figure = measured.figures.get(name)
    return math.nan if figure is None or figure.value is None else figure.value


def _smoke(
    inputs: Inputs,
    edited: Weights,
    measured: Mapping[str, Measured],
    scores: Sequence[TokenScores],
    source: Source,
    compute: Compute,
    progress: Progress,
) -> GateRecord:
    """Finite logits, no explosion of perplexity, no loop in greedy continuations that `into` does not fall into."""
    gate = GateSpec("smoke")
    broken = sum(not bool(score.losses.isfinite().all()) for score in scores)
    if broken:
        return _gate_record(gate, None, False, f"smoke: logits are not finite on {broken} of {len(scores)} texts")
    into, after = (_number(measured[model], "perplexity") for model in ("into", "edited"))
    ratio = after / into
    words = f"perplexity {into:.4g} → {after:.4g}"
    if not ratio <= SMOKE_RATIO:
        excess = f"{ratio:.4g} times that of `into`, at most {SMOKE_RATIO:g} is allowed"
        return _gate_record(gate, None, False, f"smoke: {words}, {excess}")
    try:
        loops = _loops(inputs, edited, source.samples.samples, compute, progress)
    except NotFiniteError:
        return _gate_record(gate, None, False, f"smoke: {words}, but logits of a greedy continuation are not finite")
    if loops:
        count = f"{len(loops)} of {CONTINUATIONS} greedy continuations"
        ends = "; ".join(_end(inputs, ids) for ids in loops)
        text = f"{count} repeat themselves where those of `into` do not; so they end: {ends}"
        return _gate_record(gate, None, False, f"smoke: {text}")
    return _gate_record(gate, None, True, f"smoke: finite logits, {words}, no new loop in greedy continuations")


def _loops(
    inputs: Inputs, edited: Weights, samples: Sequence[Sample], compute: Compute, progress: Progress
) -> list[list[int]]:
    """The greedy continuations of the edited model that loop where those of `into` do not.

    Small models loop under greedy decoding whatever is done to them; what the edit broke is what counts. `into` is
    asked only where the edited model loops.
    """
    prompts = [sample.ids[: min(max(1, len(sample.ids) // 2), CONTINUED)] for sample in samples[:CONTINUATIONS]]

    def continued(model: Weights, name: str, chosen: Sequence[tuple[int, ...]]) -> list[list[int]]:
        stage = f"continuing ({name})"
        ends = end_ids(inputs)
        return greedy(
            Single(model), chosen, tokens=CONTINUED, stop=ends, compute=compute, stage=stage, progress=progress
        )[0]

    found = zip(prompts, continued(edited, "edited", prompts), strict=True)
    looped = [(prompt, new) for prompt, new in found if looping(new)]
    if not looped:
        return []
    before = continued(inputs.into, "into", [prompt for prompt, _ in looped])
    return [new for (_, new), old in zip(looped, before, strict=True) if not looping(old)]


def _end(inputs: Inputs, ids: Sequence[int]) -> str:
    """The last characters of a continuation on one line; its last ids where these are blank or have no tokenizer."""
    folder = inputs.into.folder
    text = " ".join(str(inputs.tokenizers[folder].decode(ids)).split()) if has_tokenizer(folder) else ""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    if not text:
        return f"… {' '.join(map(str, ids[-_END_IDS:]))} (token ids)"
    return f"“{text}”" if len(text) <= _END else f"“…{text[-_END:]}”"
