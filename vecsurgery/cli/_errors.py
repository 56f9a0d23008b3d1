"""One place where an exception becomes a message and an exit code: 0 ok, 1 failed, 2 bad input, 130 interrupted."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from vecsurgery.errors import VecsurgeryError

INTERRUPTED = 130
_JSON = "vecsurgery.json"
_RESUMABLE = ("run", "reproduce", "measure", "extract", "apply", "undo")


def remember_format(ctx: click.Context, arguments: Sequence[str]) -> None:
    """Note whether errors are to be JSON; taken from the raw arguments, since parsing them may itself fail."""
    ctx.meta[_JSON] = "--json" in arguments


@contextmanager
def reported(ctx: click.Context) -> Iterator[None]:
    """Turn our errors, wrong usage (with --json) and Ctrl-C into a message on stderr and an exit code.

    Any other exception is a fault of the program and passes with its traceback.
    """
    try:
        yield
    except VecsurgeryError as error:
        _tell(ctx, error, str(error), error.exit_code)
    except click.UsageError as error:
        if not ctx.meta[_JSON]:
            raise
        _tell(ctx, error, error.format_message(), error.exit_code)
    except KeyboardInterrupt as error:
        resumable = ctx.invoked_subcommand in _RESUMABLE
        hint = "; what is finished was kept, the same command goes on from there" if resumable else ""
        _tell(ctx, error, f"interrupted{hint}", INTERRUPTED)


def _tell(ctx: click.Context, error: BaseException, message: str, exit_code: int) -> None:
    if ctx.meta[_JSON]:
        content: dict[str, object] = {"type": type(error).__name__, "message": message, "exit_code": exit_code}
        problems = getattr(error, "problems", None)
        if problems:
            content["problems"] = [str(problem) for problem in problems]
        click.echo(json.dumps({"error": content}, ensure_ascii=False), err=True)
    else:
        click.echo(f"error: {message}" if exit_code != INTERRUPTED else message, err=True)
    ctx.exit(exit_code)
