"""The methods under comparison, each a line of models in one coefficient, and their measures at any point of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from benchmarks._controls import random_geometry
from benchmarks.unlearning import cleaning
from benchmarks.unlearning.batches import endless
from benchmarks.unlearning.measures import Answers, answers
from benchmarks.unlearning.models import samples
from benchmarks.unlearning.training import load, on_answers, train
from benchmarks.unlearning.work import Work
from vecsurgery.calibration.types import Sample

FINE_TUNED = "fine-tuned"
RECIPE = "keep"
"""Lines of the shipped recipe are called `keep 0.02`."""


class AnyLine(Protocol):
    """Models in one coefficient."""

    def at(self, coefficient: float) -> dict[str, Tensor]:
        """The state dict of one of them."""


@dataclass(frozen=True)
class FineTuned:
    """The unlearned model fine-tuned on the calibration rows for some steps, the rate divided by a coefficient."""

    work: Work
    unlearned: cleaning.State
    steps: int
    _made: dict[float, dict[str, Tensor]] = field(default_factory=dict)

    def at(self, coefficient: float) -> dict[str, Tensor]:
        if coefficient not in self._made:
            model = load(self.work.model)
            put(model, self.unlearned)
            training = self.work.settings.comparison.fine_tuning
            training = replace(training, rate=training.rate / coefficient)
            batches = endless(samples(self.work, "calibration"), training.batch, f"repair {self.work.seed}")
            train(model, on_answers(model, batches), training, self.steps)
            self._made[coefficient] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return self._made[coefficient]


@dataclass
class Points:
    """Measures along a line, each made once: `rows(part, coefficient)`."""

    work: Work
    line: AnyLine
    model: Any
    """A model to put states into."""
    _known: dict[tuple[str, float], Answers] = field(default_factory=dict)
    _at: float | None = None

    @property
    def asked(self) -> list[float]:
        """Coefficients that were measured, ascending."""
        return sorted({coefficient for _, coefficient in self._known})

    def rows(self, part: str, coefficient: float) -> Answers:
        """Measures on a part of the rows."""
        key = (part, coefficient)
        if key not in self._known:
            self._known[key] = answers(self.put(coefficient), samples(self.work, part))
        return self._known[key]

    def put(self, coefficient: float) -> Any:
        """The model of a point."""
        if self._at != coefficient:
            put(self.model, self.line.at(coefficient))
            self._at = coefficient
        return self.model


def put(model: Any, state: cleaning.State) -> None:
    """Load a state dict of stored names: tied weights stand in it once."""
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"loading a state: missing {missing}, unknown {unknown}")


@dataclass(frozen=True)
class Method:
    """A method's line, made when it is asked for, and the coefficients at which it is drawn."""

    line: Callable[[], AnyLine]
    coefficients: tuple[float, ...]
    refinements: int


def methods(work: Work, unlearner: str) -> dict[str, Method]:
    """Every method under comparison by name."""
    comparison = work.settings.comparison
    into = cleaning.state(work.checkpoint("original"))
    raw = cleaning.raw_delta(into, cleaning.state(work.checkpoint(unlearner)))
    scaling = cleaning.scaled(into, raw)
    measured = cleaning.measure(work)

    def projector(geometry: Path, **step: Any) -> Method:
        line = partial(cleaning.projected, work, unlearner, into, raw, step, geometry)
        return Method(line, comparison.projected, comparison.refinements)

    def suppression(keep: float, geometry: Path) -> Method:
        return projector(geometry, project="retain_energy", keep=keep)

    repaired = partial(FineTuned, work, scaling.at(1.0), equal_steps(work))
    return {
        "scaling": Method(lambda: scaling, comparison.scaling, comparison.refinements),
        FINE_TUNED: Method(repaired, comparison.gentler, comparison.gentler_refinements),
        **{f"{RECIPE} {keep:g}": suppression(keep, measured) for keep in comparison.keeps},
        "hard projector": projector(measured, project="null_space", rtol=comparison.rtol, others="source"),
        "random subspace": suppression(
            comparison.keeps[0], random_geometry(measured, measured.with_name("random.safetensors"), work.seed)
        ),
    }


def equal_steps(work: Work) -> int:
    """Steps of fine-tuning that cost what measuring and fitting cost.

    In forward passes of a token: measuring costs 2 (the pass, and about as much again for the moments); a fit asks for
    20 candidates (11, then 9) on its rows; a training step costs 3 (the pass, and twice as much backward).
    """
    calibration, fit = samples(work, "calibration"), samples(work, "fit")
    spent = 2 * _tokens(calibration) + 20 * _tokens(fit)
    batch = work.settings.comparison.fine_tuning.batch
    return math.ceil(spent / (3 * batch * _tokens(calibration) / len(calibration)))


def _tokens(rows: Sequence[Sample]) -> int:
    return sum(len(row.ids) for row in rows)
