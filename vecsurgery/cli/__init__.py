"""The command line: a thin shell, one file per command, over documented functions.

Lives here: options, help texts, progress bars, exit codes. May not: know how anything is done.
"""

import atexit
import gc
import importlib
from typing import Any

import click

from vecsurgery import __version__
from vecsurgery.cli import _errors

_COMMANDS = (
    "run",
    "check",
    "plan",
    "measure",
    "evaluate",
    "curve",
    "report",
    "compare",
    "inspect",
    "extract",
    "apply",
    "undo",
    "reproduce",
    "new",
    "schema",
    "demo",
)
"""Each is a module of this room with a click command named `command`; in the order of --help."""


class _Commands(click.Group):
    """A group that imports a command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"vecsurgery.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _errors.remember_format(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        atexit.register(gc.freeze)  # on the way out the collector would look through all that was imported: a second
        with _errors.reported(ctx):
            return super().invoke(ctx)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vecsurgery")
def main() -> None:
    """Edit the difference between two checkpoints before it is applied.

    \b
    A recipe says which difference, what it must not disturb, and where it goes:
      vecsurgery new sage             copy a shipped recipe, then put your models and data into it
      vecsurgery check sage.yaml      are these models and files fit for it?
      vecsurgery plan sage.yaml       what will be read, written and computed
      vecsurgery curve sage.yaml      is it better than scaling the difference by one number?
      vecsurgery run sage.yaml OUT    do it; OUT is a model folder with a report
    """
