"""How work is shown while it runs: bars on a terminal, plain lines elsewhere, nothing for machines. All on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import Task, TaskID


@contextmanager
def shown(*, as_json: bool) -> Iterator[Progress]:
    """A progress for one command: silent with --json, bars where stderr is a terminal, plain lines elsewhere."""
    if as_json:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield Lines(sys.stderr)


@dataclass
class _Stage:
    """What was told of a stage."""

    since: float
    """When it was last told."""
    told: float
    """How much was done then."""
    seen: float
    """How much was done at the last call; infinite at the end."""
    silent: bool
    """Whether its beginning was passed over."""


class Lines:
    """One line when a stage begins, one when it is finished, and between them few: at most one in thirty seconds, and
    none before another tenth is done.

    For logs: a short run leaves two lines a stage, a long one at most eleven. A stage that starts over (the same phase
    for another file, or for more texts) is told again, but not within thirty seconds of its last line. Safe to call
    from threads; `clock` gives seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = Lock()
        self._stages: dict[str, _Stage] = {}

    def __call__(self, stage: str, done: float, total: float, unit: str) -> None:
        with self._lock:
            if self._tells(stage, done, total, self._clock()):
                print(f"{stage}: {amount(done, total, unit)}", file=self._stream, flush=True)

    def _tells(self, stage: str, done: float, total: float, now: float) -> bool:
        """Whether this call deserves a line; notes it."""
        reached = inf if done >= total else done
        known = self._stages.get(stage)
        if known is None:
            self._stages[stage] = _Stage(since=now, told=done, seen=reached, silent=False)
            return True
        patient = now - known.since >= _PATIENCE
        if reached < known.seen:
            tells, known.silent, known.told = patient, not patient, done
        elif reached == inf:
            tells = known.seen < inf and (patient or not known.silent)
        else:
            tells = patient and done - known.told >= _SHARE * total
        known.seen = reached
        if tells:
            known.since, known.told, known.silent = now, done, False
        return tells


def amount(done: float, total: float, unit: str) -> str:
    """How much of how much, in a unit that fits.

    >>> amount(3, 28, "blocks"), amount(1.5e9, 14e9, "bytes")
    ('3/28 blocks', '1.5/14.0 GB')
    """
    if unit != "bytes":
        return f"{int(done)}/{total:g} {unit}"
    size, name = next((size, name) for size, name in _SIZES if total >= size)
    return f"{done / size:.1f}/{total / size:.1f} {name}"


def rate(speed: float | None, unit: str) -> str:
    """Units a second; seconds for one unit where that is below one a second."""
    if not speed:
        return ""
    if unit == "bytes":
        size, name = next((size, name) for size, name in _SIZES if speed >= size)
        return f"{speed / size:.1f} {name}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


_PATIENCE = 30.0
"""Seconds between two lines about one stage, between its beginning and its end."""
_SHARE = 0.1
"""Of the whole, that must be done between them."""
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (0.0, "bytes"))


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(amount(task.completed, task.total or 0.0, task.fields["unit"]))

    class Rate(ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(rate(task.finished_speed or task.speed, task.fields["unit"]), style="dim")

    stage_column = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    with Bars(stage_column, BarColumn(), Amount(), Rate(), TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}
        lock = Lock()

        def progress(stage: str, done: float, total: float, unit: str) -> None:
            with lock:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total, unit=unit)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress
