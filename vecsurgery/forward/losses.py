"""Scores of single tokens under one model or several variants, by one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import InputError
from vecsurgery.progress import Progress, silent

from .batches import as_list, make_batches
from .head import scored
from .loading import Compute
from .model import StreamedModel
from .stream import walk
from .variants import Single, Some, Variants

_STATES = 1 << 29
"""Bytes of hidden states that the variants of one pass may take together."""


@dataclass(frozen=True)
class TokenScores:
    """What a model says of the scored tokens of one sample."""

    losses: Float[Tensor, " tokens"]
    """−ln p(token | tokens before it), in nats, float64."""
    hits: Bool[Tensor, " tokens"]
    """Whether it is the most probable token in its place."""


def token_losses(
    weights: Weights,
    samples: Samples | Sequence[Sample],
    *,
    positions: Sequence[Sequence[int]] | None = None,
    compute: Compute = "float32",
    stage: str = "losses",
    progress: Progress = silent,
) -> list[Float[Tensor, " tokens"]]:
    """−ln p(token t | tokens before t), in nats, for each answer token of each sample: `token_scores` of one model.

    Returns one float64 tensor a sample, in order; empty where nothing is to be scored.
    """
    scores = token_scores(
        Single(weights), samples, positions=positions, compute=compute, stage=stage, progress=progress
    )
    return [score.losses for score in scores[0]]


def token_scores(
    variants: Variants,
    samples: Samples | Sequence[Sample],
    *,
    positions: Sequence[Sequence[int]] | None = None,
    compute: Compute = "float32",
    stage: str = "losses",
    progress: Progress = silent,
) -> list[list[TokenScores]]:
    """Scores of each answer token of each sample under each variant, [variant][sample], in one streaming pass; in
    several where the hidden states of all variants would take more than 512 MB.

    The blocks are streamed, then the model's own norm, head and caps make the logits of the wanted positions alone, a
    part of the vocabulary at a time. The log-softmax is taken in float64.

    Args:
        variants: the models; every tensor that they share is read once.
        samples: token ids, with the answer positions.
        positions: for each sample, the indices of the tokens to score instead of `answer`; 1 or more each.
        compute: "float32", or "stored" for arithmetic in the configuration's type.

    Raises:
        InputError: the first token of a sample is to be scored: nothing predicts it.
    """
    rows = as_list(samples)
    wanted = [tuple(chosen) for chosen in (positions or [sample.answer for sample in rows])]
    for sample, chosen in zip(rows, wanted, strict=True):
        if chosen and min(chosen) < 1:
            raise InputError(f"{sample.where}: scoring the first token of a sample: no token before it predicts it.")
    # The token before the last wanted one is the last that predicts anything.
    fed = [sample.ids[: max(chosen, default=0)] for sample, chosen in zip(rows, wanted, strict=True)]
    batches = make_batches(fed)
    if not batches:
        return [[_nothing() for _ in rows] for _ in range(variants.count)]
    together = share_a_pass(sum(map(len, fed)), variants.layout.hidden)
    if variants.count > together:
        groups = [range(start, min(start + together, variants.count)) for start in range(0, variants.count, together)]
        return [
            scores
            for number, group in enumerate(groups, 1)
            for scores in token_scores(
                Some(variants, group),
                rows,
                positions=positions,
                compute=compute,
                stage=f"{stage}, {number} of {len(groups)}",
                progress=progress,
            )
        ]
    model = StreamedModel(variants, fed, compute=compute)
    hidden = walk(model, batches, len(model.blocks), stage=stage, progress=progress)
    places = [(each, place, number) for number, batch in enumerate(batches) for place, each in enumerate(batch.members)]
    ids = [torch.tensor([rows[member].ids[index] for index in wanted[member]]) for member, _, _ in places]
    before = [torch.tensor(wanted[member]) - 1 for member, _, _ in places]
    states = [
        torch.cat([own[number][place][at] for (_, place, number), at in zip(places, before, strict=True)])
        for own in hidden
    ]
    del hidden
    members = [member for member, _, _ in places]
    return [
        _by_sample(scores.losses, scores.hits, members, [len(part) for part in ids], len(rows))
        for scores in scored(model, states, [torch.cat(ids)] * len(states))
    ]


def share_a_pass(tokens: int, hidden: int) -> int:
    """How many variants go through one pass together when so many tokens are fed; one at least."""
    return max(1, _STATES // max(1, tokens * hidden * 4))


def _by_sample(losses: Tensor, hits: Tensor, members: list[int], sizes: list[int], count: int) -> list[TokenScores]:
    """The scores of all tokens, cut into those of each sample, in the order of the samples."""
    scores = [_nothing() for _ in range(count)]
    for member, part, hit in zip(members, torch.split(losses, sizes), torch.split(hits, sizes), strict=True):
        scores[member] = TokenScores(part, hit)
    return scores


def _nothing() -> TokenScores:
    return TokenScores(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool))
