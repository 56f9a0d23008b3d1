"""vecsurgery apply: a delta folder added to the model that it was made from."""

import json
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("apply", short_help="Add a delta to the model it was made from.")
@click.argument("into", metavar="INTO")
@click.argument("delta", type=_options.file_path, metavar="DELTA")
@_options.out
@_options.as_json
def command(into: str, delta: Path, out: Path, as_json: bool) -> None:
    """Write the model folder OUT: INTO with the delta folder DELTA added, bit for bit what the delta's maker had.

    INTO must be the model that the delta was made from, a folder or hub id. Every tensor is compared with the SHA-256
    that the delta records. Weight files, tokenizer and configuration have the names and headers of those of INTO.
    OUT holds no surgery.json and no report.html, only a model card beside the model: the figures are in DELTA.

    \b
    Example:
      vecsurgery apply original tuned.delta tuned-again
    """
    from vecsurgery.surgery import patching

    with _progress.shown(as_json=as_json) as progress:
        found = patching.apply(into, delta, out, progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        click.echo(found.text(), nl=False)
        click.echo(f"{out}: the model")
