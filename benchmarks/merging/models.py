"""The single fine-tunes of a seed, and the loss of any state of the model."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._checkpoints import save_as
from benchmarks.unlearning.settings import Training
from benchmarks.unlearning.training import load, train

_BATCH = 16


def fine_tune(model: Path, windows: Tensor, training: Training, seed: int, out: Path) -> None:
    """The model after training on windows, as a folder in float32; it gets its name when it is complete."""
    if out.exists():
        return
    tuned = load(model)
    batches = _endless(windows, training.batch, seed)
    train(tuned, lambda: nll(tuned, next(batches)), training, training.steps)
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_as(tuned, model, unfinished, "float32")
    unfinished.rename(out)


def _endless(windows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Epoch after epoch in seeded order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(windows), generator=generator).split(size):
            yield windows[chosen]


def nll(model: Any, ids: Tensor) -> Tensor:
    """Mean NLL of a batch's tokens but each window's first, in nats."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


class Judge:
    """Loads states of one model in turn and measures them on every task's windows."""

    def __init__(self, model: Path, windows: Mapping[str, Tensor]) -> None:
        self._model = load(model)
        self._windows = windows

    def losses(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Task → mean NLL in nats a token. Raises RuntimeError where a tensor of the state has no place."""
        missing, unexpected = self._model.load_state_dict(state, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise RuntimeError(f"loading a merged state: missing {missing}, unexpected {unexpected}")
        self._model.tie_weights()
        with torch.no_grad():
            return {
                task: sum(float(nll(self._model, part)) * len(part) for part in ids.split(_BATCH)) / len(ids)
                for task, ids in self._windows.items()
            }
