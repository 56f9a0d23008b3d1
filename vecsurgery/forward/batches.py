"""Token sequences → batches of one length each: no padding, so no mask can go wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from vecsurgery.calibration.types import Sample, Samples

_BATCH_TOKENS = 2048
"""Enough rows for matrix products at full speed, few enough that a block's inner activations stay small."""


@dataclass(frozen=True)
class Batch:
    """Some sequences of equal length."""

    members: tuple[int, ...]
    """Indices of the sequences in the list they came from."""
    ids: Int[Tensor, "batch length"]


def as_list(samples: Samples | Sequence[Sample]) -> Sequence[Sample]:
    """The samples themselves."""
    return samples.samples if isinstance(samples, Samples) else samples


def make_batches(sequences: Sequence[Sequence[int]]) -> list[Batch]:
    """Batches of at most 2048 tokens (one sequence at least), shortest first, in the given order within a length.

    Empty sequences are in no batch. Sequences of different lengths are never padded to one: a batch then needs no mask
    beside the model's own, and every figure is that of the model's own forward on the sequence alone.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, sequence in enumerate(sequences):
        by_length[len(sequence)].append(index)
    batches = []
    for length in sorted(by_length.keys() - {0}):
        members, step = by_length[length], max(1, _BATCH_TOKENS // length)
        for start in range(0, len(members), step):
            chosen = tuple(members[start : start + step])
            batches.append(Batch(chosen, torch.tensor([list(sequences[index]) for index in chosen])))
    return batches
