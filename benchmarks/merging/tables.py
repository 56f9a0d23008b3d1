"""Tables of the experiment, from its work folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.merging.settings import AVERAGED, METHODS


def gains(singles: Mapping[str, Mapping[str, float]], losses: Mapping[str, float]) -> dict[str, float]:
    """Task → share of the single fine-tune's gain, and `mean` of the tasks. 1: as good as the single one."""
    base = singles["base"]
    found = {task: (base[task] - loss) / (base[task] - singles[task][task]) for task, loss in losses.items()}
    return found | {"mean": sum(found.values()) / len(found)}


def tables(work: Path) -> dict[str, list[dict[str, Any]]]:
    """Title → rows; a cell has the values of the seeds in their order."""
    folders = sorted(path.parent for path in work.glob("seed-*/singles.json"))
    singles = [_result(folder / "singles.json")["test"] for folder in folders]
    results = [_methods(folder) for folder in folders]
    names = [method.name for method in (*METHODS, *AVERAGED) if all(method.name in each for each in results)]
    seeds = ", ".join(folder.name.partition("-")[2] for folder in folders)
    tasks = list(singles[0]["base"]) if singles else []
    members = [
        {"model": model} | {task: _joined([each[model][task] for each in singles]) for task in tasks}
        for model in ("base", *tasks)
    ]
    found = {f"NLL of the single fine-tunes, nats a token; seeds {seeds}": members}
    for title, point in (("at weight 1", "whole"), ("at the weight chosen for it", "best")):
        points = [{name: each[name][point] for name in names} for each in results]
        found[f"share of the single gains, {title}"] = _shares(names, singles, points, weights=point == "best")
    lower = [_methods(folder / "lower") for folder in folders]
    if any(lower):
        points = [
            {name: below.get(name, each[name])["best"] for name in names}
            for below, each in zip(lower, results, strict=True)
        ]
        title = "share of the single gains, at the weight chosen for it, also below the least"
        found[title] = _shares(names, singles, points, weights=True)
    return found


def _shares(
    names: Sequence[str],
    singles: Sequence[Mapping[str, Mapping[str, float]]],
    points: Sequence[Mapping[str, Any]],
    *,
    weights: bool,
) -> list[dict[str, Any]]:
    """A row for each method. `points`: of each seed, name → the weight and its losses on test windows."""
    rows = []
    for name in names:
        shares = [gains(single, each[name]["losses"]) for single, each in zip(singles, points, strict=True)]
        chosen = {"weight": _joined([each[name]["weight"] for each in points])} if weights else {}
        columns = ["mean", *(task for task in shares[0] if task != "mean")]
        rows.append({"method": name} | chosen | {task: _joined([each[task] for each in shares]) for task in columns})
    return rows


def _methods(folder: Path) -> dict[str, Any]:
    found = [_result(path) for path in sorted(folder.glob("*.json")) if path.name not in ("begun.json", "singles.json")]
    return {each["method"]: each for each in found}


def _joined(values: list[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in values)


def _result(path: Path) -> Any:
    return json.loads(path.read_text())["result"]
