"""Cleaning unlearned checkpoints, judged against the alternatives at equal forgetting.

    python -m benchmarks.unlearning --model MODEL --data DATA --work WORK [--seeds 1,2,3] [--stages models,…]

MODEL: a small Llama folder. DATA: a folder of TOFU with full.json, retain90.json, forget10.json, retain_perturbed.json
and forget10_perturbed.json. WORK: every result is kept there as JSON and made once, so that an interrupted run goes on;
tables.md and the pictures are drawn from it. Settings and their reasons stand in settings.py; `--size tiny` uses small
ones, on any model, to see that everything runs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks._common import environment, experiment_parser, table
from benchmarks.unlearning.comparing import compare
from benchmarks.unlearning.models import health, make_models
from benchmarks.unlearning.pictures import draw
from benchmarks.unlearning.relearning import relearn
from benchmarks.unlearning.sensitivity import sensitivity
from benchmarks.unlearning.settings import REPORTED_SEEDS, UNLEARNERS, Settings, tiny
from benchmarks.unlearning.shipped import shipped
from benchmarks.unlearning.tables import read, tables
from benchmarks.unlearning.work import Work, open_work
from vecsurgery.demo.training import reproducible

STAGES = ("models", "compare", "shipped", "sensitivity", "relearn")


def carry_out(options: argparse.Namespace) -> None:
    """The wanted stages for every seed."""
    settings = tiny() if options.size == "tiny" else Settings()
    with reproducible(settings.threads):
        for seed in options.seeds:
            work = open_work(options.work, options.model, options.data, settings, seed, _say)
            for stage in options.stages:
                _STAGE[stage](work, options.unlearners)


def show(options: argparse.Namespace) -> None:
    """Write all tables and pictures that there are results for."""
    found = read(options.work, options.seeds)
    shown = [f"{title}\n\n{table(rows)}\n" for title, rows in tables(found).items()]
    (options.work / "tables.md").write_text("\n".join([environment() + "\n", *shown]), encoding="utf-8")
    draw(found, options.work)
    _say(f"wrote {options.work / 'tables.md'} and the pictures beside it")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _models(work: Work, _unlearners: Sequence[str]) -> None:
    make_models(work)
    work.once("health", lambda: health(work))


def _sensitivity(work: Work, _unlearners: Sequence[str]) -> None:
    if work.seed in work.settings.sensitivity.seeds:
        work.once("sensitivity", lambda: sensitivity(work))


Stage = Callable[[Work, Sequence[str]], None]


def _each(name: str, make: Callable[[Work, str], Any]) -> Stage:
    """A stage that is made for each unlearner apart."""

    def stage(work: Work, unlearners: Sequence[str]) -> None:
        for unlearner in unlearners:
            work.once(f"{name}/{unlearner}", partial(make, work, unlearner))

    return stage


def _relearn(work: Work, unlearner: str) -> Any:
    if work.seed not in work.settings.relearning.seeds:
        return {}
    return relearn(work, unlearner, work.once(f"compare/{unlearner}", lambda: compare(work, unlearner)))


_STAGE: dict[str, Stage] = {
    "models": _models,
    "compare": _each("compare", compare),
    "shipped": _each("shipped", shipped),
    "sensitivity": _sensitivity,
    "relearn": _each("relearn", _relearn),
}


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = tuple(unlearner.name for unlearner in UNLEARNERS)
    parser = experiment_parser(__doc__, "model", "data", "work", seeds=REPORTED_SEEDS, stages=STAGES, unlearners=names)
    return parser.parse_args(given)


if __name__ == "__main__":
    chosen = parse()
    carry_out(chosen)
    show(chosen)
