"""Looking for an unlearner's rate and length on the pilot seed: health of the uncleaned model over its steps.

    python -m benchmarks.unlearning.pilot --model MODEL --data DATA --work WORK --unlearner npo --rate 1e-4 --steps 60

Trains the pilot's original once, then prints a table of forget and retain measures every few steps. Nothing is cleaned,
and no table of results reads what this writes: its outcome is a number in settings.py.
"""

import argparse
import copy
from dataclasses import replace
from typing import Any

from benchmarks._common import experiment_parser, table
from benchmarks.unlearning import models
from benchmarks.unlearning.measures import answers
from benchmarks.unlearning.settings import PILOT_SEED, UNLEARNERS, Settings, tiny
from benchmarks.unlearning.training import load
from benchmarks.unlearning.unlearners import unlearn
from benchmarks.unlearning.work import Work, open_work
from vecsurgery.demo.training import reproducible

_SHOWN = ("capped", "token_probability", "nll")


def watch(work: Work, name: str, rate: float, steps: int, every: int) -> list[dict[str, Any]]:
    """A row for the original and for every few steps of one unlearner."""
    (chosen,) = [unlearner for unlearner in work.settings.unlearners if unlearner.name == name]
    unlearner = replace(chosen, training=replace(chosen.training, rate=rate, steps=steps))
    models.make_original(work)
    original = load(work.checkpoint("original"))
    model = copy.deepcopy(original)
    rows: list[dict[str, Any]] = []

    def look(step: int, _loss: float) -> None:
        if step % every:
            return
        row: dict[str, Any] = {"unlearner": name, "rate": rate, "step": step}
        model.eval()
        for role in ("forget", "retain"):
            means = answers(model, models.samples(work, f"{role}_test")).means()
            row |= {f"{role} {measure}": means[measure] for measure in _SHOWN}
        model.train()
        rows.append(row)

    look(0, 0.0)
    forget, retain = models.samples(work, "forget"), models.samples(work, "unlearn_retain")
    unlearn(model, original, unlearner, forget, retain, seed=work.seed, after=look)
    return rows


def main(options: argparse.Namespace) -> str:
    """The table."""
    settings = tiny() if options.size == "tiny" else Settings()
    with reproducible(settings.threads):
        work = open_work(options.work, options.model, options.data, settings, PILOT_SEED, print)
        return table(watch(work, options.unlearner, options.rate, options.steps, options.every))


if __name__ == "__main__":
    parser = experiment_parser(__doc__, "model", "data", "work")
    parser.add_argument("--unlearner", choices=[unlearner.name for unlearner in UNLEARNERS], required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5)
    print(main(parser.parse_args()))
