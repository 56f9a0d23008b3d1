"""Rows as padded batches of token ids with the places of their answers, and the losses of a model on them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vecsurgery.calibration import load_tokenizer, prepare
from vecsurgery.calibration.types import Sample
from vecsurgery.recipe.types import DataSpec

_POOL = 16
"""Batches that are sorted by length together: little padding, and still another order every epoch."""


@dataclass(frozen=True)
class Batch:
    """`ids` (rows, length), padded on the right; `answer`: of the same shape, true at answer tokens.

    Causal attention and padding that stands last need no mask: what is padded is predicted by nothing that counts.
    """

    ids: Tensor
    answer: Tensor

    @property
    def tokens(self) -> int:
        return self.ids.numel()


@cache
def encode(path: Path, tokenizer_folder: Path, context: int) -> tuple[Sample, ...]:
    """The rows of a file as the package itself renders and tokenizes them: BOS, `Question: …\\nAnswer: …`, no end."""
    spec = DataSpec((path,), template="none")
    return prepare(spec, load_tokenizer(tokenizer_folder), context=context).samples


def batch(samples: Sequence[Sample]) -> Batch:
    """One padded batch."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.int64)
    answer = torch.zeros(len(samples), length, dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        answer[row, list(sample.answer)] = True
    return Batch(ids, answer)


def endless(samples: Sequence[Sample], size: int, seed: str) -> Iterator[Batch]:
    """Epoch after epoch in seeded order; rows of like length stand together."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7]))
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        for start in range(0, len(order), size * _POOL):
            pool = sorted(order[start : start + size * _POOL], key=lambda index: len(samples[index].ids))
            groups = [pool[first : first + size] for first in range(0, len(pool), size)]
            for group in torch.randperm(len(groups), generator=generator).tolist():
                yield batch([samples[index] for index in groups[group]])


def answer_logits(model: Any, given: Batch) -> tuple[Tensor, Tensor]:
    """Logits (answer tokens, vocabulary) that predict the answer tokens, row after row, and these tokens' ids.

    Only the wanted positions go through the head, which is more than half of a small model's arithmetic.
    """
    hidden = model.model(input_ids=given.ids, use_cache=False).last_hidden_state
    wanted = given.answer[:, 1:]
    return model.lm_head(hidden[:, :-1][wanted]), given.ids[:, 1:][wanted]


def answer_nll(model: Any, given: Batch) -> Tensor:
    """NLL of each answer token (tokens,), in nats, row after row."""
    logits, targets = answer_logits(model, given)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
