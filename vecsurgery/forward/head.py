"""From states behind the last block to scores of token ids: the head a run of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .model import StreamedModel

CHUNK = 64
"""Positions whose logits stand in memory at once: 64 × 256,000 in float64 are 131 MB."""


def scored(
    model: StreamedModel, states: Sequence[Float[Tensor, "n hidden"]], targets: Sequence[Int[Tensor, " n"]]
) -> list[Scores]:
    """Scores of every variant from its states behind the last block and the ids that are looked for there.

    The head is read a run of rows at a time; what is known of each position grows with it.
    """
    found = [Scores(own) for own in targets]
    # A model with a table of positions takes no more of them at once.
    chunk = min(CHUNK, model.context or CHUNK)
    for start, stop in model.head_rows():
        place = model.read_head(start, stop)
        for variant, own in enumerate(states):
            if not len(own):
                continue
            model.select(variant)
            place(variant)
            for first in range(0, len(own), chunk):
                chosen = slice(first, first + chunk)
                found[variant].add(chosen, start, model.logits(own[chosen]).double())
    return found


class Scores:
    """Of each position: the log of the summed exponentials so far, the wanted token's logit, the largest and its id."""

    def __init__(self, targets: Int[Tensor, " n"]) -> None:
        self._targets = targets
        self.normaliser = torch.full((len(targets),), -torch.inf, dtype=torch.float64)
        self.target = torch.full((len(targets),), torch.nan, dtype=torch.float64)
        self.largest = torch.full((len(targets),), -torch.inf, dtype=torch.float64)
        self.best = torch.zeros(len(targets), dtype=torch.int64)

    @property
    def losses(self) -> Float[Tensor, " n"]:
        """−ln p(target), in nats."""
        return self.normaliser - self.target

    @property
    def hits(self) -> Bool[Tensor, " n"]:
        """Whether the target is the most probable id."""
        return self.best == self._targets

    @property
    def missed(self) -> Float[Tensor, " n"]:
        """ln p(best) − ln p(target), in nats: 0 where the target is the most probable id."""
        return self.largest - self.target

    def add(self, chosen: slice, start: int, logits: Float[Tensor, "some ids"]) -> None:
        """Take in the logits of the ids from `start` at the chosen positions."""
        self.normaliser[chosen] = torch.logaddexp(self.normaliser[chosen], logits.logsumexp(-1))
        own = self._targets[chosen] - start
        inside = (own >= 0) & (own < logits.shape[-1])
        picked = logits.gather(-1, own.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
        self.target[chosen] = torch.where(inside, picked, self.target[chosen])
        largest, best = logits.max(-1)
        better = largest > self.largest[chosen]
        self.largest[chosen] = torch.where(better, largest, self.largest[chosen])
        self.best[chosen] = torch.where(better, best + start, self.best[chosen])
