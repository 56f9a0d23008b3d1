"""Training of the demos' models: functions of their arguments alone.

Seeded local generators, a fixed number of threads, deterministic kernels: the same bytes each time.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vecsurgery.demo.tokens import PAD, SPECIAL_TOKENS, Encoded
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Course:
    """One training run: Adam with a linear warm-up and a cosine decay to a tenth of `rate`.

    `batch`: rows a step; `warm_up`: steps; `other_weight`: of a token outside an answer in the loss, in [0, 1].
    """

    steps: int
    batch: int
    rate: float
    warm_up: int
    other_weight: float

    def schedule(self, step: int) -> float:
        """Factor of the learning rate, in (0, 1]."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        share = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * share))


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Within: `threads` threads and deterministic kernels only; afterwards everything is as it was."""
    threads_before, strict_before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict_before)
        torch.set_num_threads(threads_before)


def train(
    model: "PreTrainedModel",
    rows: Sequence[Encoded],
    course: Course,
    *,
    seed: int,
    stage: str,
    progress: Progress = silent,
) -> None:
    """Train every weight of `model` in place on `rows`; answers weigh more. `stage`: what progress calls it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=course.rate, betas=_BETAS)
    drawn = batches(rows, course.batch, seed)
    model.train()
    for number in range(course.steps):
        for group in optimizer.param_groups:
            group["lr"] = course.rate * course.schedule(number)
        step(model, optimizer, next(drawn), other_weight=course.other_weight)
        progress(stage, number + 1, course.steps, "steps")
    model.eval()


def batches(rows: Sequence[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches of exactly `size` rows: epoch after epoch, each in its own seeded order."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting.extend(torch.randperm(len(rows), generator=generator).tolist())
        yield [rows[index] for index in waiting[:size]]
        del waiting[:size]


def step(
    model: "PreTrainedModel",
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Encoded],
    *,
    other_weight: float,
    sign: float = 1.0,
) -> None:
    """One optimiser step on sign · weighted mean NLL, gradient norm clipped to 1; tokens outside answers weigh
    `other_weight`.
    """
    ids, weights = _padded(batch, other_weight)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(sign * loss)
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()


def _padded(batch: Sequence[Encoded], other_weight: float) -> tuple[Tensor, Tensor]:
    """Ids and loss weights (rows, longest), right-padded: 1 at answer tokens, `other_weight` at the row's other ones.

    No attention mask is needed: attention is causal, the padding stands last and weighs nothing.
    """
    longest = max(len(row.ids) for row in batch)
    ids = torch.full((len(batch), longest), SPECIAL_TOKENS.index(PAD))
    weights = torch.zeros(len(batch), longest)
    for number, row in enumerate(batch):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        weights[number, : len(row.ids)] = other_weight
        weights[number, list(row.answer)] = 1.0
    return ids, weights
