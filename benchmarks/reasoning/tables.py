"""Tables and the picture of the experiment, from its work folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vecsurgery.demo.reasoning.family import Family

BASELINE = "task arithmetic"
DEMANDS = (0.99, 0.95, 0.9, 0.8)
"""Shares of the reasoning model's plain accuracy. The first is the experiment's; the others were added when its results
were known."""
_BESIDE = ("begun.json", "models.json")
"""Files of a seed that are no method's result."""


def tables(work: Path) -> dict[str, list[dict[str, Any]]]:
    """Title → rows, for all families that there are results of; a cell has the values of the seeds in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for family, folders in _families(work).items():
        members = [_result(folder / "models.json") for folder in folders]
        results = [{each["method"]: each for each in _results(folder)} for folder in folders]
        bases = [(each.get(BASELINE) or {}).get("chosen") for each in results]
        names = [name for name in results[0] if all(name in each for each in results)]
        seeds = ", ".join(folder.name.partition("-")[2] for folder in folders)
        found[f"{family}: the models, each asked by its own template; seeds {seeds}"] = [
            {"model": name} | _joined([_figures(each[name]) for each in members]) for name in ("reasoning", "instruct")
        ]
        found[f"{family}: each method at the weight chosen for it"] = [
            {"method": name}
            | _joined([_chosen(each[name]["chosen"], base) for each, base in zip(results, bases, strict=True)])
            for name in names
        ]
        found[f"{family}: each method at weight 1"] = [
            {"method": name if len(results[0][name]["whole"]) == 1 else f"{name}, density {variant}"}
            | _joined([_figures(each[name]["whole"][variant]) | _kl(each[name]["whole"][variant]) for each in results])
            for name in names
            for variant in results[0][name]["whole"]
        ]
        asked = [member["reasoning"]["choosing"]["plain"]["right"] for member in members]
        found[f"{family}: most right and in form on the rows that choose, by the plain accuracy that is asked for"] = [
            {"method": name}
            | _joined([_frontier(each[name]["path"], whole) for each, whole in zip(results, asked, strict=True)])
            for name in names
        ]
    return found


def _frontier(path: Sequence[Mapping[str, Any]], whole: float) -> dict[str, float]:
    """Demand → largest share among the points of a line that meet it; 0 where none does."""
    return {
        f"{demand:g}": max(
            (point["instructed"]["both"] for point in path if point["plain"]["right"] >= demand * whole), default=0.0
        )
        for demand in DEMANDS
    }


def seen(family: Family) -> dict[str, int]:
    """Of how many test problems the models read the steps before: in the base's plain text, or as the beginning of the
    thought of a longer problem.
    """
    steps = [problem.steps for problem in family.problems.test]
    longer = [problem.steps for problem in family.problems.training]
    return {
        "test problems": len(steps),
        "steps in plain text": sum(any(each in text for text in family.statements) for each in steps),
        "beginning of a longer one": sum(any(text.startswith(each) for text in longer) for each in steps),
    }


def _joined(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The values of all seeds in one cell."""
    keys = dict.fromkeys(key for cell in cells for key in cell)
    return {key: " / ".join(_short(cell.get(key)) for cell in cells) for key in keys}


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _chosen(point: Mapping[str, Any] | None, base: Mapping[str, Any] | None) -> dict[str, Any]:
    if point is None:
        return {"weight": "none"}
    ratio = point["instructed"]["both"] / base["instructed"]["both"] if base and base["instructed"]["both"] else None
    density = f", density {point['variant']:g}" if point["variant"] else ""
    return {"weight": f"{point['weight']:g}{density}"} | _figures(point) | _kl(point) | {"over a sum": ratio}


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    plain, instructed = found["plain"], found["instructed"]
    return {
        "plain: right": plain["right"],
        "instructed: right": instructed["right"],
        "obeys": instructed["obeys"],
        "both": instructed["both"],
        "think format": (plain["well_formed"] + instructed["well_formed"]) / 2,
    }


def _kl(found: Mapping[str, Any]) -> dict[str, Any]:
    behind = [name for name in found if name.startswith("answer_kl_")]
    return {"L_think": found["think_kl"]} | {f"KL of {name[10:]} behind": found[name] for name in behind}


def draw(work: Path, path: Path) -> None:
    """A panel for each family and seed: right and obeying over plain accuracy, a line of each method in its weight."""
    import matplotlib
    from matplotlib.figure import Figure

    families = _families(work)
    if not families:
        return
    columns = max(map(len, families.values()))
    with matplotlib.rc_context({"svg.hashsalt": "vecsurgery", "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.8 * columns, 3.4 * len(families)), layout="constrained")
        panels = figure.subplots(len(families), columns, squeeze=False, sharey=True)
        for row, (family, folders) in zip(panels, families.items(), strict=True):
            for panel, folder in zip(row, folders, strict=False):
                _panel(panel, folder)
                panel.set(title=f"{family}, {folder.name.replace('-', ' ')}", xlabel="plain prompts answered right")
            row[0].set_ylabel("instructed: right and in form")
        panels[0][0].legend(fontsize=7)
        figure.savefig(path, metadata={"Date": None})


def _panel(panel: Any, folder: Path) -> None:
    for each in _results(folder):
        name = each["method"]
        for variant in dict.fromkeys(point["variant"] for point in each["path"]) if name in _DRAWN else ():
            points = [point for point in each["path"] if point["variant"] == variant]
            right = [point["plain"]["right"] for point in points]
            both = [point["instructed"]["both"] for point in points]
            label = f"{name}, {variant:g}" if variant else name
            panel.plot(right, both, marker=".", label=label, color=_DRAWN[name], alpha=0.5 if variant == 1.0 else 1.0)


_DRAWN = {
    "task arithmetic": "#888888",
    "task arithmetic, matrices": "#bbbbbb",
    "null space": "#0b6e4f",
    "null space at tags": "#72b01d",
    "random subspace": "#c44536",
    "attention scaled": "#30638e",
    "TIES": "#d98e04",
}


def _families(work: Path) -> dict[str, list[Path]]:
    """Family → folders of its seeds that have results."""
    found: dict[str, list[Path]] = {}
    for folder in _folders(work):
        if _results(folder):
            found.setdefault(folder.parent.name, []).append(folder)
    return found


def _folders(work: Path) -> list[Path]:
    found = [path.parent for path in work.glob("*/seed-*/models.json")]
    return sorted(found, key=lambda folder: (folder.parent.name, folder.name))


def _results(folder: Path) -> list[dict[str, Any]]:
    results = [_result(path) for path in sorted(folder.glob("*.json")) if path.name not in _BESIDE]
    return sorted(results, key=lambda each: (each["method"] != BASELINE, each["method"]))


def _result(path: Path) -> Any:
    return json.loads(path.read_text())["result"]
