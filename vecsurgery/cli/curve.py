"""vecsurgery curve: damage against forgetting, to decide by."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from vecsurgery.cli import _options, _progress


@click.command("curve", short_help="Damage against forgetting, for many factors.")
@_options.recipe
@_options.overrides
@click.option("--points", type=click.IntRange(min=3), default=12, show_default=True, help="Factors of the method.")
@click.option("--keep", type=_options.file_path, metavar="FOLDER", help="Keep geometry files here, and reuse them.")
@click.option("--picture", type=_options.file_path, help="Draw the curves into this .svg or .png file.")
@_options.compute
@_options.as_json
def command(
    recipe: Path,
    overrides: Sequence[str],
    points: int,
    keep: Path | None,
    picture: Path | None,
    compute: Literal["float32", "stored"],
    as_json: bool,
) -> None:
    """Damage to retained rows against forgetting, for RECIPE's method and for the raw delta scaled by one number.

    The rows are those under `evaluate: {forget: …, retain: …}`. All models are compared in a few streaming passes;
    nothing is written but a picture and geometry files, if asked for. Scaling is the trivial alternative: a method is
    worth its trouble where it does less damage at equal forgetting.

    \b
    Examples:
      vecsurgery curve sage.yaml --picture curve.svg
      vecsurgery curve sage.yaml --set retain_energy.keep=0.1 --json
    """
    from vecsurgery import report
    from vecsurgery.studies import curves

    if picture is not None:
        report.require_picture(picture)
    with _progress.shown(as_json=as_json) as progress:
        found = curves.curve(
            recipe, overrides=overrides, points=points, folder=keep, compute=compute, progress=progress
        )
    if picture is not None:
        report.curve_picture(found.to_dict(), picture)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else found.text().rstrip("\n"))
