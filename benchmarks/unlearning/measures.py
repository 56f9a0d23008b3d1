"""What a model knows of some rows: six measures of its answers, in plain torch, apart from the package's own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.unlearning.batches import answer_logits, batch
from vecsurgery.calibration.types import Sample

_BATCH = 32
NAMES = ("capped", "token_probability", "nll", "row_probability", "accuracy")


@dataclass(frozen=True)
class Answers:
    """One value a row, in the order of the rows; NLL in nats.

    `capped`: mean over answer tokens of min(NLL, ln(vocabulary)). `token_probability`: mean probability of an answer
    token. `nll`: mean NLL. `row_probability`: exp(−nll), TOFU's answer probability. `accuracy`: share of answer tokens
    that are the most likely one.
    """

    capped: tuple[float, ...]
    token_probability: tuple[float, ...]
    nll: tuple[float, ...]
    row_probability: tuple[float, ...]
    accuracy: tuple[float, ...]

    def means(self) -> dict[str, float]:
        """The mean over rows of each measure."""
        return {name: math.fsum(getattr(self, name)) / len(getattr(self, name)) for name in NAMES}


@torch.no_grad()
def answers(model: Any, samples: Sequence[Sample]) -> Answers:
    """The measures of a model on rows, rows of like length together."""
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].ids))
    rows: dict[int, list[float]] = {}
    limit = math.log(model.config.vocab_size)
    for start in range(0, len(order), _BATCH):
        members = order[start : start + _BATCH]
        logits, targets = answer_logits(model, batch([samples[index] for index in members]))
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
        right = (logits.argmax(-1) == targets).double()
        counts = [len(samples[index].answer) for index in members]
        for index, nll, hit in zip(members, torch.split(losses, counts), torch.split(right, counts), strict=True):
            mean = nll.mean().item()
            capped, probability = nll.clamp(max=limit).mean().item(), nll.neg().exp().mean().item()
            rows[index] = [capped, probability, mean, math.exp(-mean), hit.mean().item()]
    return Answers(*zip(*(rows[index] for index in range(len(samples))), strict=True))
