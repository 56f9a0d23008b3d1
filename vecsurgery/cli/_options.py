"""Options and arguments that several commands share, so that each is worded once."""

import re
from pathlib import Path

import click


def row_range(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Callback of an option `a-b`: first and last row, 0-based, inclusive."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)-(\d+)", value)
    if match is None or int(match[1]) > int(match[2]):
        expected = "expected first-last, 0-based and inclusive, as in 0-499"
        raise click.BadParameter(f"{value!r} is no range of rows; {expected}", context, parameter)
    return int(match[1]), int(match[2])


file_path = click.Path(path_type=Path)

recipe = click.argument("recipe", type=file_path)
out = click.argument("out", type=file_path)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the recipe: a path of keys (output.dtype=float32) or a step by method name or id "
    "(retain_energy.keep=0.05). May be given several times.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines; errors are JSON on stderr.")
compute = click.option(
    "--compute",
    type=click.Choice(["float32", "stored"]),
    default="float32",
    show_default=True,
    help="Number type of the forward passes; `stored` is the checkpoint's own.",
)
