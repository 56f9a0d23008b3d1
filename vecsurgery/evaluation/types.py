"""What evaluation hands on: figures of models on data sources, with the value of every row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vecsurgery.errors import InputError


@dataclass(frozen=True)
class Figure:
    """One measure of one model on one data source, in the layout of open-unlearning.

    `value`: over all rows; None where there is none. `by_index`: number of the row among those used, as text → what was
    found for it. `key`: which entry of a row is its value, a number or a list of numbers. `interval`: within which the
    value of a rate lies, at 95 %; None for figures that have none.
    """

    value: float | None
    by_index: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    key: str = "score"
    interval: tuple[float, float] | None = None

    @property
    def per_row(self) -> tuple[float, ...]:
        """The value of each row that has one, in order; lists (several answers to one question) count by their mean."""
        found = (entry.get(self.key) for entry in self.by_index.values())
        values = (_average(value) if isinstance(value, list) else value for value in found)
        return tuple(value for value in values if value is not None)

    def to_dict(self) -> dict[str, Any]:
        """`{"agg_value": …, "interval": …, "value_by_index": …}`; a number that is not finite becomes None, as JSON has
        none. What a figure lacks is left out.
        """
        entries = {index: dict(entry) for index, entry in self.by_index.items()}
        interval = {"interval": list(self.interval)} if self.interval is not None else {}
        return {"agg_value": _finite(self.value)} | interval | ({"value_by_index": entries} if entries else {})


@dataclass(frozen=True)
class Measured:
    """Figures of one model on one data source, by the names of `catalogue.MEASURES`.

    `rows`: rows that were measured; `tokens`: tokens that were scored or, of `think`, written.
    """

    figures: Mapping[str, Figure]
    rows: int = 0
    tokens: int = 0

    def __getitem__(self, measure: str) -> float | None:
        """The value of a measure. Raises KeyError where it was not taken."""
        return self.figures[measure].value

    def values(self) -> dict[str, float | None]:
        """Measure → value, without the rows."""
        return {name: _finite(figure.value) for name, figure in self.figures.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = {name: figure.to_dict() for name, figure in self.figures.items()}
        return {"rows": self.rows, "tokens": self.tokens, "figures": figures}


@dataclass(frozen=True)
class EvaluatedModel:
    """All figures of one model.

    `label`: its name in tables; `source`: what was measured, as the caller named it; `fingerprint`: of its weights,
    None where the figures were read from a file; `data`: data source → figures.
    """

    label: str
    source: str
    fingerprint: str | None
    data: Mapping[str, Measured]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        data = {name: measured.to_dict() for name, measured in self.data.items()}
        return {"source": self.source, "fingerprint": self.fingerprint, "data": data}


@dataclass(frozen=True)
class Evaluation:
    """Several models measured on the same data.

    `settings`: what determines the figures beside models and data (template, seeds, sampling); `data`: data source →
    its files; `warnings`: what makes figures not comparable, or not what they seem.
    """

    models: tuple[EvaluatedModel, ...]
    data: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    def model(self, label: str) -> EvaluatedModel:
        """The model of that label. Raises InputError naming those that there are."""
        for model in self.models:
            if model.label == label:
                return model
        raise InputError(f"no model {label!r} was evaluated; there are {', '.join(each.label for each in self.models)}")

    def value(self, label: str, data: str, measure: str) -> float | None:
        """One figure; None where it was not taken."""
        figure = self.figure(label, data, measure)
        return None if figure is None else figure.value

    def figure(self, label: str, data: str, measure: str) -> Figure | None:
        """One figure with its rows and interval; None where it was not taken."""
        measured = self.model(label).data.get(data)
        return measured.figures.get(measure) if measured is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "models": {model.label: model.to_dict() for model in self.models},
            "data": {name: list(files) for name, files in self.data.items()},
            "settings": dict(self.settings),
            "warnings": list(self.warnings),
        }


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
