"""Losses of single tokens under any Weights, by one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import InputError
from vecsurgery.progress import Progress, silent

from .batches import as_list, make_batches
from .loading import Compute
from .model import StreamedModel
from .stream import walk

_CHUNK = 64
"""Positions whose logits stand in memory at once: 64 × 256,000 in float64 are 131 MB."""


def token_losses(
    weights: Weights,
    samples: Samples | Sequence[Sample],
    *,
    positions: Sequence[Sequence[int]] | None = None,
    compute: Compute = "float32",
    stage: str = "losses",
    progress: Progress = silent,
) -> list[Float[Tensor, " tokens"]]:
    """−ln p(token t | tokens before t), in nats, for each answer token of each sample.

    The blocks are streamed, then the model's own norm, head and caps make the logits of the wanted positions alone.
    The log-softmax is taken in float64.

    Args:
        weights: any weights.
        samples: token ids, with the answer positions.
        positions: for each sample, the indices of the tokens to score instead of `answer`; 1 or more each.
        compute: "float32", or "stored" for arithmetic in the configuration's type.

    Returns:
        One float64 tensor a sample, in order; empty where nothing is to be scored.

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
    losses = [torch.zeros(0, dtype=torch.float64) for _ in rows]
    batches = make_batches(fed)
    if not batches:
        return losses
    model = StreamedModel(weights, fed, compute=compute)
    hidden = walk(model, batches, len(model.blocks), stage=stage, progress=progress)
    for batch, states in zip(batches, hidden, strict=True):
        for place, member in enumerate(batch.members):
            targets = torch.tensor(wanted[member])
            ids = torch.tensor(rows[member].ids)[targets]
            losses[member] = _losses(model, states[place][targets - 1], ids)
    return losses


def _losses(model: StreamedModel, hidden: Float[Tensor, "tokens hidden"], ids: Tensor) -> Float[Tensor, " tokens"]:
    chunks = []
    for states, chosen in zip(torch.split(hidden, _CHUNK), torch.split(ids, _CHUNK), strict=True):
        logits = model.logits(states).double()
        chunks.append(logits.logsumexp(-1) - logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
    return torch.cat(chunks)
