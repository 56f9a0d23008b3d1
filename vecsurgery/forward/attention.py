"""How much attention chosen queries pay to chosen keys, head by head, by one streaming pass without any T × T tensor.

The model itself computes what it attends to; this listens to the queries and keys that it hands to its attention
function, rotary embedding included, and takes the softmax of the wanted rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vecsurgery.checkpoint.types import Layout, Weights
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.progress import Progress, silent

from .batches import Batch, make_batches
from .loading import Compute
from .model import StreamedModel
from .stream import walk
from .variants import Single

_NAME = "vecsurgery_listening"
"""Under which transformers knows the attention function that listens."""
_SCORES = 1 << 24
"""Attention scores that are held at once, over all heads."""
_CAPS = ("softcap", "s_aux")
"""What an attention function is told of soft-capped scores and of sinks, which change the softmax."""


@dataclass(frozen=True)
class Attended:
    """What is asked about one sample. `ids`: token ids; `queries`: groups of positions whose attention is summed;
    `keys`: positions that it is paid to. Ascending indices into `ids`.
    """

    ids: tuple[int, ...]
    queries: tuple[tuple[int, ...], ...]
    keys: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last query; −1 where there is none."""
        return max((max(group, default=-1) for group in self.queries), default=-1)


@dataclass(frozen=True)
class _Heard:
    """One call of an attention function."""

    query: Float[Tensor, "batch heads length head_dim"]
    key: Float[Tensor, "batch shared length head_dim"]
    mask: Tensor | None
    scaling: float


_Listener = Callable[[Any, _Heard], None]
_LISTENER: ContextVar[_Listener | None] = ContextVar("attention listener", default=None)


def attention_mass(
    weights: Weights,
    asked: Sequence[Attended],
    *,
    compute: Compute = "float32",
    stage: str = "attention",
    progress: Progress = silent,
) -> Float[Tensor, "samples groups layers heads"]:
    """Σ_{t ∈ group} Σ_{τ ∈ keys} Att[t, τ] for each sample, group of queries, layer and query head, in float64.

    Att[t, ·] = softmax(q_t kᵀ · scale) over the keys that the model's own mask lets t attend to, in float32, from the
    very queries and keys that the model attends with. Rows of wanted queries alone are formed. All samples have equally
    many groups; an empty group sums to 0. One pass over the blocks, up to the last query of each sample.

    Raises:
        InputError: attention that is not finite.
        UnsupportedError: a model whose attention cannot be listened to: layers that do not attend through transformers'
            registry, soft-capped scores, sinks, no softmax attention at all.
    """
    groups = len(asked[0].queries) if asked else 0
    fed = [each.ids[: each.last + 1] for each in asked]
    heads = _heads(weights)
    found = torch.zeros(len(asked), groups, weights.layout.blocks, heads, dtype=torch.float64)
    if not any(fed):
        return found
    model = StreamedModel(Single(weights), fed, compute=compute)
    _listen(model)
    batches = make_batches(fed)
    heard: list[int] = []

    @contextmanager
    def watch(block: int, number: int) -> Iterator[None]:
        calls: list[_Heard] = []
        token = _LISTENER.set(lambda module, call: calls.append(_checked(module, call, block)))
        try:
            yield
        finally:
            _LISTENER.reset(token)
        if len(calls) != 1:
            raise UnsupportedError(
                f"listening to the attention of block {block} of {weights.layout.architecture!r}: it attended "
                f"{len(calls)} times through transformers' attention registry, expected once. Statistics of attention "
                "are not to be had from this architecture."
            )
        _sum(found, batches[number], asked, block, calls[0])
        heard.append(block)

    walk(model, batches, len(model.blocks), watch=watch, stage=stage, progress=progress)
    if not bool(found.isfinite().all()):
        sample = int((~found.isfinite()).any(dim=(1, 2, 3)).nonzero()[0])
        raise InputError(f"listening to attention: that of sample {sample} is not finite (NaN or infinity).")
    return found


def require_heard(weights: Weights) -> None:
    """Refuse a model whose attention cannot be listened to, without reading its weights: zeros stand in for them.

    Raises: UnsupportedError as `attention_mass`.
    """
    attention_mass(_Zeros(weights), [Attended((0, 0, 0), ((1, 2),), (1,))])


@dataclass(frozen=True)
class _Zeros:
    """Weights of the same layout that are all zero and take no memory."""

    weights: Weights

    @property
    def layout(self) -> Layout:
        return self.weights.layout

    @property
    def config(self) -> Any:
        return self.weights.config

    @property
    def fingerprint(self) -> str:
        return "zeros"

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        info = self.layout.tensors[tensor]
        zeros = torch.zeros((), dtype=getattr(torch, info.dtype)).expand(info.shape)
        return zeros if rows is None else zeros[rows]


def _heads(weights: Weights) -> int:
    """Query heads of every layer. Raises UnsupportedError where the configuration gives no single number."""
    heads = getattr(weights.config.get_text_config(decoder=True), "num_attention_heads", None)
    if not isinstance(heads, int):
        raise UnsupportedError(
            f"listening to the attention of {weights.layout.architecture!r}: its configuration gives no number of "
            "attention heads for all layers."
        )
    return heads


def _listen(model: StreamedModel) -> None:
    """Make the model attend through the function that listens. Raises UnsupportedError where it does not allow that."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    try:
        model.attend_by(_NAME)
    except (ValueError, AttributeError) as fault:
        raise UnsupportedError(
            f"listening to the attention of {model.architecture!r}: transformers refuses another attention function "
            f"for it ({fault})."
        ) from fault


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """transformers' own fused attention, whose arguments a listener may hear first."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    for name in _CAPS:
        if kwargs.get(name) is not None:
            raise UnsupportedError(
                f"listening to the attention of {type(module).__name__}: it has {name}, with which its attention is no "
                "plain softmax; statistics of attention are not to be had from this architecture."
            )
    listener = _LISTENER.get()
    if listener is not None:
        scaling = kwargs.get("scaling")
        scaling = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else float(scaling)
        listener(module, _Heard(query, key, attention_mask, scaling))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _checked(module: Any, heard: _Heard, block: int) -> _Heard:
    if not getattr(module, "is_causal", True):
        raise UnsupportedError(f"listening to the attention of block {block}: {type(module).__name__} is not causal.")
    return heard


def _sum(found: Tensor, batch: Batch, asked: Sequence[Attended], block: int, heard: _Heard) -> None:
    """Add what one block pays in one batch."""
    heads = heard.query.shape[1]
    if heads != found.shape[3]:
        raise UnsupportedError(
            f"listening to the attention of block {block}: it has {heads} query heads, expected {found.shape[3]} in "
            "every layer."
        )
    for place, member in enumerate(batch.members):
        request = asked[member]
        mask = None if heard.mask is None else heard.mask[min(place, len(heard.mask) - 1)]
        for group, queries in enumerate(request.queries):
            for rows in _runs(queries, heads * heard.key.shape[2]):
                paid = _paid(heard.query[place], heard.key[place], mask, heard.scaling, rows, request.keys)
                found[member, group, block] += paid


def _runs(queries: Sequence[int], scores: int) -> Iterator[Tensor]:
    """The queries in runs whose scores are few enough to be held."""
    step = max(1, _SCORES // max(1, scores))
    for start in range(0, len(queries), step):
        yield torch.tensor(queries[start : start + step])


def _paid(
    query: Float[Tensor, "heads length head_dim"],
    key: Float[Tensor, "shared length head_dim"],
    mask: Tensor | None,
    scaling: float,
    rows: Tensor,
    keys: Sequence[int],
) -> Float[Tensor, " heads"]:
    """Σ over these queries of the probability on `keys`, for each query head: head h reads keys of head h // (H/KV)."""
    reach = int(rows.max()) + 1
    shared = key.shape[0]
    chosen = query.index_select(1, rows).float() * scaling
    grouped = chosen.reshape(shared, -1, chosen.shape[-1])  # heads of one group stand together
    scores = grouped @ key[:, :reach].float().transpose(1, 2)
    scores = scores.reshape(query.shape[0], len(rows), reach)
    scores += _bias(mask, rows, reach)
    total = scores.logsumexp(dim=-1, keepdim=True)
    columns = torch.tensor([place for place in keys if place < reach], dtype=torch.int64)
    return (scores.index_select(-1, columns) - total).exp().double().sum(dim=(1, 2))


def _bias(mask: Tensor | None, rows: Tensor, reach: int) -> Tensor:
    """What is added to the scores of these queries: 0 where they may attend, −∞ or the model's penalty elsewhere."""
    future = torch.arange(reach) > rows[:, None]
    if mask is None:
        return torch.zeros(future.shape).masked_fill_(future, -math.inf)
    own = mask.index_select(-2, rows)[..., :reach]
    if own.dtype == torch.bool:
        return torch.zeros(own.shape).masked_fill_(~own, -math.inf)
    return own.float()
