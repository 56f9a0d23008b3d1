"""What calibration hands on: samples of token ids with the positions that count."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One rendered row.

    `ids`: the token ids that are fed to the model, BOS included.
    `positions`: indices into `ids` selected by the token rule, ascending.
    `answer`: indices into `ids` of the tokens of the row's response field, ascending; empty where it has none.
    `row`: identity of the row (hash of its fields); `where`: "file:line" for messages.
    `answers`: the row has a response, of which nothing may be left within `max_length`; False for running text.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    answer: tuple[int, ...]
    row: str
    where: str
    answers: bool = False


@dataclass(frozen=True)
class Samples:
    """All samples of one data source under one token rule.

    `counts`: what was used and what was cut: rows, repeats, samples, cut (too long), dropped (closing tag lost),
    tokens (fed), positions (selected) — integers only.
    `fingerprint`: SHA-256 over ids and positions of every sample, in order.
    """

    samples: tuple[Sample, ...]
    counts: Mapping[str, int]
    fingerprint: str
    warnings: tuple[str, ...] = ()

    @property
    def positions(self) -> int:
        """Selected token positions in total."""
        return sum(len(sample.positions) for sample in self.samples)
