"""Divergence of thoughts: how far an edited model's next tokens are from another model's where that one thinks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vecsurgery.calibration.types import Sample
from vecsurgery.checkpoint.types import Weights
from vecsurgery.evaluation.types import Figure
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.forward import Compute

_STATE_BYTES = 4_000_000_000
"""Of hidden states in float32 that one pass may hold. More text takes more passes."""


def think_divergences(
    reference: Weights,
    others: Sequence[Weights],
    samples: Sequence[Sample],
    *,
    after: int = 8,
    compute: Compute = "float32",
    stage: str = "comparing thoughts",
    progress: Progress = silent,
) -> list[dict[str, Figure]]:
    """`think_kl` and `answer_kl` of each other model: KL(reference ‖ other) of next-token distributions.

    `think_kl` (L_think): behind each token of the thought, both tags included. `answer_kl`: the distributions of the
    first `after` tokens behind the closing tag, so its first is that behind the tag's last token; left out where
    `after` is 0 or no row has an answer. The mean over rows of the row's mean; each row keeps its number of tokens.

    Args:
        reference: the model whose thoughts are to stay; `others`: the models compared with it.
        samples: reasoning rows in the reference's tokens, with the thought as `positions` (`calibration.thoughts`).

    Raises what `forward.token_divergences` raises. Source: RAIN-Merging, arXiv 2602.22538.

    Example:

        rows = asking_rows(spec)
        samples = thoughts(rows, spec, load_tokenizer(folder), ("<think>", "</think>"))
        think_divergences(Stored(folder), [edited], samples)[0]["think_kl"].value
    """
    from vecsurgery.forward import token_divergences

    behind = [_behind(sample, after) for sample in samples]
    wanted = [(*sample.positions, *more[1:]) for sample, more in zip(samples, behind, strict=True)]
    found: list[list[Tensor]] = [[] for _ in others]
    for group in _groups(samples, wanted, [reference, *others]):
        some = token_divergences(
            reference,
            others,
            [samples[index] for index in group],
            positions=[wanted[index] for index in group],
            compute=compute,
            stage=stage,
            progress=progress,
        )
        for own, more in zip(found, some, strict=True):
            own += more
    return [_figures(samples, behind, own) for own in found]


def _behind(sample: Sample, after: int) -> tuple[int, ...]:
    """Positions behind which the first tokens after the closing tag are predicted, as many as the sample has."""
    last = sample.positions[-1]
    return tuple(range(last, min(last + after, len(sample.ids) - 1)))


def _groups(samples: Sequence[Sample], wanted: Sequence[Sequence[int]], models: Sequence[Weights]) -> list[list[int]]:
    """Numbers of samples for one pass each: as many as have 4 GB of hidden states together, one at least."""
    room = _STATE_BYTES // (4 * (len(models) + 1) * max(model.layout.hidden for model in models))
    groups: list[list[int]] = [[]]
    used = 0
    for index in range(len(samples)):
        length = max(wanted[index]) + 1
        if groups[-1] and used + length > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += length
    return groups


def _figures(samples: Sequence[Sample], behind: Sequence[Sequence[int]], found: Sequence[Tensor]) -> dict[str, Figure]:
    thinking, answering = {}, {}
    for index, (sample, more, own) in enumerate(zip(samples, behind, found, strict=True)):
        count = len(sample.positions)
        thinking[str(index)] = _entry(own[:count])
        if more:
            answering[str(index)] = _entry(own[count - 1 : count - 1 + len(more)])
    figures = {"think_kl": _mean(thinking)}
    return figures | ({"answer_kl": _mean(answering)} if answering else {})


def _entry(values: Tensor) -> dict[str, Any]:
    return {"score": float(values.mean()), "tokens": len(values)}


def _mean(entries: Mapping[str, Mapping[str, Any]]) -> Figure:
    return Figure(math.fsum(entry["score"] for entry in entries.values()) / len(entries), entries)
