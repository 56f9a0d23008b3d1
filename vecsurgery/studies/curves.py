"""Damage against forgetting: the recipe's method and the raw delta scaled by one number, over many numbers."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import InputError
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from vecsurgery.editing.candidates import Candidates
    from vecsurgery.forward import Compute
    from vecsurgery.planning.inputs import Inputs
    from vecsurgery.recipe.types import Step

LEVELS = (0.5, 0.75, 0.9)
"""Shares of the raw forgetting at which the two are compared."""
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Numbers that the raw delta is multiplied by."""
_BEYOND = (1.1, 1.25, 1.5)
"""Numbers beyond the whole delta, for a model that forgets more than it."""
_FINER = 4
"""Numbers inside each bracket of a level in the second pass."""
_WIDER = 0.25
"""Least factor of the projected matrices, as a share of the least that the fit may choose."""


@dataclass(frozen=True)
class Point:
    """One model: its factor, and what it makes of the forget and the retain rows (losses in nats).

    `forgetting`: rise of the capped answer loss on forget rows over `into`, as a share of the raw delta's.
    `damage`: rise of the answer NLL on retain rows over `into`.
    """

    factor: float
    forget_capped: float
    forget_nll: float
    forget_probability: float
    retain_nll: float
    retain_probability: float
    forgetting: float
    damage: float


@dataclass(frozen=True)
class Level:
    """Both methods where they forget equally much; None where a curve does not get there.

    `ratio`: damage of the method over damage of scaling.
    """

    forgetting: float
    method: float | None
    scaling: float | None
    ratio: float | None


@dataclass(frozen=True)
class Curve:
    """Retain damage against forgetting. `method`: what the recipe does to the delta, its fitted matrices times a
    factor; `scaling`: all tensors of the raw delta times a factor. Ascending factors.
    """

    name: str
    delta: str
    into: Point
    method: tuple[Point, ...]
    scaling: tuple[Point, ...]
    levels: tuple[Level, ...]
    passes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Aligned tables for people."""
        from vecsurgery.report import curve_text

        return curve_text(self.to_dict())


def curve(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    points: int = 12,
    levels: Sequence[float] = LEVELS,
    folder: str | Path | None = None,
    compute: Compute = "float32",
    progress: Progress = silent,
) -> Curve:
    """Retain damage against forgetting, for the method of a recipe and for scaling its raw delta.

    The recipe's steps up to its first fit (all of them where it has none) make the projected delta; its matrices are
    multiplied by `points` factors around the fit's range, log-spaced. Rows come from `evaluate.forget` and
    `evaluate.retain`. Two passes over all models: the second looks closer where the curves cross the levels. Nothing
    is written but geometry files.

    Args:
        recipe: a YAML file.
        overrides: `--set` assignments.
        points: factors of the method in the first pass, at least 3.
        levels: shares of the raw forgetting at which both are compared.
        folder: where geometry files are kept and looked for; a temporary folder by default.

    Raises: InputError where the recipe has no such rows, several deltas without a fit, or a raw delta that forgets
    nothing.

    Example: `vecsurgery.curve("sage.yaml").levels[-1].ratio`
    """
    from vecsurgery.planning.checking import check_inputs
    from vecsurgery.planning.plans import make_plan
    from vecsurgery.surgery.api import opened
    from vecsurgery.surgery.geometries import measured

    if points < 3:
        raise InputError(f"a curve of {points} points; expected at least 3")
    inputs = opened(recipe, overrides)
    step, delta = _what(inputs)
    check_inputs(inputs)
    plan = make_plan(inputs, compute=compute, progress=progress)
    with tempfile.TemporaryDirectory(prefix="vecsurgery-") if folder is None else nullcontext(folder) as place:
        measured_in = Path(place)  # made where it does not exist
        geometries = measured(plan, measured_in, progress)
        candidates = _candidates(inputs, geometries, step, delta)
        sampling = Sampling(inputs, candidates, compute, progress)
        return sampling.curve(_method(inputs), _factors(step, points), tuple(levels))


def scaled_to(
    recipe: str | Path,
    forget_capped: float,
    *,
    overrides: Sequence[str] = (),
    compute: Compute = "float32",
    progress: Progress = silent,
) -> Point | None:
    """The raw delta of a recipe, all its tensors times one number, where it first has this capped answer loss.

    Measured on `evaluate.forget` and `evaluate.retain` in three passes: numbers from 0.1 to 1.5, finer ones around the
    loss, and the number found. None where none of them forgets so much.

    Raises: InputError where the recipe has no such rows, several deltas without a fit, or a raw delta that forgets
    nothing.
    """
    from vecsurgery.editing.candidates import Candidates
    from vecsurgery.surgery.api import opened
    from vecsurgery.surgery.assembly import assembled

    inputs = opened(recipe, overrides)
    _, delta = _what(inputs)
    sampling = Sampling(
        inputs, Candidates(assembled(inputs, {}, {}, steps=inputs.recipe.merges), (), delta), compute, progress
    )
    line = sampling.points([("into", 1.0), *(("raw", each) for each in (*SCALES, *_BEYOND))])
    level = (forget_capped - line[0].forget_capped) / (line[len(SCALES)].forget_capped - line[0].forget_capped)
    finer = _between(line[1:], (level,), line[0])
    if not finer:
        return line[0] if level <= 0.0 else None
    line = _sorted([*line, *sampling.points([("raw", each) for each in finer])])
    factor = at_level(line, level)
    return sampling.points([("raw", factor)])[0]


def at_level(line: Sequence[Point], level: float) -> float:
    """The factor at which points of ascending factors first forget so much, straight lines between them.

    Raises ValueError where they never do.
    """
    from vecsurgery.fits import at_equal

    factor = at_equal([point.forgetting for point in line], [point.factor for point in line], level)
    if factor is None:
        raise ValueError(f"no point forgets {level:.3g}")
    return factor


def _what(inputs: Inputs) -> tuple[Step | None, str]:
    """The first fit, if there is one, and the delta that the curve is about."""
    for name in ("forget", "retain"):
        if name not in inputs.recipe.evaluate:
            raise InputError(
                f"drawing a curve: the recipe has no rows under evaluate.{name}; add evaluate: {{forget: FILE, "
                "retain: FILE}, questions with answers that nothing else uses"
            )
    fit = next((step for step in inputs.recipe.steps if step.verb == "fit"), None)
    if fit is not None:
        return fit, fit.selection.deltas[0]
    live = inputs.recipe.live
    if len(live) > 1:
        raise InputError(
            f"drawing a curve: the recipe has the deltas {', '.join(live)} and no fit that names one; "
            "give it a fit, or one delta"
        )
    return None, live[0]


def _method(inputs: Inputs) -> str:
    return " + ".join(dict.fromkeys(step.method for step in inputs.recipe.steps)) or "the delta"


def _factors(step: Step | None, points: int) -> tuple[float, ...]:
    from vecsurgery.fits import log_spaced

    low, high = getattr(step.options, "range", (1.0, 8.0)) if step is not None else (1.0, 8.0)
    return log_spaced(_WIDER * low, high, points)


def _candidates(inputs: Inputs, geometries: Mapping[str, Any], step: Step | None, delta: str) -> Candidates:
    from vecsurgery.editing.candidates import Candidates
    from vecsurgery.surgery.assembly import assembled
    from vecsurgery.surgery.fitting import fit_candidates

    if step is None:
        return Candidates(assembled(inputs, geometries, {}), (), delta, _matrices(inputs))
    return fit_candidates(inputs, geometries, {}, step)


def _matrices(inputs: Inputs) -> dict[str, None]:
    """Every block matrix, whole."""
    return {name: None for name, info in inputs.into.layout.tensors.items() if info.matrix is not None}


class Sampling:
    """Measures models on the forget and retain rows of a recipe, several in one pass."""

    def __init__(self, inputs: Inputs, candidates: Candidates, compute: Compute, progress: Progress) -> None:
        self._candidates, self._compute, self._progress = candidates, compute, progress
        self._vocabulary = int(inputs.into.config.get_text_config().vocab_size)
        self._rows = {name: inputs.evaluation[name].samples for name in ("forget", "retain")}
        self._passes = 0
        self._ends: tuple[float, float, float] | None = None

    def curve(self, name: str, factors: tuple[float, ...], levels: tuple[float, ...]) -> Curve:
        """Both curves, with a second pass where they cross the levels."""
        first = [("into", 1.0), *(("raw", each) for each in SCALES), *(("edited", each) for each in factors)]
        found = self.points(first)
        into, scaling, method = found[0], found[1 : 1 + len(SCALES)], found[1 + len(SCALES) :]
        finer = {
            "raw": _between(scaling, levels, into),
            "edited": _between(method, levels, into),
        }
        asked = [(kind, each) for kind, values in finer.items() for each in values]
        more = self.points(asked) if asked else []
        count = len(finer["raw"])
        scaling, method = _sorted([*scaling, *more[:count]]), _sorted([*method, *more[count:]])
        return Curve(
            name,
            self._candidates.delta or "",
            into,
            tuple(method),
            tuple(scaling),
            tuple(_level(each, into, method, scaling) for each in levels),
            self._passes,
        )

    def points(self, wanted: Sequence[tuple[str, float]]) -> list[Point]:
        """The models asked for, as (kind, factor), in one pass. `into` and raw 1.0 must be in the first call."""
        from vecsurgery.editing.candidates import Variant
        from vecsurgery.evaluation import summarise
        from vecsurgery.forward import token_scores

        self._passes += 1
        samples = [*self._rows["forget"], *self._rows["retain"]]
        scores = token_scores(
            self._candidates.asked([Variant(kind, factor) for kind, factor in wanted]),  # type: ignore[arg-type]
            samples,
            compute=self._compute,
            stage=f"curve, pass {self._passes}",
            progress=self._progress,
        )
        cut = len(self._rows["forget"])
        pairs = []
        for own in scores:
            losses = [score.losses for score in own]
            forget, retain = (summarise(part, vocabulary=self._vocabulary) for part in (losses[:cut], losses[cut:]))
            pairs.append((forget, retain))
        for (kind, factor), (forget, retain) in zip(wanted, pairs, strict=True):
            if not math.isfinite(forget.mean + retain.mean):
                raise InputError(
                    f"drawing a curve: the losses of {kind} × {factor:.4g} are not finite: its activations overflow; "
                    "lower the upper end of the fit's `range`, or the delta's weight"
                )
        if self._ends is None:
            into, raw = (pairs[list(wanted).index(end)] for end in (("into", 1.0), ("raw", 1.0)))
            if not raw[0].capped > into[0].capped:
                raise InputError(
                    f"drawing a curve: the raw delta does not raise the capped answer loss on evaluate.forget "
                    f"({into[0].capped:.4g} nats before, {raw[0].capped:.4g} with it): there is no forgetting to keep"
                )
            self._ends = into[0].capped, raw[0].capped, into[1].mean
        low, high, retained = self._ends
        return [
            Point(
                factor=factor if kind != "into" else 0.0,
                forget_capped=forget.capped,
                forget_nll=forget.mean,
                forget_probability=forget.probability,
                retain_nll=retain.mean,
                retain_probability=retain.probability,
                forgetting=(forget.capped - low) / (high - low),
                damage=retain.mean - retained,
            )
            for (kind, factor), (forget, retain) in zip(wanted, pairs, strict=True)
        ]


def _between(points: Sequence[Point], levels: Sequence[float], into: Point) -> list[float]:
    """Factors inside the brackets in which a curve first reaches each level."""
    from vecsurgery.fits import first_reached

    line = [into, *points]
    found: dict[float, None] = {}
    for level in levels:
        index = first_reached([point.forgetting for point in line], level)
        if index:
            low, high = line[index - 1].factor, line[index].factor
            found |= dict.fromkeys(low + (high - low) * step / (_FINER + 1) for step in range(1, _FINER + 1))
    return sorted(found)


def _sorted(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.factor)


def _level(level: float, into: Point, method: Sequence[Point], scaling: Sequence[Point]) -> Level:
    from vecsurgery.fits import at_equal

    damages = []
    for points in (method, scaling):
        line = [into, *points]
        damages.append(at_equal([point.forgetting for point in line], [point.damage for point in line], level))
    ours, theirs = damages
    ratio = ours / theirs if ours is not None and theirs is not None and theirs > 0.0 else None
    return Level(level, ours, theirs, ratio)
