"""What a fit found, in words: target, factor, the forgetting that is kept, and what the factor does to the bias."""

import math
from dataclasses import dataclass

from vecsurgery.fits import value_between
from vecsurgery.report import summary
from vecsurgery.report.numbers import counted, number, percent
from vecsurgery.report.record import FitRecord, MatrixRecord, Record

_SAME = 1e-3
"""Relative difference up to which two norms of one change are the same."""
_MET = 1e-6
"""Of the target: how far below it still counts as reached."""
_SHOWN = {"factor", "target", "into", "raw", "reached", "share", "asks", "norm_growth"}
_HEADS = {
    "mean": ("mean coefficient of a head", number),
    "least": ("least", number),
    "largest": ("largest", number),
    "zero": ("heads at 0", percent),
    "related": ("attention on instructions, from text that follows them", number),
    "unrelated": ("from other text", number),
    "nll_unscaled": ("answer NLL without the coefficients, nats", number),
    "nll_scaled": ("with them", number),
    "nll_permuted": ("with them permuted over the heads, the control", number),
}
"""Facts of `attention_scale`."""


@dataclass(frozen=True)
class Amplification:
    """Fits whose factors stand in the change that was measured against one geometry."""

    fits: tuple[FitRecord, ...]
    left: float | None
    """Share of the raw bias that is left without these factors, as intended; None where the facts do not say it."""


def fits(record: Record) -> list[FitRecord]:
    """The fits of a record, in the order in which they ran."""
    return record.get("fits", [])


def warnings(record: Record) -> list[str]:
    """Warnings of the fits, each with its step and delta."""
    return [f"{fit['step']}, {fit['delta']}: {text}" for fit in fits(record) for text in fit["warnings"]]


def times(fit: FitRecord) -> str:
    """The factor as ×3.88; empty where the fit has no single one."""
    factor = fit["facts"].get("factor")
    return "" if factor is None else f"×{factor:.3g}"


def by_probability(fit: FitRecord) -> bool:
    """Whether the target is a probability of answer tokens, not a loss: which of the two curves passes `reached`."""
    factor, reached = fit["facts"].get("factor"), fit["facts"].get("reached")
    if factor is None or reached is None or not fit["curve"]:
        return False
    points = sorted(fit["curve"], key=lambda point: point["factor"])
    factors = [point["factor"] for point in points]
    capped = value_between(factors, [point["capped"] for point in points], factor)
    probability = value_between(factors, [point["probability"] for point in points], factor)
    return abs(probability - reached) < abs(capped - reached)


def met(fit: FitRecord) -> bool:
    """Whether the target was reached; True where the fit has none."""
    target, reached = fit["facts"].get("target"), fit["facts"].get("reached")
    if target is None or reached is None:
        return True
    short = reached - target if by_probability(fit) else target - reached
    return short <= _MET * abs(target)


def title(fit: FitRecord) -> str:
    """`amplify: unlearning ×3.88 over 4 matrices`."""
    what = f"{fit['delta']} {times(fit)}".strip()
    return f"{fit['step']}: {what} over {counted(fit['tensors'], 'matrix')}"


def described(fit: FitRecord) -> list[tuple[str, str]]:
    """(what, value with unit) of everything that the fit found, its own facts at the end."""
    unit = "answer probability" if by_probability(fit) else "nats, capped answer loss"
    facts = fit["facts"]
    missed = "" if met(fit) else " (the target is not reached)"
    named = {
        "target": (f"target ({unit})", number),
        "reached": (f"reached{missed}", number),
        "into": ("into, without the delta", number),
        "raw": ("with the raw delta", number),
        "share": ("of the raw forgetting kept", percent),
        "norm_growth": ("norm against the raw delta's", percent),
    }
    named |= _HEADS if by_head(fit) else {}
    lines = [(label, shown(facts[name])) for name, (label, shown) in named.items() if name in facts]
    left = {name: value for name, value in facts.items() if name not in _SHOWN and name not in named}
    lines += [(name.replace("_", " "), number(value)) for name, value in left.items()]
    passes = round(facts.get("asks", 0))
    took = f" in {passes} {'pass' if passes == 1 else 'passes'}" if passes else ""
    return [*lines, ("measured on", counted(fit["rows"], "row") + took)]


def by_head(fit: FitRecord) -> bool:
    """Whether it found a coefficient for every head."""
    return "nll_permuted" in fit["facts"]


def clause(fit: FitRecord, *, what: str | None = None) -> str:
    """`amplified WHAT ×3.88 to keep 90 % of the forgetting`; what: the delta where nothing is given."""
    factor, share = fit["facts"].get("factor"), fit["facts"].get("share")
    what = f"`{fit['delta']}`" if what is None else what
    if by_head(fit):
        return f"scaled the heads of {what} by their attention on instructions"
    verb = "fitted" if factor is None else "amplified" if factor > 1 else "scaled"
    done = f"left {what} as it was (×1)" if factor == 1.0 else f"{verb} {what} {times(fit)}".rstrip()
    if share is None:
        return done
    if met(fit):
        return f"{done} to keep {percent(share)} of the forgetting"
    return f"{done}, which keeps only {percent(share)} of the forgetting and misses the target"


def amplification(record: Record, geometry: str) -> Amplification | None:
    """The fits among the steps of the matrices measured against `geometry`; None where there are none."""
    matrices = [matrix for matrix in record["matrices"] if geometry in matrix["stored"]]
    used = {step["step"] for matrix in matrices for step in matrix["steps"]}
    found = tuple(fit for fit in fits(record) if fit["step"] in used and not by_head(fit))
    if not found:
        return None
    names = {fit["step"] for fit in found}
    gains = [_gain(matrix, geometry, names) for matrix in matrices]
    before = math.fsum(matrix["stored"][geometry]["rab_before"] for matrix in matrices)
    known = [gain for gain in gains if gain]
    if len(known) < len(gains) or before <= 0:
        return Amplification(found, None)
    after = [matrix["stored"][geometry]["rab_after_intended"] for matrix in matrices]
    return Amplification(found, math.fsum(rab / gain**2 for rab, gain in zip(after, known, strict=True)) / before)


def _gain(matrix: MatrixRecord, geometry: str, fitted: set[str]) -> float | None:
    """What fits multiplied the change of a matrix by; None where it is no multiple of one delta.

    Another delta, or a step that took a part of the rows, shows in a norm that is not the product of the steps'.
    """
    gain, ratio = 1.0, 1.0
    if len({step["delta"] for step in matrix["steps"]}) != 1:
        return None
    for step in matrix["steps"]:
        factor = step["facts"].get("norm_ratio", step["facts"].get("factor"))
        if factor is None:
            return None
        ratio *= abs(factor)
        gain *= factor if step["step"] in fitted else 1.0
    intended = matrix["stored"][geometry].get("norm_ratio_intended")
    return gain if intended is not None and math.isclose(intended, ratio, rel_tol=_SAME) else None


def tiles(fit: FitRecord) -> list[tuple[str, str]]:
    """(figure, what it is) of the figures that a reader looks for first."""
    facts = fit["facts"]
    shown = [(times(fit), f"factor of {fit['delta']}, found by {fit['step']}")] if "factor" in facts else []
    if by_head(fit):
        scaled, permuted = (number(facts[name]) for name in ("nll_scaled", "nll_permuted"))
        shown.append((scaled, f"answer NLL with coefficients of heads; {permuted} with the same ones permuted"))
    if "share" in facts:
        reached = "" if met(fit) else ", less than the target"
        shown.append(
            (percent(facts["share"]), f"of the raw forgetting is kept on its {counted(fit['rows'], 'row')}{reached}")
        )
    return shown


def unamplified(record: Record) -> dict[str, str]:
    """Geometry → a sentence about the factor in its figures, for the geometries that have one."""
    sentences = {}
    for name in summary.totals(record):
        found = amplification(record, name)
        if found is not None:
            without = f" Without it {percent(found.left)} of the bias would be left." if found.left is not None else ""
            factors = " and ".join(f"{times(fit)} of {fit['step']}" for fit in found.fits)
            sentences[name] = (
                f"These figures are of the amplified change: {factors} multiplies its norm by the factor, its bias by "
                f"the factor's square.{without}"
            )
    return sentences
