"""attention_scale: scale each head's delta by how much its attention serves the instructions."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vecsurgery.errors import InputError

from ._registry import Fit
from .types import AskAttention, AttentionPaid, Candidate, Coefficients, FittedMatrix, Multiplier

if TYPE_CHECKING:
    from torch import Tensor

_CONTROL_SEED = 0
_ATTENTION = ("q", "k", "v", "o")


class AttentionScale(BaseModel):
    """Options of `fit: attention_scale`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    model: Literal["edited", "into"] = Field(
        default="edited",
        description="The model that attention is measured on: edited as the steps above left it, or into as it is.",
    )
    rho: float = Field(
        default=0.5, ge=0.0, description="Weight ρ of the attention that unrelated text pays, which counts against."
    )
    mean: float | None = Field(
        default=1.0,
        gt=0.0,
        description="What the coefficients average to over all query heads before they are clipped to range; null "
        "leaves them as the formula gives them.",
    )
    range: tuple[float, float] = Field(
        default=(0.0, 1.5), description="Least and largest coefficient, least < largest."
    )
    normalise: Literal["mass", "paper"] = Field(
        default="mass",
        description="mass: attention per response token; paper: per pair of response and instruction tokens.",
    )

    @model_validator(mode="after")
    def _ordered_range(self) -> "AttentionScale":
        low, high = self.range
        if not 0.0 <= low < high:
            raise ValueError(f"range needs 0 ≤ least < largest, as in [0, 1.5]; got [{low:g}, {high:g}]")
        return self


def attention_scale(
    ask: AskAttention,
    *,
    step: str,
    delta: str,
    tensors: Mapping[str, FittedMatrix],
    facts: Mapping[str, float],  # noqa: ARG001 - every fit is given them
    options: AttentionScale,
) -> Coefficients:
    """α_k = clip(g/h, low, high) for every query head k, g = mean(a) − ρ·mean(u), h = 1 + mean(u).

    a is the attention that tokens of a response pay to the instruction which they follow, u that of tokens which
    follow none; each per token (`mass`), or per pair of tokens (`paper`), of one sample; means over the samples that
    have such tokens. With `mean`, α is clipped at 0 and divided by its mean over all query heads of all layers first.
    α_k multiplies head k's rows of q and columns of o; rows of a key or value head take the mean of the query heads
    that read it, every other matrix the mean of its layer. Statistics are exact, from a pass over one model; a second
    pass compares answer losses with those under α permuted over the heads, the control.

    Facts of the result: `mean`, `least`, `largest` of α; `zero`, share of heads at 0; `related`, `unrelated`, means of
    a and u over heads; `nll_unscaled`, `nll_scaled`, `nll_permuted`: answer NLL of the edited model on these rows in
    nats without α, with it, and with the permuted one; `asks` (passes).
    Raises InputError where no coefficient is positive, for attention matrices whose heads are unknown, and for losses
    that are not finite.
    Source: RAIN-Merging, arXiv 2602.22538; mass, mean and the control are this project's, see docs/methods.md.
    """
    paid = ask.attention(Candidate(options.model))
    related = _mean(paid.related, _normalisers(paid, paid.related_tokens, options))
    unrelated = _mean(paid.unrelated, _normalisers(paid, paid.unrelated_tokens, options))
    if related is None:
        raise InputError("no row has a token that instructs and one that follows it, so attention says nothing")
    warnings = []
    if unrelated is None:
        warnings.append("no row has unrelated text: nothing is subtracted, the mean of u is 0")
        unrelated = related * 0.0
    alpha = clipped((related - options.rho * unrelated) / (1.0 + unrelated), options)
    scaled = coefficient_table(alpha, tensors)
    control = coefficient_table(permuted(alpha), tensors)
    losses = ask([Candidate("edited"), Candidate("edited", table=scaled), Candidate("edited", table=control)])
    found = {
        "mean": float(alpha.mean()),
        "least": float(alpha.min()),
        "largest": float(alpha.max()),
        "zero": float((alpha == 0.0).double().mean()),
        "related": float(related.mean()),
        "unrelated": float(unrelated.mean()),
        **{f"nll_{name}": each.nll for name, each in zip(("unscaled", "scaled", "permuted"), losses, strict=True)},
        "asks": 2.0,
    }
    for name, value in found.items():
        if not math.isfinite(value):
            raise InputError(f"{name} is {value}, expected a finite number: activations of the edited model overflow")
    if found["nll_permuted"] <= found["nll_scaled"]:
        warnings.append(
            f"the control is as good: with the same coefficients permuted over the heads these answers have an NLL of "
            f"{found['nll_permuted']:.4g}, with those found {found['nll_scaled']:.4g}"
        )
    return Coefficients(step, "attention_scale", delta, scaled, found, (), tuple(warnings))


def clipped(alpha: "Tensor", options: AttentionScale) -> "Tensor":
    """α in the range, rescaled to its `mean` first. Raises InputError where there is nothing to rescale."""
    if options.mean is not None:
        positive = alpha.clamp(min=0.0)
        average = float(positive.mean())
        if not average > 0.0:
            raise InputError(
                "no head pays more attention to instructions from text that follows them than ρ times from other text: "
                "every coefficient would be 0; lower `rho`, or give other rows"
            )
        alpha = positive * (options.mean / average)
    return alpha.clamp(*options.range)


def _normalisers(paid: AttentionPaid, tokens: Sequence[int], options: AttentionScale) -> list[int]:
    """N of every sample; 0 where it has no such tokens, or no instruction."""
    pairs = zip(tokens, paid.instruction_tokens, strict=True)
    return [own * (instruction if options.normalise == "paper" else min(instruction, 1)) for own, instruction in pairs]


def _mean(sums: "Tensor", normalisers: Sequence[int]) -> "Tensor | None":
    """The mean over samples of sums (samples, layers, heads) each divided by its N, those with N = 0 left out."""
    chosen = [number for number, count in enumerate(normalisers) if count]
    if not chosen:
        return None
    total = sum(sums[number] / normalisers[number] for number in chosen)
    mean: Tensor = total / len(chosen)  # type: ignore[assignment]
    return mean


def permuted(alpha: "Tensor") -> "Tensor":
    """The control: the same numbers (layers, heads) on other heads, of all layers, in a fixed random order."""
    order = list(range(alpha.numel()))
    random.Random(_CONTROL_SEED).shuffle(order)
    return alpha.flatten()[order].reshape(alpha.shape)


def coefficient_table(alpha: "Tensor", tensors: Mapping[str, FittedMatrix]) -> dict[str, Multiplier]:
    """What each tensor is multiplied by, from α (layers, heads) of the query heads."""
    return {name: _of_matrix(name, alpha[matrix.layer], matrix) for name, matrix in tensors.items()}


def _of_matrix(name: str, alpha: "Tensor", matrix: FittedMatrix) -> Multiplier:
    """The numbers of one matrix from those of its layer's query heads."""
    roles = [role for role in matrix.heads if role in _ATTENTION]
    if not roles:
        if "other" in matrix.heads:
            raise InputError(
                f"tensor {name!r}: what its rows mean is not known, so that attention of heads says nothing about it; "
                "select the matrices to scale: modules: [q, k, v, o, gate, up, down]"
            )
        return float(alpha.mean())
    found = {}
    for role in roles:
        heads, count = matrix.heads[role], len(alpha)
        if not heads or count % heads or (role in ("q", "o") and heads != count):
            raise InputError(
                f"tensor {name!r}: its part {role} has {heads or 'no'} heads, where attention has {count}; this layout "
                "is not supported"
            )
        found[role] = tuple(alpha.reshape(heads, -1).mean(dim=1).tolist())
    return found


FIT = Fit(name="attention_scale", options=AttentionScale, function=attention_scale, asks="attention")
