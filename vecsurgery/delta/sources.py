"""What every origin of a delta answers, and the one question asked of all: does it fit tied embeddings?"""

from typing import Literal, Protocol, runtime_checkable

import torch

from vecsurgery.delta.reading import Finder, Rows, Weights, row_chunks
from vecsurgery.delta.types import Delta
from vecsurgery.errors import InputError


@runtime_checkable
class DeltaSource(Protocol):
    """A delta that is read tensor by tensor. Tensors are named by the module's parameters of `into`."""

    @property
    def name(self) -> str:
        """The delta's name in the recipe."""

    @property
    def into(self) -> Weights:
        """The checkpoint that the delta is to be added to."""

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that it may change, in the walking order of `into`."""

    @property
    def fingerprint(self) -> str:
        """Of everything that determines the values."""

    def read(self, parameter: str, rows: Rows = None, *, precise: bool = False) -> Delta | None:
        """The delta of one tensor; None where there is no change.

        Matrices as (out, in), whatever the orientation on disk, other tensors in the stored shape of `into`. `rows`:
        only these along the first dimension of the result. `precise`: float64 where the difference of two stored
        tensors would round in float32.
        """

    def changed(self, parameter: str) -> bool:
        """Whether there is a change, reading no more than it takes to tell."""

    def reads(self, parameter: str) -> int:
        """Bytes on disk that `read` takes in."""

    def rank(self, parameter: str) -> int | None:
        """Columns of B where `read` gives factors, B A; None where it gives D itself."""

    def stored(self, parameter: str) -> list[tuple[Weights, str]]:
        """The tensors of checkpoints that `read` takes in, by stored name."""

    def untied(self, parameter: str, rows: Rows = None) -> Delta | None:
        """As `read`, but of a parameter that `into` ties to another: the values that it would get if it were free."""

    def ties(self, alias: str, owner: str) -> bool:
        """Whether both names stand for one tensor in everything the delta comes from."""


def check_tying(source: DeltaSource, *, others: Literal["source", "drop"] = "source") -> None:
    """Refuse a delta that would change tied tensors of `into` in different ways.

    Tying follows `into`: one tensor serves as embedding and head. A delta whose models keep two tensors fits only where
    both deltas are equal, or where neither is added (`others="drop"`). Errors: InputError naming both tensors.
    """
    if others == "drop":
        return
    finder = Finder(source.into.layout)
    for alias, owner in finder.layout.tied.items():
        info = finder.find(owner)
        if info is None or source.ties(alias, owner):
            continue
        for rows in row_chunks(info.shape, 4):
            if not _equal(source.untied(alias, rows), source.untied(owner, rows)):
                raise InputError(
                    f"delta {source.name!r}: `into` ties {alias!r} to {owner!r}, but the delta changes them "
                    "differently, and one tensor cannot take both; use models that tie them too, or, in a recipe, a "
                    "projecting step with `others: drop`, which leaves both out"
                )


def _equal(first: Delta | None, second: Delta | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first.dense(), second.dense())
