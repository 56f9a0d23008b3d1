"""vecsurgery undo: the model as it was before apply."""

import json
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("undo", short_help="Take a delta out again, bit for bit.")
@click.argument("edited", metavar="EDITED")
@click.argument("delta", type=_options.file_path, metavar="DELTA")
@_options.out
@_options.as_json
def command(edited: str, delta: Path, out: Path, as_json: bool) -> None:
    """Write the model folder OUT: what EDITED was before `apply` added the delta folder DELTA to it, bit for bit.

    EDITED must be what `apply` made with this delta (or the checkpoint that the same recipe gives); anything else is
    refused with the first tensor that differs. EDITED itself stays as it is. OUT
    holds the model alone, without surgery.json and report.html.

    \b
    Example:
      vecsurgery undo tuned-again tuned.delta original-again
    """
    from vecsurgery.surgery import patching

    with _progress.shown(as_json=as_json) as progress:
        found = patching.undo(edited, delta, out, progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        click.echo(found.text(), nl=False)
        click.echo(f"{out}: the model")
