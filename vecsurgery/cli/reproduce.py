"""vecsurgery reproduce: run a record again and compare the bytes."""

import json
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("reproduce", short_help="Run a record again and compare the bytes.")
@click.argument("record", type=_options.file_path, metavar="SURGERY.JSON")
@_options.out
@_options.as_json
@click.pass_context
def command(context: click.Context, record: Path, out: Path, as_json: bool) -> None:
    """Run the recipe of SURGERY.JSON again, write OUT, and compare every file with the hashes of the record.

    The exit code is 1 where a file differs.

    \b
    Example:
      vecsurgery reproduce cleaned/surgery.json cleaned-again
    """
    from vecsurgery.surgery import api

    with _progress.shown(as_json=as_json) as progress:
        found = api.reproduce(record, out, progress=progress)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        for name, state in found["files"].items():
            click.echo(f"{state:9}  {name}")
        for name, state in found["inputs"].items():
            click.echo(f"{state:9}  {name} (read)")
        click.echo("Every file is the same." if found["identical"] else "Not every file is the same.")
    if not found["identical"]:
        context.exit(1)
