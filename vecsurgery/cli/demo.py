"""vecsurgery demo: the whole story on models trained in a minute."""

import json
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("demo", short_help="See it work on a tiny model.")
@click.option("--seeds", type=click.IntRange(1, 3), default=1, show_default=True, help="How many model pairs to train.")
@click.option("--out", type=_options.file_path, help="Folder for the recipe, the models and their reports.")
@_options.as_json
def command(seeds: int, out: Path | None, as_json: bool) -> None:
    """Train a tiny model, unlearn a part of it, clean the damage, and show what came back. Needs no network.

    \b
    Example:
      vecsurgery demo --seeds 3 --out demo
    """
    from vecsurgery import demo

    with _progress.shown(as_json=as_json) as progress:
        shown = demo.show(seeds=seeds, out=out, progress=progress)
    click.echo(json.dumps(shown, indent=1, ensure_ascii=False) if as_json else shown["text"].rstrip("\n"))
