"""vecsurgery extract: the difference between two checkpoints as a delta folder, or as a LoRA adapter."""

from pathlib import Path
from typing import Literal

import click

from vecsurgery.cli import _options, _progress


@click.command("extract", short_help="Write the difference between two checkpoints.")
@click.argument("base", metavar="BASE")
@click.argument("tuned", metavar="TUNED")
@_options.out
@click.option("--rank", type=click.IntRange(min=1), help="Write a LoRA adapter of this rank for PEFT.")
@click.option(
    "--others",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="With --rank: what becomes of changed tensors that an adapter cannot hold.",
)
@click.option(
    "--dtype",
    type=click.Choice(["stored", "float32", "bfloat16", "float16"]),
    default="stored",
    show_default=True,
    help="Type of the values; `stored` is each tensor's type in BASE, float32 for an adapter.",
)
@_options.as_json
def command(
    base: str,
    tuned: str,
    out: Path,
    rank: int | None,
    others: Literal["refuse", "drop"],
    dtype: Literal["stored", "float32", "bfloat16", "float16"],
    as_json: bool,
) -> None:
    """Write TUNED − BASE into the folder OUT.

    From it `undo` gives back the bytes of BASE, and `apply` those of TUNED as far as its tensors have the types and
    shapes of BASE; others are rounded and cut to these, with a warning.

    BASE and TUNED are folders or hub ids. OUT is a delta folder: recipes name it under `deltas: {NAME: {file: OUT}}`.
    With --rank it is a LoRA adapter, which is cut off at that rank; the share that this loses is told for each matrix.

    \b
    Examples:
      vecsurgery extract original tuned tuned.delta
      vecsurgery extract original tuned lora --rank 16 --others drop
    """
    from vecsurgery import report
    from vecsurgery.surgery import patching

    if rank is None and others != "refuse":
        raise click.UsageError("--others goes with --rank: a delta holds every tensor")
    with _progress.shown(as_json=as_json) as progress:
        record = patching.extract(base, tuned, out, rank=rank, others=others, dtype=dtype, progress=progress)
    if as_json:
        click.echo(report.dumps(record), nl=False)
    else:
        click.echo("\n".join(report.written(record)))
        for warning in [*record["warnings"], *record["written"]["warnings"]]:
            click.echo(f"warning: {warning}")
        for note in report.notes(record):
            click.echo(f"note: {note}")
        click.echo(f"{out}: the {'delta' if rank is None else 'adapter'}, with its report in {out / 'report.html'}")
