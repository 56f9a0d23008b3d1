"""What a work folder found, as the tables of the documentation: every seed is shown, nothing is averaged away.

In square brackets: the point of a method that comes nearest to the wanted forgetting where none is near enough, and
its share of the forgetting. Such a point is compared with nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.unlearning.matching import near
from benchmarks.unlearning.settings import Settings
from vecsurgery.fits import at_equal

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
_RETAINED = "Retained NLL (token probability)"
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
        **{f"{_RETAINED}, {name} equal at 90 %": _retained(seeds, key) for key, name in _MATCH.items()},
        f"{_RETAINED}, {_MATCH['capped']} equal at 50 %": _retained(seeds, "half"),
        **{
            f"Beside it, equal in {name}: {role} rows": _beside(seeds, role, key)
            for key, name in _MATCH.items()
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
    """A row for each unlearner and seed: what each method retains, and the ratio of NLL that the recipe is about."""
    rows = []
    for unlearner, seed, result in compared(seeds):
        ends = {name: _kept(result["ends"][name]) for name in ("original", "raw")}
        points = _points(result, measure)
        shown = {name: _marked(_kept(point), point) for name, point in points.items()}
        recipe = next(name for name in points if name.startswith("keep"))
        ratio: Any = "–"
        if _equal(points[recipe]) and _equal(points["scaling"]):
            ratio = points[recipe]["retain_test"]["nll"] / points["scaling"]["retain_test"]["nll"]
        rows.append({"unlearner": unlearner, "seed": seed, **ends, **shown, f"{recipe} / scaling": ratio})
    return rows


def _points(result: Any, measure: str) -> dict[str, Any]:
    """Method → its point; "half": where half is forgotten."""
    if measure == "half":
        return {name: line["milder"] for name, line in result["lines"].items() if "milder" in line}
    return {name: line["matched"][measure] for name, line in result["lines"].items()}


def _kept(point: Any) -> str:
    retained = point["retain_test"]
    return f"{_cell(retained['nll'])} ({_cell(retained['token_probability'])})"


def _marked(text: str, point: Any) -> str:
    """The text, in square brackets with its share where the point does not forget as much as the others."""
    return text if _equal(point) else f"[{text}, {_cell(point['share'])}]"


def _equal(point: Any) -> bool:
    """Whether a point is where the others are; the ends of a line always are."""
    comparison = Settings().comparison
    levels = (comparison.share, comparison.milder)
    return "share" not in point or any(near(point["share"], level, comparison.tolerance) for level in levels)


def _share(point: Any) -> str:
    share = _cell(point["share"]) if "share" in point else ""
    return share if _equal(point) else f"[{share}]"


def _beside(seeds: Mapping[int, Found], role: str, measure: str) -> Rows:
    rows = []
    for unlearner, _, result in compared(seeds):
        for name, point in {**result["ends"], **_points(result, measure)}.items():
            row = {"unlearner": unlearner, "model": name, "share": _share(point)}
            row |= {label: point[f"{role}_test"][key] for key, label in MEASURES.items()}
            rows.append(row | ({"ROUGE-L": point["rouge"][f"{role}_test"]} if measure == "capped" else {}))
    return _joined(rows, 2)


def _joined(rows: Rows, labels: int) -> Rows:
    """Rows with equal first columns as one row, whose cells hold each seed's value: a / b / c."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row.values())[:labels], []).append(row)
    found = []
    for same in groups.values():
        names = list(same[0])
        cells = {name: _side_by_side([_cell(row[name]) for row in same]) for name in names[labels:]}
        found.append({name: same[0][name] for name in names[:labels]} | cells)
    return found


def _side_by_side(cells: list[str]) -> str:
    return " / ".join(cells) if any(cells) else ""


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _paraphrased(seeds: Mapping[int, Found]) -> Rows:
    rows = [
        {
            "unlearner": unlearner,
            "model": name,
            "share": _share(point),
            **{
                f"{role} {label}{' as asked' if part == 'test' else ', paraphrased'}": point[f"{role}_{part}"][key]
                for role, key, label in (("forget", "capped", "capped"), ("retain", "nll", "NLL"))
                for part in ("test", "paraphrased")
            },
        }
        for unlearner, _, result in compared(seeds)
        for name, point in {**result["ends"], **_points(result, "capped")}.items()
    ]
    return _joined(rows, 2)


_SHIPPED = ["unlearner", "stored as", "coefficient", "share kept"]
_SHIPPED += [f"retain NLL, {model}" for model in ("original", "raw", "cleaned", "scaled to that share")]


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
                scaled = _scaled(results.get(name.replace("shipped", "compare")), row["share kept"])
                rows.append({"retain NLL, cleaned": "–"} | row | {"retain NLL, scaled to that share": scaled})
    rows = [{name: row[name] for name in sorted(row, key=_SHIPPED.index)} for row in rows]
    return _joined(rows, 2)


def _scaled(result: Any, share: Any) -> Any:
    """Retain NLL of the raw delta scaled to a share of its forgetting, by its curve in float32."""
    if result is None or not isinstance(share, float):
        return "–"
    start, end = (result["ends"][name]["forget_test"]["capped"] for name in ("original", "raw"))
    line = [(0.0, result["ends"]["original"]["retain_test"]["nll"])]
    for point in result["lines"]["scaling"]["curve"]:
        line.append(((point["forget_test"]["capped"] - start) / (end - start), point["retain_test"]["nll"]))
    found = at_equal([place for place, _ in line], [loss for _, loss in line], share)
    return "–" if found is None else found


def _sensitive(seeds: Mapping[int, Found], table: str) -> Rows:
    rows = []
    for results in seeds.values():
        for entry in results.get("sensitivity", {}).get(table, ()):
            labels = {table: entry[table]}
            if table == "keep":
                labels["others"] = entry.get("others", "source")
            loss = _cell(entry["retain_test"]["nll"])
            shown = {key: entry[key] for key in ("steps", "coefficient", "share") if key in entry}
            rows.append({**labels, **shown, "retain NLL": loss if _equal(entry) else f"[{loss}]"})
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
