"""Tasks of lm-eval (the language model evaluation harness): an extra, imported when tasks are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from sys import stderr
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import InputError
from vecsurgery.evaluation.extras import require
from vecsurgery.evaluation.generation import loaded
from vecsurgery.evaluation.types import Figure, Measured

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from vecsurgery.forward import Compute

_PURPOSE = "measuring tasks of lm-eval"


@dataclass(frozen=True)
class Tasks:
    """Tasks of lm-eval. `folder`: of further tasks (YAML files); `limit`: documents of each at most.

    `longest`: most tokens of a generation of a model that thinks; `closing`: the tag that ends its thought; `seed`: of
    few-shot examples and draws.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    longest: int = 4096
    closing: str = "</think>"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What determines the figures beside the model."""
        folder = str(self.folder) if self.folder is not None else None
        own = {"names": list(self.names), "folder": folder, "limit": self.limit, "longest": self.longest}
        return own | {"closing": self.closing, "seed": self.seed, "lm_eval": version("lm_eval")}


def require_tasks(tasks: Tasks) -> None:
    """Look for the package and the tasks. Raises InputError where one is missing."""
    if tasks.folder is not None and not tasks.folder.is_dir():
        raise InputError(f"{_PURPOSE}: there is no folder {tasks.folder}")
    known = _manager(tasks).all_tasks
    for name in tasks.names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "; name a folder that has it: --task-folder"
            raise InputError(f"{_PURPOSE}: there is no task {name!r}{meant}")


def measure_tasks(
    folder: Path, tokenizer: PreTrainedTokenizerFast, tasks: Tasks, *, compute: Compute = "float32"
) -> dict[str, Measured]:
    """Task → its metrics, by lm-eval's own evaluator on a model that is loaded as for every generation.

    The chat template is applied where the tokenizer has one. Where it has the closing tag as one token, lm-eval's
    `think_end_token` is that token: what is generated up to it is no part of the answer, and up to `longest` tokens (at
    most half of the context) may be generated. The data of a task come from where it says, the network included.

    Raises InputError where lm-eval is missing or a task cannot be loaded.
    """
    harness = require("lm_eval", "lm_eval", _PURPOSE, "lm-eval")
    models = require("lm_eval.models.huggingface", "lm_eval", _PURPOSE, "lm-eval")
    thinks = tokenizer.get_vocab().get(tasks.closing)
    wrapped = models.HFLM(
        pretrained=loaded(folder, compute), tokenizer=tokenizer, backend="causal", think_end_token=thinks
    )
    longest = max(1, min(tasks.longest, wrapped.max_length // 2))
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        with redirect_stdout(stderr):
            found = harness.simple_evaluate(
                model=wrapped,
                tasks=list(tasks.names),
                task_manager=_manager(tasks),
                limit=tasks.limit,
                apply_chat_template=bool(tokenizer.chat_template),
                gen_kwargs={"max_gen_toks": longest} if thinks is not None else None,
                bootstrap_iters=0,
                log_samples=False,
                **dict.fromkeys(seeds, tasks.seed),
            )
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{_PURPOSE} {', '.join(tasks.names)} on {folder}: {error}") from error
    counts = found.get("n-samples", {})
    return {
        name: Measured(_figures(metrics), rows=int(counts.get(name, {}).get("effective", 0)))
        for name, metrics in found["results"].items()
    }


def _figures(metrics: Mapping[str, Any]) -> dict[str, Figure]:
    """The numbers of a task, without errors of the mean: "acc,none" is acc, "exact_match,strict" keeps its filter."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float) and "," in name}
    return {
        name.removesuffix(",none"): Figure(float(value))
        for name, value in numbers.items()
        if not name.partition(",")[0].endswith("_stderr")
    }


def _manager(tasks: Tasks) -> Any:
    """What finds tasks: in the folder alone where it has all of them, as reading lm-eval's own takes half a minute."""
    library = require("lm_eval.tasks", "lm_eval", _PURPOSE, "lm-eval")
    if tasks.folder is not None:
        own = library.TaskManager(include_path=str(tasks.folder), include_defaults=False)
        if set(tasks.names) <= set(own.all_tasks):
            return own
    return _every_task(tasks.folder)


@cache
def _every_task(folder: Path | None) -> Any:
    library = require("lm_eval.tasks", "lm_eval", _PURPOSE, "lm-eval")
    return library.TaskManager(include_path=str(folder) if folder is not None else None)


def task_names(given: Sequence[str]) -> tuple[str, ...]:
    """Names of tasks, each alone or several with commas between. Raises InputError where one is empty or repeated."""
    names = [name.strip() for text in given for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"{_PURPOSE}: expected different names, as in gsm8k,ifeval; got {', '.join(given)!r}")
    return tuple(names)
