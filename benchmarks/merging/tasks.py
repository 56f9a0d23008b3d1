"""Four tasks of plain text, and their windows of token ids."""

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.merging.settings import Experiment


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list or of JSON Lines."""
    text = path.read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text) if text.startswith("[") else list(map(json.loads, text.splitlines()))
    return found


def _answered(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]


def _articles(path: Path) -> list[str]:
    """The articles of a file of WikiText: each begins with ` = Title = ` on a line of its own."""
    parts = re.split(r"^(?= = [^=\n]+ = \n)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [part.strip() for part in parts if part.strip()]


TASKS: dict[str, Callable[[Path], list[str]]] = {
    "authors": lambda data: _answered(_rows(data / "tofu" / "retain90.json")),
    "encyclopedia": lambda data: _articles(data / "wikitext2" / "wiki.test.txt"),
    "sums": lambda data: _answered(_rows(data / "gsm8k" / "train.jsonl")),
    "thoughts": lambda data: [
        row["reasoning"] for row in _rows(data / "rain_calibration" / "reasoning_calibration_set.json")
    ],
}
"""Name → texts of the data folder: questions about invented authors, articles, word problems, long reasoning."""


@dataclass(frozen=True)
class Windows:
    """Token ids (windows, tokens) of the parts of a task; no text is in two parts."""

    training: Tensor
    choosing: Tensor
    test: Tensor


def windows(task: str, data: Path, tokenizer: Any, experiment: Experiment, seed: int) -> Windows:
    """The parts of a task for a seed. Raises ValueError where a part has no whole window."""
    texts = TASKS[task](data)
    random.Random(f"{task} {seed}").shuffle(texts)
    texts = texts[: experiment.texts]
    first, second = round(0.7 * len(texts)), round(0.8 * len(texts))
    parts = {"training": texts[:first], "choosing": texts[first:second], "test": texts[second:]}
    cut = {name: _cut(part, tokenizer, experiment.window) for name, part in parts.items()}
    for name, found in cut.items():
        if not len(found):
            raise ValueError(f"task {task!r} has no window of {experiment.window} tokens for {name}; give more text")
    return Windows(cut["training"], cut["choosing"][: experiment.choosing], cut["test"][: experiment.test])


def _cut(texts: Iterable[str], tokenizer: Any, window: int) -> Tensor:
    ids = [each for text in texts for each in tokenizer(text)["input_ids"]]
    whole = len(ids) // window
    return torch.tensor(ids[: whole * window]).reshape(whole, window)
