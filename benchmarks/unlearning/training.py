"""Fine-tuning in plain torch: one loop for the original, the reference, the unlearners, the baseline and relearning."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.unlearning.batches import Batch, answer_nll
from benchmarks.unlearning.settings import Training

Loss = Callable[[], Tensor]


def load(folder: Path) -> Any:
    """A model in float32, whatever it is stored in. It generates to the length that is asked for: no end is trained."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def steps_of(training: Training, rows: int) -> int:
    """Optimiser steps of a training on this many rows."""
    return training.steps or training.epochs * -(-rows // training.batch)


def train(
    model: Any,
    loss: Loss,
    training: Training,
    steps: int,
    *,
    weights: Sequence[Tensor] | None = None,
    after: Callable[[int, float], None] | None = None,
) -> None:
    """Take optimiser steps on `loss()`, in place; `weights`: those that train (all). `after`: told step and loss."""
    trained = list(model.parameters() if weights is None else weights)
    optimiser = torch.optim.AdamW(trained, lr=training.rate, betas=(0.9, 0.95), weight_decay=training.decay)
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = training.rate * schedule(training, step, steps)
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if after is not None:
            after(step + 1, float(value.detach()))
    model.eval()


def schedule(training: Training, step: int, steps: int) -> float:
    """Factor of the rate, in (0, 1]."""
    warm_up = max(1, round(training.warm_up * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    if training.constant:
        return 1.0
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def on_answers(model: Any, batches: Iterator[Batch]) -> Loss:
    """The mean answer NLL of the next batch."""
    return lambda: answer_nll(model, next(batches)).mean()
