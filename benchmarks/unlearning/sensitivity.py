"""What the result depends on: keep, calibration tokens, fit rows, the budget of the fine-tuning baseline."""

import random
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.unlearning import cleaning
from benchmarks.unlearning.comparing import PARTS, ends, find
from benchmarks.unlearning.lines import FINE_TUNED, RECIPE, FineTuned, Method, Points, equal_steps, methods
from benchmarks.unlearning.matching import first_crossing, interpolated
from benchmarks.unlearning.measures import answers
from benchmarks.unlearning.models import samples
from benchmarks.unlearning.training import load
from benchmarks.unlearning.work import Work
from vecsurgery.fits import log_spaced


def sensitivity(work: Work) -> dict[str, list[dict[str, Any]]]:
    """Rows of the four tables, all for the one unlearner that the settings name."""
    chosen, comparison = work.settings.sensitivity, work.settings.comparison
    known = ends(work, chosen.unlearner)
    into = cleaning.state(work.checkpoint("original"))
    raw = cleaning.raw_delta(into, cleaning.state(work.checkpoint(chosen.unlearner)))
    model = load(work.checkpoint("original"))

    def cleaned(keep: float, geometry: Path, **options: Any) -> Points:
        step = {"project": "retain_energy", "keep": keep, **options}
        return Points(work, cleaning.projected(work, chosen.unlearner, into, raw, step, geometry), model)

    def row(points: Points, method: Method, **labels: Any) -> dict[str, Any]:
        found = find(points, method, known, "capped")
        means = {part: points.rows(part, found.coefficient).means() for part in PARTS}
        return {**labels, "coefficient": found.coefficient, "share": found.value, "met": found.met, **means}

    lines = methods(work, chosen.unlearner)
    recipe, repair = lines[f"{RECIPE} {comparison.keeps[0]:g}"], lines[FINE_TUNED]
    all_tokens, keep = cleaning.measure(work), comparison.keeps[0]
    keeps = [row(cleaned(value, all_tokens), recipe, keep=value) for value in chosen.keeps]
    keeps.append(row(cleaned(keep, all_tokens, others="drop"), recipe, keep=keep, others="drop"))
    tokens = [row(cleaned(keep, cleaning.measure(work, count)), recipe, tokens=count) for count in chosen.tokens]
    unlearned, steps = cleaning.scaled(into, raw).at(1.0), equal_steps(work)
    budgets = [
        row(
            Points(work, FineTuned(work, unlearned, steps * times), model),
            repair,
            compute=times,
            steps=steps * times,
        )
        for times in chosen.compute
    ]
    return {"keep": keeps, "tokens": tokens, "fit rows": _draws(work, cleaned(keep, all_tokens)), "compute": budgets}


def _draws(work: Work, points: Points) -> list[dict[str, Any]]:
    """For each number of fit rows, what drawing them does: the coefficient, and what it means for evaluation rows.

    The fit's rule on rows drawn from the fit authors, with losses interpolated along the line's curve.
    """
    chosen, comparison = work.settings.sensitivity, work.settings.comparison
    pool, grid = samples(work, "fit_pool"), log_spaced(1.0, 8.0, chosen.fit_points)
    start, end = (answers(load(work.checkpoint(name)), pool).capped for name in ("original", chosen.unlearner))
    by_grid = [points.rows("fit_pool", at).capped for at in grid]
    test = {part: [points.rows(part, at).means() for at in grid] for part in PARTS}
    original, unlearned = (
        answers(load(work.checkpoint(name)), samples(work, "forget_test")).means()["capped"]
        for name in ("original", chosen.unlearner)
    )
    draw = random.Random(f"fit rows {work.seed}")
    found = []
    for count in chosen.fit_rows:
        shares, losses, coefficients = [], [], []
        for _ in range(chosen.draws):
            rows = draw.sample(range(len(pool)), min(count, len(pool)))
            low, high = (sum(values[row] for row in rows) for values in (start, end))
            curve = [(sum(values[row] for row in rows) - low) / (high - low) for values in by_grid]
            at = first_crossing(grid, curve, comparison.share)
            at = at if at is not None else grid[curve.index(max(curve))]
            coefficients.append(at)
            capped = interpolated(grid, [means["capped"] for means in test["forget_test"]], at)
            shares.append((capped - original) / (unlearned - original))
            losses.append(interpolated(grid, [means["nll"] for means in test["retain_test"]], at))
        named = {"coefficient": coefficients, "share": shares, "retain nll": losses}
        found.append({"rows": count} | {name: _interval(values) for name, values in named.items()})
    return found


def _interval(values: list[float]) -> dict[str, float]:
    cuts = quantiles(values, n=20, method="inclusive")
    return {"low": cuts[0], "median": median(values), "high": cuts[-1]}
