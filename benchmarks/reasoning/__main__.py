"""An instruction model merged into a reasoning model, by every method, on three families and three seeds of each.

    python -m benchmarks.reasoning --work WORK [--families sums,kin,coins] [--seeds 1,2,3]

Trains the families first, some minutes each on one core. WORK keeps models and results; each is made once, so that an
interrupted run goes on, and families or seeds may be run beside each other. tables.md and a picture are made of what is
there. Settings and their reasons stand in settings.py; `--size tiny` uses models that learn nothing, to see that
everything runs.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import environment, experiment_parser, table
from benchmarks._once import once
from benchmarks.reasoning.answering import Answering
from benchmarks.reasoning.merging import Line, Pair, State, lines, ties
from benchmarks.reasoning.settings import FAMILIES, REPORTED_SEEDS, Experiment
from benchmarks.reasoning.tables import draw, seen, tables
from vecsurgery.calibration import asking_rows, load_tokenizer, thoughts
from vecsurgery.checkpoint import InMemory, Stored
from vecsurgery.demo.reasoning.models import Trained, train_family
from vecsurgery.demo.reasoning.settings import Settings
from vecsurgery.demo.training import Course, reproducible
from vecsurgery.evaluation import think_divergences
from vecsurgery.recipe.types import DataSpec

TIES = {"TIES": True, "TIES, not normalised": False}
"""mergekit's default is a weighted mean where signs agree, which never adds the whole of both."""
_TAGS = ("<think>", "</think>")


def carry_out(options: argparse.Namespace) -> None:
    """Every family and seed, each result once."""
    experiment = tiny() if options.size == "tiny" else Experiment()
    work: Path = options.work.resolve()
    _begin(work, experiment)
    with reproducible(experiment.training.threads):
        for name in options.families:
            for seed in options.seeds:
                trained = train_family(FAMILIES[name], seed, experiment.training, cache=work / "models")
                _family(Pair(trained, work / name / f"seed-{seed}", experiment))


def _family(pair: Pair) -> None:
    """One family of one seed: models, then every method."""
    _bind(pair)
    answering = Answering(pair.trained.reasoning, pair.experiment.longest)
    once(pair.folder / "models.json", partial(_models, pair))
    own: dict[str, Mapping[float, Line]] = {name: {0.0: line} for name, line in lines(pair).items()}
    for name, normalize in TIES.items():
        own[name] = {density: partial(ties, pair.trained, normalize, density) for density in pair.experiment.densities}
    for name, variants in own.items():
        _say(f"{pair.trained.family} {pair.trained.seed}: {name}")
        made = partial(_method, pair, answering, variants)
        once(
            pair.folder / f"{name.replace(' ', '-').replace(',', '')}.json",
            lambda made=made, name=name: {"method": name, **made()},
        )


def _bind(pair: Pair) -> None:
    """Raises ValueError where the folder holds results of other models: retrained ones have another digest."""
    members = (pair.trained.base, pair.trained.reasoning, pair.trained.instruct)
    weights = {each.name: hashlib.sha256((each / "model.safetensors").read_bytes()).hexdigest() for each in members}
    path = pair.folder / "begun.json"
    if once(path, lambda: weights) != weights:
        raise ValueError(f"{pair.folder} has results of other models; give another --work, or delete the folder")


def _models(pair: Pair) -> dict[str, Any]:
    """The family's members, each asked by its own template: what there is to merge."""
    found = {}
    for name in ("reasoning", "instruct"):
        folder = getattr(pair.trained, name)
        answering = Answering(folder, pair.experiment.longest)
        found[name] = _shares(answering, pair.trained, "test", pair.experiment.samples)
        found[name] |= {"choosing": _shares(answering, pair.trained, "choosing", None)}
    return found


def _method(pair: Pair, answering: Answering, variants: Mapping[float, Line]) -> dict[str, Any]:
    """A method's line greedily on the rows that choose, then the chosen point and that of weight 1 on test rows."""
    experiment = pair.experiment
    path = []
    for variant, line in variants.items():
        for weight in experiment.weights:
            answering.load(line(weight))
            point = _shares(answering, pair.trained, "choosing", None)
            path.append({"variant": variant, "weight": weight, **point})
    reasoning = json.loads((pair.folder / "models.json").read_text())["result"]["reasoning"]
    chosen = choose(path, experiment.accuracy * reasoning["choosing"]["plain"]["right"])
    found: dict[str, Any] = {"path": path, "chosen": None}
    if chosen is not None:
        found["chosen"] = chosen | _judged(pair, answering, variants[chosen["variant"]](chosen["weight"]))
    whole = {f"{variant:g}": _judged(pair, answering, line(1.0)) for variant, line in variants.items()}
    return {**found, "whole": whole}


def choose(path: Sequence[Mapping[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """The point with the largest share of right and obeying answers among those of enough plain accuracy; the first of
    equals. None where no point has enough, or none of those has such an answer at all.
    """
    allowed = [point for point in path if point["plain"]["right"] >= accuracy and point["instructed"]["both"] > 0.0]
    if not allowed:
        return None
    best = max(allowed, key=lambda point: point["instructed"]["both"])
    return {"variant": best["variant"], "weight": best["weight"]}


def _judged(pair: Pair, answering: Answering, state: State) -> dict[str, Any]:
    """Test rows by the model's own sampling, and the divergence of thoughts from the reasoning model."""
    answering.load(state)
    found = _shares(answering, pair.trained, "test", pair.experiment.samples)
    return found | _divergences(pair, state)


def _divergences(pair: Pair, state: State) -> dict[str, float | None]:
    """L_think, and the divergence of the first token behind a thought and of the first `after`."""
    reference = Stored(pair.trained.reasoning)
    spec = DataSpec((pair.trained.data / "test-plain.jsonl",))
    samples = thoughts(asking_rows(spec), spec, load_tokenizer(pair.trained.reasoning), _TAGS)
    other = InMemory({name: weight.clone() for name, weight in state.items()}, reference.config)
    found: dict[str, float | None] = {}
    for after in (1, pair.experiment.after):
        figures = think_divergences(reference, [other], samples, after=after)[0]
        found |= {"think_kl": figures["think_kl"].value, f"answer_kl_{after}": figures["answer_kl"].value}
    return found


def _shares(answering: Answering, trained: Trained, part: str, samples: int | None) -> dict[str, Any]:
    """Plain and instructed prompts of a part."""
    return {
        kind: asdict(answering.shares(answering.asked(trained.data / f"{part}-{kind}.jsonl"), samples=samples))
        for kind in ("plain", "instructed")
    }


def _begin(work: Path, experiment: Experiment) -> None:
    """Raises ValueError where the folder was begun with other settings."""
    work.mkdir(parents=True, exist_ok=True)
    path, text = work / "settings.json", json.dumps(experiment.to_dict(), indent=1) + "\n"
    if not path.exists():
        partial_file = work / f"settings.{os.getpid()}.partial"
        partial_file.write_text(text)
        partial_file.rename(path)
    if json.loads(path.read_text()) != json.loads(text):
        raise ValueError(f"{work} was begun with other settings; give another folder, or delete it")


def tiny() -> Experiment:
    """Settings under which everything runs in seconds and nothing means anything."""
    short = Course(steps=4, batch=4, rate=1e-3, warm_up=1, other_weight=0.1)
    training = Settings(hidden=32, intermediate=48, layers=2, times=1, base=short, reasoning=short, instruct=short)
    return replace(
        Experiment(), weights=(0.5, 1.0), other_rtols=(0.3,), densities=(1.0,), samples=2, longest=8, training=training
    )


def show(options: argparse.Namespace) -> None:
    """Write all tables and the picture of what there is."""
    read = [
        {"family": name, "seed": seed} | seen(FAMILIES[name](seed))
        for name in options.families
        for seed in options.seeds
    ]
    titled = {"test problems whose steps the models have read": read, **tables(options.work)}
    found = [f"{title}\n\n{table(rows)}\n" for title, rows in titled.items()]
    (options.work / "tables.md").write_text("\n".join([environment() + "\n", *found]), encoding="utf-8")
    draw(options.work, options.work / "reasoning.svg")
    _say(f"wrote {options.work / 'tables.md'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return experiment_parser(__doc__, "work", seeds=REPORTED_SEEDS, families=tuple(FAMILIES)).parse_args(given)


if __name__ == "__main__":
    asked = parse()
    torch.set_num_threads(1)
    carry_out(asked)
    show(asked)
