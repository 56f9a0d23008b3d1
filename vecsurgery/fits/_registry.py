"""How a fit is made known: one object a file, found by its name in a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from .types import Coefficients, FittedMatrix


class FitFunction(Protocol):
    """The shape of every fit's function."""

    def __call__(
        self,
        ask: Any,
        *,
        step: str,
        delta: str,
        tensors: Mapping[str, FittedMatrix],
        facts: Mapping[str, float],
        options: Any,
    ) -> Coefficients: ...


@dataclass(frozen=True)
class Fit:
    """A fit and its options.

    `function(ask, *, step, delta, tensors, facts, options)` decides from answers alone. `ask` (an `Ask`) gives losses
    of a list of candidates in one streaming pass; it is called as often as needed. Where `asks` is "attention", the
    rows have spans and `ask` (an `AskAttention`) tells of attention too. `step`, `delta`: the names that go into the
    result. `tensors`: the matrices that are fitted, by stored name. `facts`: what is known before anything is
    asked: `norm_ratio`, ‖D′‖/‖D‖ over those matrices. `options` is an instance of `options`.
    A field of `options` that names a model carries `json_schema_extra={"reference": "model"}`; the model is then asked
    for as the candidate of the kind "reference".
    """

    verb: ClassVar[Literal["fit"]] = "fit"

    name: str
    options: type[BaseModel]
    function: FitFunction
    asks: Literal["losses", "attention"] = "losses"
