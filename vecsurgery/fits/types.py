"""What a fit asks and what it finds: candidate models, their answer losses, coefficients that are kept in a file."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from vecsurgery.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

VERSION = 2
Multiplier = float | Mapping[str, tuple[float, ...]]
"""What the delta of a matrix is multiplied by: one number, or for each of its roles a number a head. Heads number the
rows of q, k and v, and the columns of o; rows of other roles are left alone."""


@dataclass(frozen=True)
class FittedMatrix:
    """A matrix that a fit multiplies. `layer`: its block. `heads`: role of each of its parts → heads that number the
    part's rows (q, k, v) or columns (o); 0 for a part that has none.
    """

    layer: int
    heads: Mapping[str, int]


@dataclass(frozen=True)
class Candidate:
    """A model that a fit asks about.

    `into`: the model that is edited. `raw`: `into` with the delta as loaded, all its tensors, times `factor` and its
    weight; other deltas as they stand at this step. `edited`: the deltas as the steps above left them, the fitted
    matrices of the delta times `factor` and, where there is a `table`, each times its multiplier. `reference`: the
    model that the options name.
    """

    kind: Literal["into", "raw", "edited", "reference"]
    factor: float = 1.0
    table: Mapping[str, Multiplier] | None = None


@dataclass(frozen=True)
class AnswerLosses:
    """How surprised a model is by the answers of the fit's rows; losses in nats.

    `capped`: mean over rows of the row's mean over answer tokens of min(NLL, ln(vocabulary)).
    `nll`: the same without the cap. `probability`: mean over rows of the row's mean token probability, in [0, 1].
    `per_row`: each row's share in `capped`.
    """

    capped: float
    nll: float
    probability: float
    per_row: tuple[float, ...]


Ask = Callable[[Sequence[Candidate]], list[AnswerLosses]]
"""Losses of all candidates, in their order, by one streaming pass."""


@dataclass(frozen=True)
class AttentionPaid:
    """Attention that responses pay to instructions in one model, exact, in float64.

    `related`, `unrelated`: Σ_t Σ_τ Att[t, τ] over response tokens t that follow an instruction (that have nothing to do
    with one) and instruction tokens τ, for each sample, layer and query head. `…_tokens`: how many there are in each
    sample.
    """

    related: "Float[Tensor, 'samples layers heads']"
    unrelated: "Float[Tensor, 'samples layers heads']"
    instruction_tokens: tuple[int, ...]
    related_tokens: tuple[int, ...]
    unrelated_tokens: tuple[int, ...]


class AskAttention(Protocol):
    """What a fit of attention asks: answer losses as any other, and attention on instructions."""

    def __call__(self, candidates: Sequence[Candidate]) -> list[AnswerLosses]: ...

    def attention(self, candidate: Candidate) -> AttentionPaid:
        """Of `into` or the edited model, by a pass of its own."""


@dataclass(frozen=True)
class CurvePoint:
    """Losses of the edited model at one factor."""

    factor: float
    capped: float
    nll: float
    probability: float


@dataclass(frozen=True)
class Coefficients:
    """What a fit found: a multiplier for each fitted tensor, and how it was chosen.

    `step`, `method`, `delta`: which step found it, by which method, for which delta. `tensors`: stored tensor name →
    what its delta is multiplied by. `facts`: figures for the report. `curve`: every edited model that was
    asked about, by factor. `warnings`: for the user to judge.
    """

    step: str
    method: str
    delta: str
    tensors: Mapping[str, Multiplier]
    facts: Mapping[str, float]
    curve: tuple[CurvePoint, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """JSON text from which `from_json` makes the same coefficients: sorted keys, every digit of every number.

        Raises ValueError for a number that is not finite.
        """
        content = {"version": VERSION, **asdict(self)}
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> "Coefficients":
        """The coefficients of a text that `to_json` wrote. `where`: the file, for messages.

        Raises InputError for anything else: the numbers decide what is written, so nothing is guessed.
        """
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
            return _coefficients(content)
        except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
            raise InputError(
                f"reading coefficients from {where}: {error}; delete the file, and the run that made it will fit again"
            ) from error


def _coefficients(content: Any) -> Coefficients:
    """Raises ValueError naming the first entry that is not as `to_json` writes it."""
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(content, dict) and version != VERSION:
        raise ValueError(f"it has format version {version!r}, this release reads version {VERSION}")
    names = {field.name for field in fields(Coefficients)}
    content = _map(content, {"version", *names}, "the file")
    curve = _list(content["curve"], "curve")
    return Coefficients(
        step=_text(content["step"], "step"),
        method=_text(content["method"], "method"),
        delta=_text(content["delta"], "delta"),
        tensors=_multipliers(content["tensors"]),
        facts=_numbers(content["facts"], "facts"),
        curve=tuple(_point(point, f"curve[{index}]") for index, point in enumerate(curve)),
        warnings=tuple(_text(each, "warnings") for each in _list(content["warnings"], "warnings")),
    )


def _point(content: Any, name: str) -> CurvePoint:
    keys = {field.name for field in fields(CurvePoint)}
    return CurvePoint(**{key: _number(each, f"{name}.{key}") for key, each in _map(content, keys, name).items()})


def _map(content: Any, keys: set[str], name: str) -> dict[str, Any]:
    if not isinstance(content, dict) or set(content) != keys:
        came = f"the entries {sorted(content)}" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{name} has {came}, expected a map with the entries {sorted(keys)}")
    return content


def _list(content: Any, name: str) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{name} is {content!r}, expected a list")
    return content


def _text(content: Any, name: str) -> str:
    if not isinstance(content, str):
        raise ValueError(f"{name} is {content!r}, expected text")
    return content


def _numbers(content: Any, name: str) -> dict[str, float]:
    if not isinstance(content, dict):
        raise ValueError(f"{name} is {content!r}, expected a map of numbers")
    return {key: _number(each, f"{name}.{key}") for key, each in content.items()}


def _multipliers(content: Any) -> dict[str, Multiplier]:
    if not isinstance(content, dict):
        raise ValueError(f"tensors is {content!r}, expected a map of numbers")
    return {name: _multiplier(each, f"tensors.{name}") for name, each in content.items()}


def _multiplier(content: Any, name: str) -> Multiplier:
    if not isinstance(content, dict):
        return _number(content, name)
    if not content:
        raise ValueError(f"{name} is empty, expected a number, or a list of numbers for each role")
    return {
        role: tuple(_number(each, f"{name}.{role}") for each in _list(numbers, f"{name}.{role}"))
        for role, numbers in content.items()
    }


def _number(content: Any, name: str) -> float:
    if isinstance(content, bool) or not isinstance(content, int | float) or not math.isfinite(content):
        raise ValueError(f"{name} is {content!r}, expected a finite number")
    return float(content)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, expected finite numbers")
