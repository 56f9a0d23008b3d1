"""vecsurgery schema: the recipe language for editors."""

import json
from pathlib import Path

import click

from vecsurgery.cli import _options


@click.command("schema", short_help="Print the JSON Schema of the recipes.")
@click.option("--out", type=_options.file_path, help="Write to this file instead of printing.")
def command(out: Path | None) -> None:
    """Print the JSON Schema of the recipe language, installed methods included.

    \b
    Example (then name the file in the editor's YAML settings):
      vecsurgery schema --out vecsurgery.schema.json
    """
    from vecsurgery import methods, recipe
    from vecsurgery.errors import InputError

    text = json.dumps(recipe.schema(methods.available()), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the schema to {out}: {error}") from error
    click.echo(f"wrote {out}")
