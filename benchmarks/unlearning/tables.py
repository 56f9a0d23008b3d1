"""What a work folder found, as the tables of the documentation: a cell shows every seed, nothing is averaged away."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]
"""Results of a seed by name: `health`, `compare/npo`, …"""
Rows = list[dict[str, Any]]
MEASURES = {
    "nll": "NLL",
    "capped": "capped",
    "token_probability": "token prob.",
    "row_probability": "row prob.",
    "accuracy": "accuracy",
}
_MATCH = {"capped": "capped answer loss", "token_probability": "mean token probability"}


def read(folder: Path, seeds: Sequence[int]) -> dict[int, Found]:
    """Every result of these seeds that exists."""
    found: dict[int, Found] = {}
    for seed in seeds:
        root = folder / f"seed-{seed}"
        results = [path for path in sorted(root.rglob("*.json")) if path.relative_to(root).parts[0] not in _OTHERS]
        found[seed] = {
            path.relative_to(root).with_suffix("").as_posix(): json.loads(path.read_text())["result"]
            for path in results
        }
    return found


_OTHERS = ("models", "cleaned", "training", "rows", "geometry")
"""Folders of a seed that hold no result."""


def tables(seeds: Mapping[int, Found]) -> dict[str, Rows]:
    """Title → rows of every table that the results allow."""
    found = {
        "Models before cleaning, evaluation authors": _health(seeds),
        **{f"Retain NLL where forgetting is equal in {name}": _retained(seeds, key) for key, name in _MATCH.items()},
        **{
            f"Beside it, equal in capped answer loss: {role} rows": _beside(seeds, role)
            for role in ("forget", "retain")
        },
        "Paraphrased questions, the models that are equal in capped answer loss": _paraphrased(seeds),
        "The recipe as shipped: what 8 fit rows arrive at": _shipped(seeds),
        "GradDiff: keep": _sensitive(seeds, "keep"),
        "GradDiff: calibration tokens": _sensitive(seeds, "tokens"),
        "GradDiff: fine-tuning the unlearned model, multiples of equal compute": _sensitive(seeds, "compute"),
        "GradDiff: fit rows, median and 5–95 % over draws": _draws(seeds),
        "Relearning: capped answer loss of the evaluation authors over steps": _relearned(seeds),
    }
    return {title: rows for title, rows in found.items() if rows}


def compared(seeds: Mapping[int, Found]) -> list[tuple[str, int, Any]]:
    """(unlearner, seed, what `compare` found), unlearner by unlearner."""
    named = [
        (name.removeprefix("compare/"), seed, result)
        for seed, results in seeds.items()
        for name, result in results.items()
        if name.startswith("compare/")
    ]
    order = ("gradient_ascent", "grad_diff", "npo", "rmu")
    return sorted(named, key=lambda entry: (order.index(entry[0]), entry[1]))


def _health(seeds: Mapping[int, Found]) -> Rows:
    return [
        {
            "seed": seed,
            "model": model,
            **{f"{role} {label}": roles[role][key] for role in roles for key, label in MEASURES.items()},
        }
        for seed, results in seeds.items()
        for model, roles in results.get("health", {}).items()
    ]


def _retained(seeds: Mapping[int, Found], measure: str) -> Rows:
    """A row for each unlearner and seed: the retain NLL of each method. In brackets: the target was not met."""
    rows = []
    for unlearner, seed, result in compared(seeds):
        ends = {name: result["ends"][name]["retain_test"]["nll"] for name in ("original", "raw")}
        points = {name: line["matched"][measure] for name, line in result["lines"].items()}
        losses = {name: point["retain_test"]["nll"] for name, point in points.items()}
        recipe = next(name for name in losses if name.startswith("keep"))
        shown = {name: f"{loss:.3g}" if points[name]["met"] else f"({loss:.3g})" for name, loss in losses.items()}
        ratio = losses[recipe] / losses["scaling"]
        rows.append({"unlearner": unlearner, "seed": seed, **ends, **shown, f"{recipe} / scaling": ratio})
    return rows


def _beside(seeds: Mapping[int, Found], role: str) -> Rows:
    rows = [
        {
            "unlearner": unlearner,
            "model": name,
            **{label: point[f"{role}_test"][key] for key, label in MEASURES.items()},
            "ROUGE-L": point["rouge"][f"{role}_test"],
        }
        for unlearner, _, result in compared(seeds)
        for name, point in _shown_points(result).items()
    ]
    return _joined(rows, 2)


def _joined(rows: Rows, labels: int) -> Rows:
    """Rows with equal first columns as one row, whose cells hold each seed's value: a / b / c."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row.values())[:labels], []).append(row)
    found = []
    for same in groups.values():
        names = list(same[0])
        cells = {name: " / ".join(_cell(row[name]) for row in same) for name in names[labels:]}
        found.append({name: same[0][name] for name in names[:labels]} | cells)
    return found


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _shown_points(result: Any) -> dict[str, Any]:
    return {**result["ends"], **{name: line["matched"]["capped"] for name, line in result["lines"].items()}}


def _paraphrased(seeds: Mapping[int, Found]) -> Rows:
    rows = [
        {
            "unlearner": unlearner,
            "model": name,
            **{
                f"{role} {label}{' as asked' if part == 'test' else ', paraphrased'}": point[f"{role}_{part}"][key]
                for role, key, label in (("forget", "capped", "capped"), ("retain", "nll", "NLL"))
                for part in ("test", "paraphrased")
            },
        }
        for unlearner, _, result in compared(seeds)
        for name, point in _shown_points(result).items()
    ]
    return _joined(rows, 2)


_SHIPPED = ["unlearner", "stored as", "coefficient", "share kept"]
_SHIPPED += [f"retain NLL, {model}" for model in ("original", "raw", "cleaned")]


def _shipped(seeds: Mapping[int, Found]) -> Rows:
    rows = []
    for results in seeds.values():
        for name, entries in results.items():
            for entry in entries if name.startswith("shipped/") else ():
                models = [model for model in ("original", "raw", "cleaned") if model in entry]
                capped = {model: entry[model]["forget_test"]["capped"] for model in models}
                rise = {model: capped[model] - capped["original"] for model in models}
                row = {"unlearner": name.removeprefix("shipped/"), "stored as": entry["stored as"]}
                row["coefficient"] = entry.get("coefficient", "refused")
                row["share kept"] = rise["cleaned"] / rise["raw"] if "cleaned" in rise else "–"
                row |= {f"retain NLL, {model}": entry[model]["retain_test"]["nll"] for model in models}
                rows.append({"retain NLL, cleaned": "–"} | row)
    rows = [{name: row[name] for name in sorted(row, key=_SHIPPED.index)} for row in rows]
    return _joined(rows, 2)


def _sensitive(seeds: Mapping[int, Found], table: str) -> Rows:
    rows = []
    for results in seeds.values():
        for entry in results.get("sensitivity", {}).get(table, ()):
            labels = {table: entry[table]}
            if table == "keep":
                labels["others"] = entry.get("others", "source")
            loss = _cell(entry["retain_test"]["nll"])
            shown = {key: entry[key] for key in ("steps", "coefficient", "share") if key in entry}
            rows.append({**labels, **shown, "retain NLL": loss if entry["met"] else f"({loss})"})
    return _joined(rows, 2 if table == "keep" else 1)


def _draws(seeds: Mapping[int, Found]) -> Rows:
    rows = [
        {
            "rows": entry["rows"],
            **{
                name: f"{entry[name]['median']:.3g} ({entry[name]['low']:.3g}–{entry[name]['high']:.3g})"
                for name in ("coefficient", "share", "retain nll")
            },
        }
        for results in seeds.values()
        for entry in results.get("sensitivity", {}).get("fit rows", ())
    ]
    return _joined(rows, 1)


def _relearned(seeds: Mapping[int, Found]) -> Rows:
    rows = [
        {
            "unlearner": name.removeprefix("relearn/"),
            "start": model,
            **{f"step {point['step']}": point["forget_test"]["capped"] for point in curve},
        }
        for results in seeds.values()
        for name, curves in results.items()
        if name.startswith("relearn/")
        for model, curve in curves.items()
    ]
    return _joined(rows, 2)
