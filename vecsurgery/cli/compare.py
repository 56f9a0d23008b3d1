"""vecsurgery compare: what differs between two checkpoints."""

import json
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("compare", short_help="Show what differs between two checkpoints.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--into", metavar="MODEL", help="Compare the changes from this model too; default: the one the records name."
)
@click.option("--worst", type=click.IntRange(min=0), default=10, show_default=True, help="How many tensors to name.")
@click.option("--picture", type=_options.file_path, help="Draw where they differ into this .svg or .png file.")
@_options.as_json
def command(a: str, b: str, into: str | None, worst: int, picture: Path | None, as_json: bool) -> None:
    """Show what differs between A and B: weights, measures and recipes.

    A and B are folders or hub ids of one layout: two outputs, an output and what went into it, or any two checkpoints.
    Weights are read tensor by tensor. Measures and recipes come from surgery.json, where there is one.

    \b
    Examples:
      vecsurgery compare cleaned cleaned-softer
      vecsurgery compare cleaned original --picture where.svg
      vecsurgery compare cleaned unlearned --into original --json
    """
    from vecsurgery import report
    from vecsurgery.studies import comparing

    if picture is not None:
        report.require_picture(picture)
    with _progress.shown(as_json=as_json) as progress:
        found = comparing.compare(a, b, into=into, progress=progress)
    if picture is not None:
        report.comparison_picture(found, picture)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(found.text(worst=worst), nl=False)
