"""vecsurgery evaluate: how well models answer, side by side."""

import json
from pathlib import Path
from typing import Literal

import click

from vecsurgery.cli import _options, _progress

_DATA = "Files of one name are read one after the other."


@click.command("evaluate", short_help="Measure how models answer, side by side.")
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option("--forget", multiple=True, type=_options.file_path, help="Questions that should be forgotten.")
@click.option("--retain", multiple=True, type=_options.file_path, help="Questions that should be remembered.")
@click.option("--data", multiple=True, metavar="NAME=FILE", help=f"Other questions, or plain text. {_DATA}")
@click.option("--reference", metavar="MODEL", help="A model without the forget data (or its figures): forget quality.")
@click.option("--generate", is_flag=True, help="Also let the models answer greedily: ROUGE-L recall.")
@click.option("--samples", type=click.IntRange(min=0), default=0, help="Also draw so many answers to forget questions.")
@click.option("--leak", multiple=True, type=click.IntRange(min=1), metavar="K", help="leak@K of the drawn answers.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the drawn answers.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Of the drawn answers.")
@click.option("--longest", type=click.IntRange(min=1), default=200, show_default=True, help="Tokens of an answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="A text that ends a generated answer.")
@click.option("--think", multiple=True, type=_options.file_path, help="Prompts for reasoning models: what they write.")
@click.option("--think-samples", type=click.IntRange(min=1), default=4, show_default=True, help="Texts of a prompt.")
@click.option("--think-longest", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens of a text.")
@click.option("--think-tags", nargs=2, default=("<think>", "</think>"), show_default=True, help="Around a thought.")
@click.option("--think-after", type=click.IntRange(min=0), default=8, show_default=True, help="Tokens behind, for KL.")
@click.option("--against", metavar="MODEL", help="KL of thoughts: from this model; by default, the first one named.")
@click.option("--tasks", metavar="NAME[,NAME]", help="Tasks of lm-eval (the extra `lm-eval`).")
@click.option("--task-folder", type=_options.file_path, help="Folder of further tasks of lm-eval.")
@click.option("--task-limit", type=click.IntRange(min=1), help="At most so many documents of a task.")
@click.option("--rows", metavar="A-B", callback=_options.row_range, help="Only these rows of each name: 0-399.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many rows of each name, drawn by --seed.")
@click.option("--template", default="auto", show_default=True, help="Chat template: auto, none or a Jinja file.")
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens of a row; default: context, at most 2048.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of --limit, --samples and --think.")
@click.option("--picture", type=_options.file_path, help="Draw the figures into this .svg or .png file.")
@click.option("--tofu-eval", type=_options.file_path, metavar="FOLDER", help="Write FOLDER/NAME/TOFU_EVAL.json.")
@_options.compute
@_options.as_json
def command(
    models: tuple[str, ...],
    forget: tuple[Path, ...],
    retain: tuple[Path, ...],
    data: tuple[str, ...],
    reference: str | None,
    generate: bool,
    samples: int,
    leak: tuple[int, ...],
    temperature: float,
    top_p: float,
    longest: int,
    stop: tuple[str, ...],
    think: tuple[Path, ...],
    think_samples: int,
    think_longest: int,
    think_tags: tuple[str, str],
    think_after: int,
    against: str | None,
    tasks: str | None,
    task_folder: Path | None,
    task_limit: int | None,
    rows: tuple[int, int] | None,
    limit: int | None,
    template: str,
    max_length: int | None,
    seed: int,
    picture: Path | None,
    tofu_eval: Path | None,
    compute: Literal["float32", "stored"],
    as_json: bool,
) -> None:
    """Measure how well models answer, side by side.

    A MODEL is a folder, a hub id, or the TOFU_EVAL.json of a model that was evaluated elsewhere. Models are streamed;
    only --generate, --samples, --think and --tasks load them, one at a time. docs/evaluation.md says what each figure
    is.

    \b
    Examples:
      vecsurgery evaluate original unlearned cleaned --forget forget.jsonl --retain retain.jsonl
      vecsurgery evaluate before=original after=cleaned --data general=general.txt --picture figures.svg
      vecsurgery evaluate unlearned cleaned --forget forget10_perturbed.json --reference retrained
      vecsurgery evaluate cleaned --forget forget.jsonl --generate --samples 8 --leak 4 --tofu-eval figures
      vecsurgery evaluate reasoning instruct merged --think prompts.jsonl --think-samples 8
      vecsurgery evaluate merged --tasks gsm8k,ifeval --task-limit 100
    """
    from vecsurgery import report
    from vecsurgery.recipe import DataSpec
    from vecsurgery.studies import evaluating

    if picture is not None:
        report.require_picture(picture)

    def spec(files: tuple[Path, ...]) -> DataSpec:
        return DataSpec(files, template, rows=rows, limit=limit, max_length=max_length, seed=seed)

    specs = {name: spec(files) for name, files in _sources(forget, retain, data).items()}
    with _progress.shown(as_json=as_json) as progress:
        found = evaluating.evaluate(
            models,
            specs,
            reference=reference,
            generate=generate,
            samples=samples,
            leak=leak,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            longest=longest,
            stop=stop,
            think=spec(think) if think else None,
            think_samples=think_samples,
            think_longest=think_longest,
            think_tags=think_tags,
            think_after=think_after,
            against=against,
            tasks=[tasks] if tasks is not None else [],
            task_folder=task_folder,
            task_limit=task_limit,
            tofu_eval=tofu_eval,
            compute=compute,
            progress=progress,
        )
    if picture is not None:
        report.evaluation_picture(found, picture)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(report.evaluation_text(found), nl=False)


def _sources(forget: tuple[Path, ...], retain: tuple[Path, ...], data: tuple[str, ...]) -> dict[str, tuple[Path, ...]]:
    """Name → files, forget and retain first."""
    found = {name: files for name, files in (("forget", forget), ("retain", retain)) if files}
    for entry in data:
        name, separator, file = entry.partition("=")
        if not separator or not name.strip() or not file:
            raise click.BadParameter(f"{entry!r}: expected NAME=FILE, as in general=general.txt", param_hint="--data")
        found[name] = (*found.get(name, ()), Path(file))
    return found
