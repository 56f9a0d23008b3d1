"""Did it erase or hide: how fast a few forget rows bring the rest back, from models that forget equally."""

from typing import Any

from benchmarks.unlearning.batches import endless
from benchmarks.unlearning.lines import RECIPE, methods, put
from benchmarks.unlearning.measures import answers
from benchmarks.unlearning.models import samples
from benchmarks.unlearning.training import load, on_answers, train
from benchmarks.unlearning.work import Work

PARTS = ("forget_test", "relearn")


def relearn(work: Work, unlearner: str, compared: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Model → its measures over steps of fine-tuning on the relearn rows.

    `compared`: what `compare` found; its points at equal capped loss are where scaling and the recipe start from. The
    original shows what fine-tuning on these rows does to a model that has forgotten nothing.
    """
    known = methods(work, unlearner)
    states: dict[str, Any] = {"original": None, "unlearned": None}
    for name in ("scaling", f"{RECIPE} {work.settings.comparison.keeps[0]:g}"):
        states[name] = known[name].line().at(compared["lines"][name]["matched"]["capped"]["coefficient"])
    found = {}
    for name, state in states.items():
        model = load(work.checkpoint(unlearner if name == "unlearned" else "original"))
        if state is not None:
            put(model, state)
        found[name] = _curve(work, model)
    return found


def _curve(work: Work, model: Any) -> list[dict[str, Any]]:
    chosen = work.settings.relearning
    rows = {part: samples(work, part) for part in PARTS}
    curve = [{"step": 0} | {part: answers(model, rows[part]).means() for part in PARTS}]

    def after(step: int, _loss: float) -> None:
        if step in chosen.marks:
            curve.append({"step": step} | {part: answers(model, rows[part]).means() for part in PARTS})

    batches = endless(rows["relearn"], chosen.training.batch, f"relearn {work.seed}")
    train(model, on_answers(model, batches), chosen.training, chosen.training.steps, after=after)
    return curve
