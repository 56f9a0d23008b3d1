"""Every method at equal forgetting, on authors that neither calibration nor fit saw."""

from typing import Any

from benchmarks.unlearning.generation import rouge_recall
from benchmarks.unlearning.lines import FINE_TUNED, Method, Points, methods
from benchmarks.unlearning.matching import Match, match
from benchmarks.unlearning.measures import answers
from benchmarks.unlearning.models import samples
from benchmarks.unlearning.training import load
from benchmarks.unlearning.work import Work
from vecsurgery.calibration import load_tokenizer

MATCHED = {"capped": 1.0, "token_probability": -1.0}
"""What forgetting is matched on, and the sign with which it rises as a model forgets."""
PARTS = ("forget_test", "retain_test")
PARAPHRASED = ("forget_paraphrased", "retain_paraphrased")


def ends(work: Work, unlearner: str) -> dict[str, dict[str, dict[str, float]]]:
    """Measures of the original and the unlearned model: name → part → measure."""
    found = {}
    for name in ("original", unlearner):
        model = load(work.checkpoint(name))
        found["raw" if name == unlearner else name] = {
            part: answers(model, samples(work, part)).means() for part in (*PARTS, *PARAPHRASED)
        } | {"rouge": _rouge(work, model)}
    return found


def compare(work: Work, unlearner: str) -> dict[str, Any]:
    """Ends, and for each method its curve and its points at equal forgetting."""
    known = ends(work, unlearner)
    model = load(work.checkpoint("original"))
    lines = {}
    for name, method in methods(work, unlearner).items():
        work.say(f"seed {work.seed}: {unlearner}, {name}")
        points = Points(work, method.line(), model)
        found = {"matched": {measure: matched(points, method, known, measure) for measure in MATCHED}}
        if name != FINE_TUNED:
            found["milder"] = milder(points, method, known)
        curve = [{"coefficient": at} | {part: points.rows(part, at).means() for part in PARTS} for at in points.asked]
        lines[name] = {"curve": curve, **found}
    return {"ends": known, "lines": lines}


def milder(points: Points, method: Method, known: Any) -> dict[str, Any]:
    """A line's point where less is forgotten, equal in capped answer loss."""
    found = find(points, method, known, "capped", points.work.settings.comparison.milder)
    means = {part: points.rows(part, found.coefficient).means() for part in PARTS}
    return {"coefficient": found.coefficient, "share": found.value, "met": found.met, **means}


def find(points: Points, method: Method, known: Any, measure: str, share: float | None = None) -> Match:
    """The point of a line at which the evaluation rows are forgotten as much as is asked for."""
    comparison, sign = points.work.settings.comparison, MATCHED[measure]
    start, end = (sign * known[name]["forget_test"][measure] for name in ("original", "raw"))

    def ask(coefficient: float) -> float:
        value = sign * points.rows("forget_test", coefficient).means()[measure]
        return float((value - start) / (end - start))

    return match(
        ask,
        method.coefficients,
        comparison.share if share is None else share,
        tolerance=comparison.tolerance,
        refinements=method.refinements,
        limit=comparison.limit,
    )


def matched(points: Points, method: Method, known: Any, measure: str) -> dict[str, Any]:
    """A line's point at equal forgetting, with the measures of that very model.

    Where it is the capped answer loss that is equal: paraphrased questions and ROUGE too.
    """
    found = find(points, method, known, measure)
    at = found.coefficient
    parts = (*PARTS, *PARAPHRASED) if measure == "capped" else PARTS
    point = {"coefficient": at, "share": found.value, "met": found.met}
    point |= {part: points.rows(part, at).means() for part in parts}
    return point | ({"rouge": _rouge(points.work, points.put(at))} if measure == "capped" else {})


def _rouge(work: Work, model: Any) -> dict[str, float]:
    split, each = work.settings.split, work.settings.comparison.generated
    tokenizer = load_tokenizer(work.model)
    found = {}
    for part in PARTS:
        rows = samples(work, part)
        chosen = [row for index, row in enumerate(rows) if index % split.evaluation_rows < each]
        found[part] = rouge_recall(model, tokenizer, chosen)
    return found
