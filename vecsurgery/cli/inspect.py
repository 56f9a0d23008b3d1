"""vecsurgery inspect: deltas, a model or a geometry, looked at before any surgery."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from vecsurgery.cli import _options, _progress


@click.command("inspect", short_help="Look at deltas before any surgery: norms, spectra, overlap.")
@click.argument("what", metavar="RECIPE | MODEL... | GEOMETRY", nargs=-1, required=True)
@click.option(
    "--base",
    metavar="MODEL",
    help="What the models were trained from, adapters are added to, and deltas were made from.",
)
@click.option("--geometry", multiple=True, metavar="[NAME=]FILE", help="Set the deltas against this geometry file too.")
@_options.overrides
@click.option("--layers", multiple=True, metavar="A-B", help="Only these blocks, as 0-7 or 3.")
@click.option("--modules", multiple=True, metavar="ROLE", help="Only these of q k v o gate up down other.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N blocks, spread evenly.")
@click.option(
    "--top", type=click.IntRange(min=1), default=16, show_default=True, help="Singular directions to look at."
)
@click.option(
    "--energy",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="A geometry's directions that count hold this share of its energy.",
)
@click.option("--exact", is_flag=True, help="All singular values of matrices above 1024 too; slow.")
@click.option("--worst", type=click.IntRange(min=0), default=10, show_default=True, help="How many tensors to name.")
@click.option("--picture", type=_options.file_path, help="Draw what was found into this .svg or .png file.")
@_options.as_json
def command(
    what: Sequence[str],
    base: str | None,
    geometry: Sequence[str],
    overrides: Sequence[str],
    layers: Sequence[str],
    modules: Sequence[str],
    limit: int | None,
    top: int,
    energy: float,
    exact: bool,
    worst: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Look at deltas before any surgery: how large they are, how many directions they have, how far they overlap.

    Of a RECIPE: all its deltas, and its geometries that are files. Of MODELs with --base: what each changed; a folder
    with an adapter, or with a delta as `extract` writes it, is added to the base. A MODEL alone: its weights. A
    GEOMETRY file: the energies of its sites.
    Nothing is written but a picture, if asked for. A large model is sampled with --limit, --layers and --modules.

    \b
    Examples:
      vecsurgery inspect sage.yaml
      vecsurgery inspect unlearned --base original --geometry cleaned/surgery/retain.safetensors --picture seen.svg
      vecsurgery inspect cooking=first coding=second --base original --limit 4 --json
      vecsurgery inspect tuned.delta other-tuned --base original
      vecsurgery inspect cleaned/surgery/retain.safetensors
    """
    from vecsurgery import report
    from vecsurgery.studies import inspecting

    if picture is not None:
        report.require_picture(picture)
    with _progress.shown(as_json=as_json) as progress:
        found = inspecting.inspect(
            list(what),
            base=base,
            geometry=list(geometry),
            layers=list(layers) or None,
            modules=list(modules) or None,
            limit=limit,
            top=top,
            energy=energy,
            exact=exact,
            overrides=overrides,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(found.text(worst=worst), nl=False)
    if picture is not None:
        report.inspection_picture(found, picture)
