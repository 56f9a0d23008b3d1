"""vecsurgery run: carry out a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from vecsurgery.cli import _options, _progress

_SHOWN = 5
"""Warnings that are printed, the weightiest; the report has all of them."""


@click.command("run", short_help="Carry out a recipe.")
@_options.recipe
@_options.out
@_options.overrides
@_options.compute
@_options.as_json
def command(
    recipe: Path, out: Path, overrides: Sequence[str], compute: Literal["float32", "stored"], as_json: bool
) -> None:
    """Carry out RECIPE and write the model folder OUT.

    OUT appears when it is complete, with report.html, surgery.json and recipe.yaml beside the weights; until then the
    work is in OUT.partial, and the same command resumes it.

    \b
    Examples:
      vecsurgery run retain.yaml cleaned
      vecsurgery run retain.yaml cleaned --set retain_energy.keep=0.05
    """
    from vecsurgery import report
    from vecsurgery.surgery import api

    with _progress.shown(as_json=as_json) as progress:
        record = api.run(recipe, out, overrides=overrides, compute=compute, progress=progress)
    if as_json:
        click.echo(report.dumps(record), nl=False)
    else:
        click.echo(report.verdict(record))
        found = report.warnings(record)
        for warning in found[:_SHOWN]:
            click.echo(f"warning: {warning}")
        if len(found) > _SHOWN:
            click.echo(f"{len(found) - _SHOWN} more: vecsurgery report {out}")
        written = f"the {record['written']['format']}" if "written" in record else "the model"
        for note in report.notes(record):
            click.echo(f"note: {note}")
        click.echo(f"{out}: {written}, with its report in {out / 'report.html'}")
