"""The demonstration: one family merged by a sum, by mergekit's TIES and by the shipped recipe, at two weights."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.demo.output import filled_in, output_folder
from vecsurgery.demo.reasoning.models import Trained
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from vecsurgery.evaluation.types import Evaluation

RECIPE = "rain"
SEEDS = (0, 1, 2)
"""The demo shows the first, whose models are shipped."""
PLAIN, INSTRUCTED = 12, 24
"""Questions that are asked, of the test rows."""
SAMPLES, LONGEST = 4, 64
"""Generations of each, and most tokens of one."""
HEAVIER = 3.0
"""Weight of the second merge by the recipe: what a projection leaves is small (docs/rain.md)."""
DENSITY = 0.5
"""Of TIES: the share of each difference that mergekit keeps, its usual choice."""

_HEAVIER = f"rain × {HEAVIER:g}"
_SIDE_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_MEASURES = ("think_format", "thinking_median", "answer_accuracy", "compliance", "right_and_compliant")
_FAR = ("think_kl", "answer_kl")


@dataclass(frozen=True)
class Row:
    """One model on the questions: shares of its generations, and mean divergences from the reasoning model in nats."""

    name: str
    think_format: float | None
    thinking_median: float | None
    answer_accuracy: float | None
    compliance: float | None
    right_and_compliant: float | None
    think_kl: float | None
    answer_kl: float | None


def show(*, seeds: int = 1, out: Path | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Merge, ask and compare, for the first `seeds` seeds; the models of the first are shipped, others are trained.

    `out`: new folder for recipes, questions and merged models; by default `vecsurgery-demo` in the current folder, with
    a number where it exists. Returns {"rows": [...], "out": folder, "text": the page that the command prints}.
    Raises: InputError where `out` is taken; GateError where a result does not pass the recipe's gates.
    """
    folder = output_folder(out)
    shown = {seed: _rows(seed, folder, progress) for seed in SEEDS[:seeds]}
    rows = [{"seed": seed, **asdict(row)} for seed, own in shown.items() for row in own]
    return {"rows": rows, "out": str(folder), "text": _text(shown, folder)}


def _rows(seed: int, folder: Path, progress: Progress) -> list[Row]:
    from vecsurgery.demo.reasoning.models import train_family
    from vecsurgery.demo.reasoning.shipping import SHIPPED_SEED, shipped_models
    from vecsurgery.demo.reasoning.sums import sums
    from vecsurgery.recipe import shipped
    from vecsurgery.studies import evaluate
    from vecsurgery.surgery import api

    trained = shipped_models() if seed == SHIPPED_SEED else train_family(sums, seed, progress=progress)
    recipe = folder / f"{RECIPE}-{seed}.yaml"
    recipe.write_text(with_own_files(shipped.text(RECIPE), trained), encoding="utf-8")
    merged = {name: folder / f"{name}-{seed}" for name in ("sum", "ties", "rain", "rain-heavier")}
    api.run(recipe, merged["rain"], progress=progress)
    api.run(recipe, merged["rain-heavier"], overrides=[f"weights.instruct={HEAVIER}"], progress=progress)
    plain = folder / f"sum-{seed}.yaml"
    plain.write_text(_sum_recipe(trained), encoding="utf-8")
    api.run(plain, merged["sum"], progress=progress)
    merge_by_ties(trained, folder / f"ties-{seed}.mergekit.yaml", merged["ties"])
    found = evaluate(
        {
            "reasoning": trained.reasoning,
            "instruct": trained.instruct,
            "sum": merged["sum"],
            "TIES": merged["ties"],
            "rain": merged["rain"],
            _HEAVIER: merged["rain-heavier"],
        },
        think=_questions(trained, folder / f"questions-{seed}.jsonl"),
        think_samples=SAMPLES,
        think_longest=LONGEST,
        against="reasoning",
        progress=progress,
    )
    return [_row(found, model.label) for model in found.models]


def with_own_files(text: str, trained: Trained) -> str:
    """The shipped recipe with the demo's models and rows in place of the examples; every setting stays."""
    places = {
        "into: org/reasoner": f"into: {json.dumps(str(trained.reasoning))}",
        "tuned: org/instruct": f"tuned: {json.dumps(str(trained.instruct))}",
        "base: org/base": f"base: {json.dumps(str(trained.base))}",
        "data: reasoning.jsonl": f"data: {json.dumps(str(trained.data / 'calibration.jsonl'))}",
    }
    return filled_in(RECIPE, text, places)


def _sum_recipe(trained: Trained) -> str:
    """Task arithmetic at weight 1: the same difference, added as it is. No gate: it may be broken, and is shown."""
    return (
        "# The instruction delta added as it is: what the recipe rain is compared with.\n"
        f"into: {json.dumps(str(trained.reasoning))}\n"
        "deltas:\n"
        f"  instruct: {{tuned: {json.dumps(str(trained.instruct))}, base: {json.dumps(str(trained.base))}}}\n"
        "gates: []\n"
    )


def merge_by_ties(
    trained: Trained,
    config: Path,
    out: Path,
    *,
    density: float = DENSITY,
    weight: float = 1.0,
    normalize: bool = True,
) -> None:
    """TIES by mergekit, both models against their base, the reasoning model with weight 1.

    `normalize`, mergekit's default: where both differences agree in sign the result is their weighted mean, which is
    not a line in `weight`; else their weighted sum.

    Writes its YAML to `config` and a checkpoint with the reasoning model's side files to `out`.
    """
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    models = [
        {"model": str(folder), "parameters": {"weight": number, "density": density}}
        for folder, number in ((trained.reasoning, 1.0), (trained.instruct, weight))
    ]
    content: dict[str, Any] = {"merge_method": "ties", "base_model": str(trained.base), "models": models}
    content |= {"parameters": {"normalize": normalize}, "dtype": "float32", "out_dtype": "float16"}
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(content), str(out), options)
    for name in _SIDE_FILES:
        shutil.copyfile(trained.reasoning / name, out / name)


def _questions(trained: Trained, path: Path) -> Path:
    """Write the first test rows of both kinds into one file."""
    lines: list[str] = []
    for kind, count in (("plain", PLAIN), ("instructed", INSTRUCTED)):
        text = (trained.data / f"test-{kind}.jsonl").read_text(encoding="utf-8")
        lines += text.splitlines()[:count]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _row(found: "Evaluation", label: str) -> Row:
    figures = found.model(label).data["think"].figures
    return Row(label, **{name: figures[name].value if name in figures else None for name in (*_MEASURES, *_FAR)})


def _text(shown: dict[int, list[Row]], folder: Path) -> str:
    heads = ("think format", "length", "right", "obeys", "both", "L_think", "KL behind")
    lines = [
        "Three tiny models of one family: a base that knows how to add, a reasoning model that answers sums behind",
        "`<think>steps</think>`, and an instruction model that answers at once, in the form that it is asked for. What",
        "the instruction model learnt is merged into the reasoning model in three ways: added as it is (`sum`), by",
        "mergekit's TIES, and by the shipped recipe `rain`, which adds what does not touch the thinking: once, and",
        f"{HEAVIER:g} times, because what it leaves is small. How to choose that number is told in docs/rain.md.",
        "",
        f"{PLAIN} plain sums and {INSTRUCTED} with an instruction about the form of the answer are asked {SAMPLES}",
        "times each, by the model's own sampling; sums are new to all, instructions not. Shares: think format kept;",
        "right in whatever form; and of those with an instruction, in the form that was asked for, and both at once.",
        "Length: tokens of a thought. L_think: divergence from the reasoning model at the tokens of its thoughts, in",
        "nats; KL behind: of the first tokens behind them.",
        "",
        f"{'seed':>4}  {'model':<12}" + "".join(f"{head:>13}" for head in heads),
    ]
    for seed, rows in shown.items():
        lines += [
            f"{seed:>4}  {row.name:<12}" + "".join(f"{_number(value):>13}" for value in _values(row)) for row in rows
        ]
    lines.append("")
    for seed, rows in shown.items():
        lines += [*_verdict(seed, rows), f"recipe: {folder / f'{RECIPE}-{seed}.yaml'}"]
        lines += [f"output: {folder / f'{RECIPE}-{seed}'}", f"report: {folder / f'{RECIPE}-{seed}' / 'report.html'}"]
    return "\n".join(lines) + "\n"


def _values(row: Row) -> tuple[float | None, ...]:
    return tuple(getattr(row, name) for name in (*_MEASURES, *_FAR))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _verdict(seed: int, rows: list[Row]) -> list[str]:
    """What was gained and what it cost, in one sentence each."""
    by_name = {row.name: row for row in rows}
    shown = [by_name[name] for name in ("sum", "TIES", "rain", _HEAVIER)]
    merged = ", ".join(f"{row.name} {row.right_and_compliant or 0.0:.0%}" for row in shown)
    right = ", ".join(f"{row.name} {row.answer_accuracy or 0.0:.0%}" for row in (by_name["reasoning"], *shown))
    far = ", ".join(f"{row.name} {_number(row.think_kl)}" for row in shown)
    return [
        f"seed {seed}: right and in the form that was asked for: {merged}.",
        f"        right in whatever form: {right}.",
        f"        L_think, how far thoughts moved: {far} nats.",
        f"        {PLAIN + INSTRUCTED} questions are too few to rank what lies close; docs/rain.md has more.",
    ]
