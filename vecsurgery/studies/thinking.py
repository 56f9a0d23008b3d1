"""Reasoning models side by side: what each writes, and how far it is from one of them where that one thinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vecsurgery.calibration import Prompt, Row, Sample, asking_rows, prompts, thoughts
from vecsurgery.checkpoint import Stored
from vecsurgery.errors import InputError
from vecsurgery.evaluation import Writer, measure_thinking, row_checks, think_divergences
from vecsurgery.evaluation.catalogue import THINK
from vecsurgery.evaluation.types import EvaluatedModel, Measured
from vecsurgery.progress import Progress
from vecsurgery.recipe.types import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vecsurgery.checkpoint.types import Weights
    from vecsurgery.forward import Compute


@dataclass(frozen=True)
class Thinking:
    """What reasoning models are asked, and how.

    `samples`: generations of each prompt; `longest`: most tokens of one; `after`: tokens behind a thought whose
    divergence is taken, none where it is 0.
    """

    spec: DataSpec
    samples: int
    longest: int
    tags: tuple[str, str]
    after: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """What determines the figures beside models and data files."""
        spec = self.spec
        rows = list(spec.rows) if spec.rows else None
        data = {"template": spec.template, "rows": rows, "limit": spec.limit, "max_length": spec.max_length}
        own = {"samples": self.samples, "longest": self.longest, "tags": list(self.tags), "after": self.after}
        return data | own | {"seed": self.seed}


@dataclass(frozen=True)
class Thinker:
    """One model that is asked: its weights, the tokenizer that renders its prompts, and what it reads at most."""

    label: str
    weights: Weights
    tokenizer: PreTrainedTokenizerFast
    context: int | None


def require_thinking(thinking: Thinking, *, against: bool) -> None:
    """Look at everything that was asked for, without torch: numbers, tags, rows and their checkers.

    `against`: a model to compare thoughts with was named, for which some row needs `reasoning`. Raises InputError.
    """
    opening, closing = thinking.tags
    if not opening.strip() or not closing.strip() or opening in closing or closing in opening:
        raise InputError(
            f"evaluating thoughts between {opening!r} and {closing!r}; expected two tags, neither of them a "
            "part of the other"
        )
    if thinking.samples < 1 or thinking.longest < 1 or thinking.after < 0:
        raise InputError(
            f"evaluating thoughts: {thinking.samples} samples of at most {thinking.longest} tokens, and "
            f"{thinking.after} tokens behind them; expected 1 sample, 1 token, 0 tokens or more"
        )
    rows = asking_rows(thinking.spec)
    for row in rows:
        row_checks(row)
    if against and not any(_thinks(row) for row in rows):
        files = ", ".join(map(str, thinking.spec.data))
        raise InputError(f"comparing thoughts: no row of {files} has `reasoning` and a response")


def asked_prompts(thinker: Thinker, thinking: Thinking) -> list[Prompt]:
    """What one model is asked. Raises InputError for rows that it cannot be asked."""
    found = prompts(asking_rows(thinking.spec), thinking.spec, thinker.tokenizer, thinking.tags)
    for prompt in found:
        if thinker.context is not None and len(prompt.ids) >= thinker.context:
            raise InputError(
                f"{prompt.row.where}: a prompt of {len(prompt.ids)} tokens fills the context of {thinker.label} "
                f"({thinker.context}); leave out long rows (`rows`)"
            )
    return found


def thinking_of(
    thinker: Thinker, asked: Sequence[Prompt], thinking: Thinking, *, compute: Compute, progress: Progress
) -> tuple[Measured, list[str]]:
    """The figures of what one model writes, and warnings."""
    assert isinstance(thinker.weights, Stored)  # others were refused
    writer = Writer(thinker.weights.folder, thinker.tokenizer, longest=thinking.longest, compute=compute)
    measured = measure_thinking(
        writer,
        asked,
        [row_checks(prompt.row) for prompt in asked],
        count=thinking.samples,
        seed=thinking.seed,
        tags=thinking.tags,
        stage=f"{thinker.label}: thinking",
        progress=progress,
    )
    drawn = writer.draws or thinking.samples == 1
    greedy = "its generation_config.json does not ask for sampling: one greedy text of each prompt is measured"
    return measured, [] if drawn else [greedy]


@dataclass(frozen=True)
class Kept:
    """Thoughts that are to stay. `others`: the models that are compared on them; `warnings`: what is not compared."""

    reference: Thinker
    others: tuple[Thinker, ...]
    samples: tuple[Sample, ...]
    warnings: tuple[str, ...]


def kept_thoughts(reference: Thinker, thinkers: Sequence[Thinker], thinking: Thinking) -> Kept:
    """The rows with `reasoning` in the reference's tokens, and the models that read the same tokens in these ids.

    Raises InputError for a row in which a tag does not stand exactly once.
    """
    rows = [row for row in asking_rows(thinking.spec) if _thinks(row)]
    others = [each for each in thinkers if each.label != reference.label]
    contexts = [each.context for each in (reference, *others) if each.context is not None]
    context = min(contexts) if contexts else None
    samples = thoughts(rows, thinking.spec, reference.tokenizer, thinking.tags, context=context) if others else []
    warnings = []
    if others and len(samples) < len(rows):
        cut = len(rows) - len(samples)
        warnings.append(f"{THINK}: {cut} of {len(rows)} thoughts are not compared: `max_length` cuts them off")
    same = {each.label: _other_token(reference, each, samples) for each in others}
    warnings += [f"{label}: {said}" for label, said in same.items() if said]
    return Kept(reference, tuple(each for each in others if not same[each.label]), tuple(samples), tuple(warnings))


def with_divergences(
    found: Sequence[EvaluatedModel], kept: Kept, thinking: Thinking, *, compute: Compute, progress: Progress
) -> list[EvaluatedModel]:
    """The models with the divergence of their next tokens from the reference's at its thoughts.

    Nothing is added where no row has `reasoning`, to the reference itself, and to models that read other tokens.
    """
    if not kept.samples or not kept.others:
        return list(found)
    figures = think_divergences(
        kept.reference.weights,
        [each.weights for each in kept.others],
        kept.samples,
        after=thinking.after,
        compute=compute,
        stage=f"comparing thoughts with {kept.reference.label}",
        progress=progress,
    )
    more = {each.label: own for each, own in zip(kept.others, figures, strict=True)}
    complete = []
    for model in found:
        if model.label in more:
            measured = model.data[THINK]
            measured = replace(measured, figures={**measured.figures, **more[model.label]})
            model = replace(model, data={**model.data, THINK: measured})
        complete.append(model)
    return complete


def _thinks(row: Row) -> bool:
    return row.reasoning is not None and bool(row.response)


def _other_token(reference: Thinker, other: Thinker, samples: Sequence[Sample]) -> str:
    """Why distributions cannot be compared: the first id of the samples that is another token; empty where none is."""
    for index in sorted({index for sample in samples for index in sample.ids}):
        ours, theirs = (each.tokenizer.convert_ids_to_tokens(index) for each in (reference, other))
        if ours != theirs:
            return (
                f"its thoughts are not compared with {reference.label}: id {index} of the rows is {ours!r} there and "
                f"{theirs!r} here"
            )
    return ""
