"""amplify: multiply the projected matrices by one number, so that as much is forgotten as before."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vecsurgery.errors import InputError

from ._registry import Fit
from .crossing import first_crossing, first_reached, log_spaced, value_between
from .types import AnswerLosses, Ask, Candidate, Coefficients, CurvePoint, FittedMatrix

POINTS = 9
"""Factors that one pass asks about: over the range first, then inside the bracket of the first crossing."""
GROWTH = 3.0
"""a·‖D′‖/‖D‖ above which a warning is due: the result is then far outside of what was trained."""
KNOWN = 0.1
"""Mean token probability of the answers under `into` below which a warning is due: what was not known cannot be
forgotten, and shares of it mean little."""
SHARE = 0.9
"""Share of the raw forgetting that is aimed at where the options name no target."""


class Amplify(BaseModel):
    """Options of `fit: amplify`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    share: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Target: this share of the raw delta's rise of the capped answer loss over into; 0.9 where no "
        "target is given. Give one of share, loss, probability and reference.",
    )
    loss: float | None = Field(default=None, gt=0.0, description="Target: this capped answer loss, in nats.")
    probability: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="Target: this mean probability of an answer token."
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description="Target: the capped answer loss of this model, such as one that was trained without the data.",
        json_schema_extra={"reference": "model"},
    )
    range: tuple[float, float] = Field(
        default=(1.0, 8.0), description="Least and largest factor that is tried, 0 < least < largest."
    )

    @model_validator(mode="after")
    def _one_target(self) -> "Amplify":
        targets = ("share", "loss", "probability", "reference")
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"at most one of {', '.join(targets)} may be given; got {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "share", SHARE)  # the model is frozen for everyone but itself
        return self

    @model_validator(mode="after")
    def _ordered_range(self) -> "Amplify":
        low, high = self.range
        if not 0.0 < low < high:
            raise ValueError(f"range needs 0 < least < largest, as in [1, 8]; got [{low:g}, {high:g}]")
        return self


@dataclass(frozen=True)
class _Target:
    """What is to be reached, as a measure that rises with forgetting: a probability counts with its sign turned."""

    level: float
    by_probability: bool = False

    def rising(self, losses: AnswerLosses | CurvePoint) -> float:
        return -losses.probability if self.by_probability else losses.capped

    def shown(self, rising: float) -> float:
        """The measure as it is reported: nats, or a probability."""
        return -rising if self.by_probability else rising

    def text(self, rising: float) -> str:
        return f"answer probability {-rising:.4g}" if self.by_probability else f"capped answer loss {rising:.4g}"


def amplify(
    ask: Ask,
    *,
    step: str,
    delta: str,
    tensors: Mapping[str, FittedMatrix],
    facts: Mapping[str, float],
    options: Amplify,
) -> Coefficients:
    """Find the least a ∈ range at which loss(into + a·D′) reaches the target: D″ = a·D′.

    The loss is the capped answer loss, mean over rows of the row's mean over answer tokens of min(NLL, ln vocabulary).
    The target is loss(into) + share·(loss(into + D) − loss(into)) with D the raw delta, or an absolute loss, a mean
    token probability (which falls), or the loss of a reference model. The loss need not be monotone in a. Two passes
    at most: `into`, the raw delta and 9 log-spaced factors; then 9 inside the bracket of the *first* crossing, in which
    a is interpolated linearly in log a. Met at the least factor: that one. Never met: the factor that comes closest,
    with a warning.

    facts: `norm_ratio`, ‖D′‖/‖D‖ over `tensors`. The rest is described at `Fit`.
    Facts of the result: `factor` (a), `target`, `into`, `raw`, `reached` (interpolated; all four in the target's unit),
    `share` (of the raw rise of the capped loss that a keeps), `asks` (passes), `norm_growth` (a·‖D′‖/‖D‖).
    Raises InputError where the raw delta does not raise the loss, or a loss is not finite.
    Source: this project's; measured in docs/methods.md.
    """
    into, raw, target, curve = _survey(ask, options)
    rise = raw.capped - into.capped
    asks = 1
    index = first_reached([target.rising(point) for point in curve], target.level)
    if index:
        curve = _refined(ask, curve, index)
        asks = 2
    factors = [point.factor for point in curve]
    values = [target.rising(point) for point in curve]
    crossing = first_crossing(factors, values, target.level)
    factor = factors[values.index(max(values))] if crossing is None else crossing
    reached = value_between(factors, values, factor)
    growth = factor * facts["norm_ratio"]
    warnings = []
    if crossing is None:
        warnings.append(_unreached(target, factors, factor, reached))
    elif target.rising(into) >= target.level:
        warnings.append(
            f"`into` itself meets the target, {target.text(target.level)}, with {target.text(target.rising(into))}: "
            "the target says nothing about forgetting"
        )
    if into.probability < KNOWN:
        warnings.append(
            f"`into` gives these answers a mean token probability of {into.probability:.2g}: it hardly knew them, so "
            "there is little to forget, and shares of it mean little"
        )
    if growth > GROWTH:
        warnings.append(
            f"amplified by {factor:.4g} the delta has {growth:.3g} times the norm of the raw delta, above {GROWTH:g}: "
            "the model is moved further than training moved it; compare with a larger keep"
        )
    found = {
        "factor": factor,
        "target": target.shown(target.level),
        "into": target.shown(target.rising(into)),
        "raw": target.shown(target.rising(raw)),
        "reached": target.shown(reached),
        "share": (value_between(factors, [point.capped for point in curve], factor) - into.capped) / rise,
        "asks": float(asks),
        "norm_growth": growth,
    }
    return Coefficients(step, "amplify", delta, dict.fromkeys(tensors, factor), found, curve, tuple(warnings))


def _unreached(target: _Target, factors: Sequence[float], factor: float, reached: float) -> str:
    return (
        f"the target, {target.text(target.level)}, is not reached by any factor of {factors[0]:g} to {factors[-1]:g}: "
        f"the closest, {factor:.4g}, is used and gives {target.text(reached)}; aim lower, or project less (a larger "
        "keep)"
    )


def _survey(ask: Ask, options: Amplify) -> tuple[AnswerLosses, AnswerLosses, _Target, tuple[CurvePoint, ...]]:
    """The first pass: `into`, the raw delta, the target, and the curve over the range."""
    factors = log_spaced(*options.range, POINTS)
    known = [Candidate("into"), Candidate("raw")]
    known += [Candidate("reference")] if options.reference is not None else []
    losses = _asked(ask, [*known, *(Candidate("edited", factor) for factor in factors)])
    into, raw = losses[:2]
    if raw.capped <= into.capped:
        raise InputError(
            f"the raw delta does not raise the capped answer loss on these rows: {into.capped:.4g} nats before, "
            f"{raw.capped:.4g} with it; nothing was forgotten that could be kept: give rows that were unlearned, and "
            "check that `into` and `tuned` are not swapped"
        )
    curve = _points(factors, losses[len(known) :])
    if options.probability is not None:
        return into, raw, _Target(-options.probability, by_probability=True), curve
    if options.reference is not None:
        return into, raw, _Target(losses[2].capped), curve
    if options.loss is not None:
        return into, raw, _Target(options.loss), curve
    share = SHARE if options.share is None else options.share
    return into, raw, _Target(into.capped + share * (raw.capped - into.capped)), curve


def _refined(ask: Ask, curve: tuple[CurvePoint, ...], index: int) -> tuple[CurvePoint, ...]:
    """The second pass: the curve with 9 more points between those at index − 1 and index."""
    inside = log_spaced(curve[index - 1].factor, curve[index].factor, POINTS + 2)[1:-1]
    points = _points(inside, _asked(ask, [Candidate("edited", factor) for factor in inside]))
    return (*curve[:index], *points, *curve[index:])


def _points(factors: Sequence[float], losses: Sequence[AnswerLosses]) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(factor, each.capped, each.nll, each.probability)
        for factor, each in zip(factors, losses, strict=True)
    )


def _asked(ask: Ask, candidates: Sequence[Candidate]) -> list[AnswerLosses]:
    """Their losses; InputError where one is no number that a factor could be chosen by."""
    losses = ask(candidates)
    for candidate, each in zip(candidates, losses, strict=True):
        for name, value in (("capped answer loss", each.capped), ("NLL", each.nll), ("probability", each.probability)):
            if not math.isfinite(value):
                raise InputError(
                    f"the {name} of {_described(candidate)} is {value}, expected a finite number: "
                    f"{_ADVICE[candidate.kind]}"
                )
    return losses


_ADVICE = {
    "into": "check the model, `vecsurgery check --weights` names tensors that are not finite",
    "raw": "the unlearned model itself is broken; lower the delta's weight, or take an earlier checkpoint",
    "edited": "its activations overflow; lower the upper end of `range`",
    "reference": "check the model that `reference` names",
}


def _described(candidate: Candidate) -> str:
    if candidate.kind == "edited":
        return f"the edited model at factor {candidate.factor:.4g}"
    return {"into": "`into`", "raw": "`into` with the raw delta", "reference": "the reference model"}[candidate.kind]


FIT = Fit(name="amplify", options=Amplify, function=amplify)
