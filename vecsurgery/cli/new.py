"""vecsurgery new: start from a shipped recipe."""

from pathlib import Path

import click

from vecsurgery.cli import _options


@click.command("new", short_help="Copy a shipped recipe, or list them.")
@click.argument("name", required=False)
@click.argument("path", required=False, type=_options.file_path)
def command(name: str | None, path: Path | None) -> None:
    """Copy the shipped recipe NAME to PATH (default: NAME.yaml here); without NAME, list the recipes. What it extends
    is put beside it, unless a file of that name is there.

    \b
    Examples:
      vecsurgery new
      vecsurgery new retain
      vecsurgery new rain recipes/merge.yaml
    """
    from vecsurgery.recipe import shipped

    if name is None:
        names = shipped.names()
        width = max(map(len, names))
        for known in names:
            click.echo(f"{known:{width}}  {shipped.summary(known)}")
        return
    written = shipped.copy(name, path if path is not None else Path(f"{name.removesuffix('.yaml')}.yaml"))
    beside = " and ".join(["", *shipped.extends(name)])
    click.echo(f"wrote {written}{beside}; put your models and data in it, then: vecsurgery check {written}")
