"""What a reasoning model writes, measured: format, length, right answers, obeyed instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vecsurgery.calibration import Prompt
from vecsurgery.evaluation.checks import Check, RowChecks
from vecsurgery.evaluation.generation import Writer
from vecsurgery.evaluation.thinking import THINK, Thought, Written, rate, think_figures, thought
from vecsurgery.evaluation.types import Figure, Measured
from vecsurgery.progress import Progress, silent


def measure_thinking(
    writer: Writer,
    prompts: Sequence[Prompt],
    checks: Sequence[RowChecks] | None = None,
    *,
    count: int = 4,
    seed: int = 0,
    tags: tuple[str, str] = THINK,
    stage: str = "thinking",
    progress: Progress = silent,
) -> Measured:
    """The figures of `think` that come from generations: `think_format` and what stands beside it in the catalogue.

    Every prompt is continued `count` times by the model's own generation config (once where that does not draw), up to
    the writer's longest. Checkers look at the answer behind the thought; where there is none, it is wrong and obeys
    nothing. The entries of `think_format` keep the texts.

    Args:
        writer: the loaded model, with the most tokens that it may write.
        prompts: what it is asked (`calibration.prompts`).
        checks: the checkers of each prompt's row (`row_checks`); None for figures of the form alone.
        count: generations of each prompt; `seed`: with the row, decides them.
        tags: opening and closing tag of a thought.
    """
    written = writer.own(
        [prompt.ids for prompt in prompts],
        [prompt.row.identity for prompt in prompts],
        count=count,
        seed=seed,
        keep=tags,
        stage=stage,
        progress=progress,
    )
    drawn = [
        [thought(each, lambda ids: writer.text(ids, tags), prompt=prompt.text, tags=tags) for each in own]
        for prompt, own in zip(prompts, written, strict=True)
    ]
    figures = think_figures(drawn)
    figures["think_format"] = _with_texts(figures["think_format"], written)
    if checks is not None:
        figures |= check_figures(drawn, checks)
    return Measured(figures, rows=len(prompts), tokens=sum(len(each.ids) for own in written for each in own))


def check_figures(drawn: Sequence[Sequence[Thought]], checks: Sequence[RowChecks]) -> dict[str, Figure]:
    """`answer_accuracy`, `compliance` and `right_and_compliant` of generations, as far as rows have checkers for them.

    `drawn`: the generations of each row; `checks`: of the same rows.
    """
    right = [_passed(own, each.right) for own, each in zip(drawn, checks, strict=True)]
    obeyed = [_passed(own, each.obeys) for own, each in zip(drawn, checks, strict=True)]
    both = [
        None if first is None or second is None else [a and b for a, b in zip(first, second, strict=True)]
        for first, second in zip(right, obeyed, strict=True)
    ]
    found = {"answer_accuracy": right, "compliance": obeyed, "right_and_compliant": both}
    return {name: rate(rows) for name, rows in found.items() if any(row is not None for row in rows)}


def _passed(drawn: Sequence[Thought], check: Check | None) -> list[bool] | None:
    """Whether each generation's answer passes; None where there is nothing to check."""
    if check is None:
        return None
    return [each.answer is not None and check(each.answer) for each in drawn]


def _with_texts(figure: Figure, written: Sequence[Sequence[Written]]) -> Figure:
    texts = {str(index): [each.text for each in own] for index, own in enumerate(written)}
    entries = {index: {**entry, "generations": texts[index]} for index, entry in figure.by_index.items()}
    return replace(figure, by_index=entries)
