"""vecsurgery check: is this surgery meaningful?"""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("check", short_help="Compare models, tokenizers and data first.")
@_options.recipe
@_options.overrides
@click.option("--weights", is_flag=True, help="Also read every tensor and name those that hold NaN or infinity.")
@_options.as_json
def command(recipe: Path, overrides: Sequence[str], weights: bool, as_json: bool) -> None:
    """Compare the models, tokenizers and data files of RECIPE before any heavy work.

    A difference that makes the surgery doubtful is a warning (exit code 0); one that makes it impossible is an error.

    \b
    Examples:
      vecsurgery check retain.yaml
      vecsurgery check retain.yaml --weights
    """
    from vecsurgery import report
    from vecsurgery.surgery import api

    with _progress.shown(as_json=as_json) as progress:
        found = api.check(recipe, overrides=overrides, weights=weights, progress=progress)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    click.echo(report.check_text(found, weights=weights), nl=False)
