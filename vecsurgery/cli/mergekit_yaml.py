"""vecsurgery-mergekit: mergekit-yaml with our projectors among its merge methods."""

import atexit
import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vecsurgery.cli import _errors

NAME = "vecsurgery-mergekit"
_HELP = """Merge models as mergekit-yaml does, with the projectors of vecsurgery as further merge methods.

They are called vecsurgery_NAME, as in `merge_method: vecsurgery_null_space`; their parameters are the projector's
options, and a geometry is the path of a geometry file. Everything else is mergekit's.
"""


def command() -> click.Command:
    """mergekit's own command, prepared for our methods; importing it takes seconds."""
    from mergekit.scripts import run_yaml

    made: click.Command = copy.copy(run_yaml.main)
    made.name, made.help, made.callback = NAME, _HELP, _merge
    return made


def _merge(**given: Any) -> None:
    from mergekit.scripts import run_yaml

    from vecsurgery import plugin

    atexit.register(gc.freeze)  # on the way out the collector would look through all that was imported: a second
    context = click.get_current_context()
    path, out = Path(given["config_file"]), Path(given["out_path"])
    _errors.remember_format(context, ())
    with _errors.reported(context), _not_left_empty(out), plugin.prepared(path, given, _warn):
        run_yaml.main.callback(**given)
    if not given["quiet"]:
        click.echo(f"wrote the model to {out}", err=True)


@contextmanager
def _not_left_empty(out: Path) -> Iterator[None]:
    """Take away the folder that mergekit makes before it computes, where it failed before the first file."""
    existed = out.exists()
    try:
        yield
    finally:
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    command().main(args=arguments, prog_name=NAME)


if __name__ == "__main__":
    main()
