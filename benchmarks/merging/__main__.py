"""Four fine-tunes of one model merged by every method, for each seed: what is left of the single gains.

    python -m benchmarks.merging --model MODEL --data DATA --work WORK [--seeds 1,2,3]

MODEL is a small base model; DATA holds tofu/, wikitext2/, gsm8k/ and rain_calibration/. WORK keeps fine-tunes and
results; each is made once, so that an interrupted run goes on, and seeds may be run beside each other. tables.md is
made of what is there. Settings and their reasons stand in settings.py; `--size tiny` is to see that everything runs.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vecsurgery
from benchmarks._common import environment, experiment_parser, table
from benchmarks._once import once
from benchmarks.merging.models import Judge, fine_tune
from benchmarks.merging.settings import AVERAGED, LOWER, METHODS, REPORTED_SEEDS, Experiment, Method
from benchmarks.merging.tables import gains, tables
from benchmarks.merging.tasks import TASKS, Windows, windows
from vecsurgery.calibration import load_tokenizer


@dataclass(frozen=True, eq=False)
class Seed:
    """What one seed's results are made from."""

    model: Path
    folder: Path
    experiment: Experiment
    windows: Mapping[str, Windows]

    def tuned(self, task: str) -> Path:
        """The folder of a single fine-tune."""
        return self.folder / "models" / task

    def weights(self, method: Method) -> tuple[float, ...]:
        """The method's line."""
        return self.experiment.weights if method.factor == 1.0 else self.experiment.mean_weights

    def judge(self, part: str) -> Judge:
        """Losses on a part of every task."""
        return Judge(self.model, {task: getattr(each, part) for task, each in self.windows.items()})


def carry_out(options: argparse.Namespace) -> None:
    """Every seed: fine-tunes, then every method, each result once."""
    experiment = tiny() if options.size == "tiny" else Experiment()
    tokenizer = load_tokenizer(options.model)
    for seed in options.seeds:
        folder = options.work.resolve() / f"seed-{seed}"
        cut = {task: windows(task, options.data, tokenizer, experiment, seed) for task in TASKS}
        _bind(folder / "begun.json", experiment, options.model, cut)
        made = Seed(options.model, folder, experiment, cut)
        (folder / "models").mkdir(exist_ok=True)
        for task in TASKS:
            _say(f"seed {seed}: fine-tuning on {task}")
            fine_tune(made.model, cut[task].training, experiment.training, seed, made.tuned(task))
        once(folder / "singles.json", partial(_singles, made))
        for method in (*METHODS, *AVERAGED):
            _say(f"seed {seed}: {method.name}")
            found = once(folder / f"{_file(method.name)}.json", partial(_method, made, method))
            if found["best"]["weight"] == min(made.weights(method)):
                once(folder / "lower" / f"{_file(method.name)}.json", partial(_lower, made, method, found))


def _singles(seed: Seed) -> dict[str, Any]:
    """Losses of the base and of every fine-tune on every task, on both parts that judge."""
    folders = {"base": seed.model} | {task: seed.tuned(task) for task in TASKS}
    found: dict[str, Any] = {}
    for part in ("choosing", "test"):
        judge = seed.judge(part)
        found[part] = {name: judge.losses(_state(folder)) for name, folder in folders.items()}
    return found


def _state(folder: Path) -> dict[str, Tensor]:
    weights = vecsurgery.weights_of(folder)
    return {name: weights.read(name).float() for name in weights.layout.order}


def _method(seed: Seed, method: Method) -> dict[str, Any]:
    """A method's line on the windows that choose, then the best point and that of weight 1 on test windows."""
    path = _line(seed, method, seed.weights(method))
    whole = {"weight": 1.0, "losses": seed.judge("test").losses(merged(seed, method))}
    return {"method": method.name, "path": path, "best": _best(seed, method, path), "whole": whole}


def _lower(seed: Seed, method: Method, found: Mapping[str, Any]) -> dict[str, Any]:
    """The same below the least weight of the line, for a method that chose it."""
    least = min(seed.weights(method))
    path = [*_line(seed, method, [share * least for share in LOWER]), *found["path"]]
    return {"method": method.name, "path": path, "best": _best(seed, method, path)}


def _line(seed: Seed, method: Method, weights: Sequence[float]) -> list[dict[str, float]]:
    singles = json.loads((seed.folder / "singles.json").read_text())["result"]
    judge, path, whole = seed.judge("choosing"), [], merged(seed, method)
    for weight in weights:
        losses = judge.losses(_at(seed, whole, weight))
        path.append({"weight": weight, "gain": gains(singles["choosing"], losses)["mean"]})
    return path


def _best(seed: Seed, method: Method, path: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    weight = max(path, key=lambda point: point["gain"])["weight"]
    return {"weight": weight, "losses": seed.judge("test").losses(_at(seed, merged(seed, method), weight))}


def _at(seed: Seed, whole: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """The point of the line at a weight: W + weight·(that of weight 1 − W)."""
    base = _state(seed.model)
    return {name: base[name].double().lerp(tensor.double(), weight).float() for name, tensor in whole.items()}


@lru_cache(maxsize=1)
def merged(seed: Seed, method: Method) -> dict[str, Tensor]:
    """The state of a method's line at weight 1, in float32; the last one is kept."""
    names = TASKS if method.merged is None else (method.merged,)
    return vecsurgery.edit(
        into=seed.model,
        deltas={task: seed.tuned(task) for task in TASKS},
        steps=method.steps,
        weights=dict.fromkeys(names, method.factor),
        dtype="float32",
    ).state_dict()


def _bind(path: Path, experiment: Experiment, model: Path, cut: Mapping[str, Windows]) -> None:
    """Raises ValueError where the folder was begun with other settings, model or text."""
    text = hashlib.sha256()
    for each in cut.values():
        for part in (each.training, each.choosing, each.test):
            text.update(part.numpy().tobytes())
    begun = {
        "settings": json.loads(json.dumps(experiment.to_dict())),
        "model": vecsurgery.weights_of(model).fingerprint,
        "windows": text.hexdigest(),
    }
    if once(path, lambda: begun) != begun:
        raise ValueError(f"{path.parent} was begun with other settings, model or data; give another --work")


def tiny() -> Experiment:
    """Settings under which everything runs in seconds and nothing means anything."""
    whole = Experiment()
    training = replace(whole.training, steps=3, batch=2)
    return replace(
        whole, training=training, window=16, texts=40, choosing=2, test=2, weights=(1.0,), mean_weights=(1.0,)
    )


def _file(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").replace("<", "below").lower()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return experiment_parser(__doc__, "model", "data", "work", seeds=REPORTED_SEEDS).parse_args(given)


def show(work: Path) -> None:
    """Write the tables of what there is."""
    found = [f"{title}\n\n{table(rows)}\n" for title, rows in tables(work).items()]
    (work / "tables.md").write_text("\n".join([environment() + "\n", *found]), encoding="utf-8")
    _say(f"wrote {work / 'tables.md'}")


if __name__ == "__main__":
    asked = parse()
    torch.set_num_threads(1)
    carry_out(asked)
    show(asked.work)
