"""How long work tells what it does: a function that the caller passes in."""

from typing import Protocol


class Progress(Protocol):
    """Called as work proceeds; never slows it and never changes its result."""

    def __call__(self, stage: str, done: float, total: float, unit: str) -> None:
        """`stage`: what is being done; `done` of `total` are finished, counted in `unit` (blocks, bytes, rows)."""


def silent(stage: str, done: float, total: float, unit: str) -> None:
    """A progress that tells nobody."""
