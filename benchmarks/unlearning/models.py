"""The models of a seed: original, reference (retrained without the data), and one unlearned model an objective."""

import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._checkpoints import save_as
from benchmarks.unlearning import rows
from benchmarks.unlearning.batches import encode, endless
from benchmarks.unlearning.measures import answers
from benchmarks.unlearning.settings import Unlearner
from benchmarks.unlearning.training import load, on_answers, steps_of, train
from benchmarks.unlearning.unlearners import unlearn
from benchmarks.unlearning.work import Work
from vecsurgery.calibration.types import Sample


def make_original(work: Work) -> None:
    """Draw the rows and fine-tune the original, unless they are there."""
    if not work.rows("learned").exists():
        rows.write(work.rows("learned").parent, rows.parts(work.data, work.settings.split, work.seed))
    _stored(work, "original", lambda: _fine_tuned(work, "learned"))


def make_models(work: Work) -> None:
    """Train whatever the work folder lacks; stored in float32, as training left it."""
    make_original(work)
    if work.seed in work.settings.reference_seeds:
        _stored(work, "reference", lambda: _fine_tuned(work, "retain"))
    for unlearner in work.settings.unlearners:
        _stored(work, unlearner.name, partial(_unlearned, work, unlearner))


def health(work: Work) -> dict[str, dict[str, dict[str, float]]]:
    """Measures of every uncleaned model on the evaluation rows: model → role → measure."""
    found = {}
    for name in ("original", "reference", *(unlearner.name for unlearner in work.settings.unlearners)):
        if not work.checkpoint(name).exists():
            continue
        model = load(work.checkpoint(name))
        found[name] = {role: answers(model, samples(work, f"{role}_test")).means() for role in ("forget", "retain")}
    return found


def samples(work: Work, part: str) -> tuple[Sample, ...]:
    """The encoded rows of a part."""
    context = load_config(work.model).max_position_embeddings
    return encode(work.rows(part), work.model, context)


def load_config(folder: Path) -> Any:
    """A checkpoint's configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


Trained = tuple[Any, list[float]]
"""A model and its training losses."""


def _fine_tuned(work: Work, part: str) -> Trained:
    training, given = work.settings.fine_tuning, samples(work, part)
    model, losses = load(work.model), list[float]()
    batches = endless(given, training.batch, f"fine-tune {part} {work.seed}")
    steps = steps_of(training, len(given))
    train(model, on_answers(model, batches), training, steps, after=_watch(work, part, steps, losses))
    return model, losses


def _unlearned(work: Work, unlearner: Unlearner) -> Trained:
    original, losses = load(work.checkpoint("original")), list[float]()
    model = copy.deepcopy(original)
    forget, retain = samples(work, "forget"), samples(work, "unlearn_retain")
    steps = steps_of(unlearner.training, len(forget))
    after = _watch(work, unlearner.name, steps, losses)
    unlearn(model, original, unlearner, forget, retain, seed=work.seed, after=after)
    return model, losses


def _watch(work: Work, name: str, steps: int, losses: list[float]) -> Callable[[int, float], None]:
    def after(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 50 == 0 or step == steps:
            work.say(
                f"seed {work.seed}: {name}, step {step} of {steps}, loss {sum(losses[-50:]) / len(losses[-50:]):.3f}"
            )

    return after


def _stored(work: Work, name: str, make: Callable[[], Trained]) -> None:
    """Make and store a model unless it is there; the checkpoint gets its name when it is complete."""
    target = work.checkpoint(name)

    def made() -> list[float]:
        model, losses = make()
        partial = target.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_as(model, work.model, partial, "float32")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return losses

    work.once(f"training/{name}", made)
