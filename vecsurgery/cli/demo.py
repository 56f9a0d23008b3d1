"""vecsurgery demo: the whole story on tiny models."""

import importlib
import json
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("demo", short_help="See it work on a tiny model.")
@click.argument("story", type=click.Choice(["unlearning", "reasoning"]), default="unlearning", metavar="[STORY]")
@click.option(
    "--seeds", type=click.IntRange(1, 3), default=1, show_default=True, help="How many, each with its own models."
)
@click.option("--out", type=_options.file_path, help="Folder for the recipes, the models and their reports.")
@_options.as_json
def command(story: str, seeds: int, out: Path | None, as_json: bool) -> None:
    """Show what the shipped recipes do to tiny models. Needs no network; about a minute, and less the second time.

    STORY unlearning (the default): train a model, unlearn a part of what it knows, and clean the damage.
    STORY reasoning: merge a model that obeys into one that thinks, in three ways, and ask them all. The models of the
    first seed are shipped; those of each further seed are trained, which takes some minutes.

    \b
    Examples:
      vecsurgery demo
      vecsurgery demo --seeds 3 --out demo
      vecsurgery demo reasoning
    """
    module = importlib.import_module(f"vecsurgery.demo.{story}.showing")
    with _progress.shown(as_json=as_json) as progress:
        shown = module.show(seeds=seeds, out=out, progress=progress)
    click.echo(json.dumps(shown, indent=1, ensure_ascii=False) if as_json else shown["text"].rstrip("\n"))
