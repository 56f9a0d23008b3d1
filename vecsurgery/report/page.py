"""The report as one HTML page: no script, no outside resource, light and dark, every text escaped."""

from functools import cache
from typing import TYPE_CHECKING, Any

from vecsurgery.report import fitted, holding, judged, merged, orthogonal, outcome, pictures, summary, wording
from vecsurgery.report.numbers import counted, duration, number, percent
from vecsurgery.report.plain import BIAS, figure, optional, sources, treated
from vecsurgery.report.record import FitRecord, MatrixRecord, Record

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def html(record: Record, *, worst: int = 10) -> str:
    """Render a record as a self-contained page: verdict, gates, evaluation, sources, steps, fits, pictures and tables
    per layer and matrix.

    Names from the record (models, tensors, warnings) are escaped; the same record gives the same bytes.
    """
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            record=record,
            verdict=outcome.verdict(record),
            warnings=outcome.warnings(record),
            notes=outcome.notes(record),
            sources=sources(record),
            terms=BIAS,
            steps=[total for total in summary.step_totals(record) if total.step not in merged.step_ids(record)],
            merges=(merged.TITLE, merged.HEADER, merged.rows(record)),
            settings=wording.step_settings(record),
            interference=(orthogonal.TITLE, orthogonal.HEADER, orthogonal.orthogonal(record)),
            gates=judged.gates(record),
            fits=[_fit(fit, number) for number, fit in enumerate(fitted.fits(record))],
            evaluation=judged.rows(record),
            evaluated=judged.sources(record),
            amplified=fitted.unamplified(record),
            geometries=[_geometry(record, name, total, worst) for name, total in summary.totals(record).items()],
            holds=holding.written(record),
            inexact=holding.inexact(record),
            layers=summary.layers(record),
            changes={name: summary.by_layer(record, name) for name in summary.totals(record)},
        )
    )


def _step_tables(matrices: list[MatrixRecord]) -> list[dict[str, Any]]:
    """One table for each step and delta: the facts that any matrix has are its columns."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for matrix in matrices:
        for step in matrix["steps"]:
            key = (step["step"], step["delta"])
            table = found.setdefault(key, {"step": step["step"], "delta": step["delta"], "facts": {}, "rows": []})
            table["facts"].update(dict.fromkeys(step["facts"]))
            table["rows"].append((matrix, step["facts"]))
    return list(found.values())


def _short(matrix: MatrixRecord) -> str:
    """The tensor's name inside its block; the whole name where the block is not named by its number."""
    _, inside, name = matrix["tensor"].partition(f".{matrix['layer']}.")
    return (name if inside else matrix["tensor"]).removesuffix(".weight")


def _marked(text: str) -> "Markup":
    """Escape a sentence and set its `names` as code; a backtick without a partner stays as it is."""
    from markupsafe import Markup

    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces[-2:] = ["`".join(pieces[-2:])]
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(pieces))


def _fit(fit: FitRecord, place: int) -> dict[str, Any]:
    return {
        "title": fitted.title(fit),
        "tiles": fitted.tiles(fit),
        "lines": fitted.described(fit),
        "picture": pictures.curve(fit, prefix=f"fit-{place}-"),
    }


def _geometry(record: Record, name: str, total: summary.Change, worst: int) -> dict[str, Any]:
    return {
        "name": name,
        "total": total,
        "amplification": fitted.amplification(record, name),
        "picture": pictures.layers(record, name),
        "worst": summary.least_cleaned(record, name, count=worst),
    }


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vecsurgery.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "figure": figure,
        "percent": percent,
        "optional": optional,
        "duration": duration,
        "kinds": wording.kinds,
        "left": summary.left_stored,
        "treated": treated,
        "marked": _marked,
        "short": _short,
        "step_tables": _step_tables,
    }
    environment.globals["counted"] = counted
    return environment
