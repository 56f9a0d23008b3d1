"""vecsurgery report: show the record of a finished run."""

from pathlib import Path

import click

from vecsurgery.cli import _options


@click.command("report", short_help="Show what was done to a model.")
@_options.out
@click.option("--html", type=_options.file_path, help="Write the page to this file instead.")
@_options.as_json
def command(out: Path, html: Path | None, as_json: bool) -> None:
    """Show what was done to OUT, a folder that `run` wrote (or its surgery.json).

    \b
    Examples:
      vecsurgery report cleaned
      vecsurgery report cleaned --html report.html
    """
    from vecsurgery import report
    from vecsurgery.errors import InputError

    if html and as_json:
        raise click.UsageError("--html and --json exclude each other")
    record = report.read(out)
    if html:
        try:
            html.write_text(report.html(record), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write the report to {html}: {error}") from error
        click.echo(f"wrote {html}")
    else:
        click.echo(report.dumps(record) if as_json else report.text(record), nl=False)
