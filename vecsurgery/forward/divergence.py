"""How far next-token distributions of models lie apart: Kullback–Leibler divergences at single tokens, by streaming."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vecsurgery.calibration.types import Sample
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import InputError
from vecsurgery.progress import Progress, silent

from .batches import make_batches
from .head import CHUNK
from .loading import Compute
from .model import StreamedModel
from .stream import walk
from .variants import Single


def token_divergences(
    reference: Weights,
    others: Sequence[Weights],
    samples: Sequence[Sample],
    *,
    positions: Sequence[Sequence[int]] | None = None,
    compute: Compute = "float32",
    stage: str = "comparing",
    progress: Progress = silent,
) -> list[list[Float[Tensor, " positions"]]]:
    """KL(p ‖ q) = Σ_i p_i (ln p_i − ln q_i) of next-token distributions, in nats; float64, [other][sample].

    p is what `reference` says of the token behind a position, q what the other model says there. Every model is
    streamed once with its own configuration, so that models of different layouts can be compared; the states at the
    positions are kept, and then the heads of all models are read a run of rows at a time. The sums grow with the runs:
    with a and b the logits, A and B their log-sum-exps, KL = E_p[a − b] − A + B. Products are float32, sums float64;
    logits of all positions and ids never stand in memory together.

    Models must read the same tokens in the same ids. Where one has more rows in its head (padding), distributions are
    over the ids that all of them have.

    Args:
        reference: the model that p is of.
        others: the models that q is of, one or more.
        samples: token ids; `positions` of each where nothing else is given.
        positions: for each sample, indices of tokens behind which distributions are compared.
        compute: "float32", or "stored" for arithmetic in each configuration's type.

    Raises:
        InputError: logits that are not finite, an id that a model has no row for.
        UnsupportedError: an architecture that does not replay exactly.
    """
    wanted = [tuple(chosen) for chosen in (positions or [sample.positions for sample in samples])]
    weights = [reference, *others]
    states, models = [], []
    for number, each in enumerate(weights, 1):
        told = f"{stage}, model {number} of {len(weights)}"
        model = StreamedModel(Single(each), _fed(samples, wanted), compute=compute)
        states.append(_states(model, samples, wanted, told, progress))
        models.append(model)
    found = _divergences(models, states)
    sizes = [len(chosen) for chosen in wanted]
    split = [list(torch.split(own, sizes)) for own in found]
    for own in split:
        for sample, part in zip(samples, own, strict=True):
            if not bool(part.isfinite().all()):
                raise InputError(f"{sample.where}: comparing next-token distributions: logits are not finite there")
    return split


def _fed(samples: Sequence[Sample], wanted: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """What is fed of each sample: up to its last position, nothing where it has none."""
    return [sample.ids[: max(chosen, default=-1) + 1] for sample, chosen in zip(samples, wanted, strict=True)]


def _states(
    model: StreamedModel, samples: Sequence[Sample], wanted: Sequence[Sequence[int]], stage: str, progress: Progress
) -> Float[Tensor, "n hidden"]:
    """States behind the last block at the wanted positions, in the order of the samples."""
    batches = make_batches(_fed(samples, wanted))
    if not batches:
        return torch.zeros(0, 1)
    hidden = walk(model, batches, len(model.blocks), stage=stage, progress=progress)[0]
    found: dict[int, Tensor] = {}
    for number, batch in enumerate(batches):
        for place, member in enumerate(batch.members):
            found[member] = hidden[number][place][torch.tensor(wanted[member])]
    return torch.cat([found[member] for member in sorted(found)])


def _divergences(
    models: Sequence[StreamedModel], states: Sequence[Float[Tensor, "n hidden"]]
) -> list[Float[Tensor, " n"]]:
    """KL of each model but the first from the first, at each state."""
    first, *rest = models
    count = len(states[0])
    sums = [_Sums(count) for _ in rest]
    chunk = min(CHUNK, *(model.context or CHUNK for model in models))
    for start, stop in _runs(models) if count else ():
        for model in models:
            model.read_head(start, stop)(0)
        for begin in range(0, count, chunk):
            chosen = slice(begin, begin + chunk)
            own = first.logits(states[0][chosen])[:, : stop - start].double()
            for model, state, total in zip(rest, states[1:], sums, strict=True):
                total.add(chosen, own, model.logits(state[chosen])[:, : stop - start].double())
    return [total.divergence for total in sums]


def _runs(models: Sequence[StreamedModel]) -> list[tuple[int, int]]:
    """The ids that all heads have, in runs: the shortest of any model's, one where some head cannot be read by rows."""
    runs = [list(model.head_rows()) for model in models]
    shared = min(own[-1][1] for own in runs)
    if not all(model.reads_head_by_rows for model in models):
        return [(0, shared)]
    return [(start, min(stop, shared)) for start, stop in max(runs, key=len) if start < shared]


class _Sums:
    """Of each position: both log-sum-exps so far, and the mean of a − b under p restricted to the ids so far."""

    def __init__(self, count: int) -> None:
        self._own = torch.full((count,), -torch.inf, dtype=torch.float64)
        self._other = torch.full((count,), -torch.inf, dtype=torch.float64)
        self._gap = torch.zeros(count, dtype=torch.float64)

    def add(self, chosen: slice, own: Float[Tensor, "some ids"], other: Float[Tensor, "some ids"]) -> None:
        """Take in the logits of further ids at the chosen positions."""
        part = own.logsumexp(-1)
        total = torch.logaddexp(self._own[chosen], part)
        gap = (torch.exp(own - part.unsqueeze(-1)) * (own - other)).sum(-1)
        known = self._gap[chosen] * torch.exp(self._own[chosen] - total)
        self._gap[chosen] = known + gap * torch.exp(part - total)
        self._own[chosen] = total
        self._other[chosen] = torch.logaddexp(self._other[chosen], other.logsumexp(-1))

    @property
    def divergence(self) -> Float[Tensor, " n"]:
        """KL in nats; rounding below 0 is cut off."""
        return (self._gap - self._own + self._other).clamp(min=0.0)
