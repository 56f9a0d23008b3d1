"""vecsurgery measure: a geometry of a recipe as a file, whole or in parts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from vecsurgery.cli import _options, _progress


@click.command("measure", short_help="Write a geometry to a file.")
@click.argument("sources", nargs=-1, required=True, type=_options.file_path, metavar="RECIPE [GEOMETRY] | PART...")
@click.option("--out", required=True, type=_options.file_path, help="File to write.")
@click.option(
    "--rows",
    metavar="A-B",
    callback=_options.row_range,
    help="Only these rows of the data, 0-based and inclusive: 0-499.",
)
@click.option("--moments", is_flag=True, help="Write partial moments, which --union adds exactly.")
@click.option("--union", is_flag=True, help="Add the partial moments PART... to one geometry.")
@_options.overrides
@_options.compute
@_options.as_json
def command(
    sources: tuple[Path, ...],
    out: Path,
    rows: tuple[int, int] | None,
    moments: bool,
    union: bool,
    overrides: Sequence[str],
    compute: Literal["float32", "stored"],
    as_json: bool,
) -> None:
    """Measure GEOMETRY of RECIPE (its only one, where it is not named) and write it to a file.

    The file serves any recipe as `geometry: {NAME: {file: FILE}}`. Partial moments of other rows, measured on other
    machines, add exactly.

    \b
    Examples:
      vecsurgery measure retain.yaml retain --out retain.safetensors
      vecsurgery measure retain.yaml --rows 0-499 --moments --out part-1.safetensors
      vecsurgery measure --union part-1.safetensors part-2.safetensors --out retain.safetensors
    """
    from vecsurgery.surgery import api

    if union:
        if rows or moments or overrides:
            raise click.UsageError(
                "--union adds files that were measured already; --rows, --moments and --set do not apply"
            )
        api.union(sources, out)
    else:
        recipe, name = _recipe_and_geometry(sources)
        with _progress.shown(as_json=as_json) as progress:
            api.measure(
                recipe,
                name,
                out,
                overrides=overrides,
                rows=rows,
                moments=moments,
                compute=compute,
                progress=progress,
            )
    click.echo(json.dumps({"file": str(out)}, ensure_ascii=False) if as_json else f"wrote {out}")


def _recipe_and_geometry(sources: tuple[Path, ...]) -> tuple[Path, str | None]:
    if len(sources) > 2:
        raise click.UsageError(
            f"expected RECIPE and at most one GEOMETRY, got {len(sources)} names; --union takes parts"
        )
    return sources[0], str(sources[1]) if len(sources) == 2 else None
