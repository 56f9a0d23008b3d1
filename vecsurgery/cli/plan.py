"""vecsurgery plan: what a recipe will do, before it does it."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("plan", short_help="Show what a recipe will do.")
@_options.recipe
@_options.overrides
@_options.as_json
def command(recipe: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Show what RECIPE will touch, read, write and compute.

    \b
    Example:
      vecsurgery plan retain.yaml --set output.dtype=bfloat16
    """
    from vecsurgery.surgery import api

    with _progress.shown(as_json=as_json) as progress:
        plan = api.plan(recipe, overrides=overrides, progress=progress)
    click.echo(json.dumps(plan.to_dict(), indent=1, ensure_ascii=False) if as_json else plan.text().rstrip("\n"))
