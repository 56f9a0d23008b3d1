"""Layer streaming: all samples through a model that is never in memory, one block at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.checkpoint import skeleton
from vecsurgery.checkpoint.types import Site, Weights
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.progress import Progress, silent

from .batches import Batch, as_list, make_batches
from .loading import Compute, Parts
from .model import StreamedModel
from .variants import Single

Watch = Callable[[int, int], AbstractContextManager[None]]
"""Called with (block, batch) before a batch enters a block; open while it is inside."""


def _watch_nothing(_block: int, _batch: int) -> AbstractContextManager[None]:
    return nullcontext()


def _finish_nothing(_block: int) -> None:
    return None


def walk(
    model: StreamedModel,
    batches: Sequence[Batch],
    count: int,
    *,
    watch: Watch = _watch_nothing,
    finished: Callable[[int], None] = _finish_nothing,
    stage: str = "forward",
    progress: Progress = silent,
) -> list[list[Tensor]]:
    """Take every batch through the first `count` blocks of every variant; [variant][batch] → the hidden states (batch,
    length, hidden) behind them.

    Each block is read once, and freed before the one after the next is read; where there is one variant, the next is
    read while one computes. Variants are run as one up to the first block in which they differ. The first blocks are
    run both ways on a short text first (`StreamedModel.check`). `finished(block)` is called when every batch has passed
    a block.
    """
    hidden: list[list[Tensor]] = []
    calls: list[list[list[skeleton.Call]]] = []
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-block") as reader:
        ahead: Future[Parts] | None = reader.submit(model.read_block, 0)
        for index in range(count):
            parts = ahead.result() if ahead is not None else model.read_block(index)
            # Variants hold several versions of a block: reading ahead would hold those of two.
            ahead = reader.submit(model.read_block, index + 1) if index + 1 < count and model.count == 1 else None
            if index == 0:
                _check(model, batches[-1], parts, ahead)
                calls, hidden = _recorded(model, batches, count)
            if parts.varied and len(hidden) < model.count:
                hidden = [list(hidden[0]) for _ in range(model.count)]
            for variant, states in enumerate(hidden):
                model.select(variant)
                own = calls[variant if len(calls) > 1 else 0]
                with model.holding(parts.of(variant)):
                    for number in range(len(batches)):
                        with watch(index, number):
                            states[number] = model.run_block(index, own[number][index], states[number])
                        done = (variant + (number + 1) / len(batches)) / len(hidden)
                        progress(stage, index + done, count, "blocks")
            del parts
            finished(index)
    return hidden if len(hidden) == model.count else [hidden[0]] * model.count


def _check(model: StreamedModel, batch: Batch, parts: Parts, ahead: Future[Parts] | None) -> None:
    """Run the first blocks of the first variant both ways on a short text."""
    loaded = [parts.of(0)] if ahead is None else [parts.of(0), ahead.result().of(0)]
    model.check(batch.ids[0].tolist(), loaded)


def _recorded(
    model: StreamedModel, batches: Sequence[Batch], count: int
) -> tuple[list[list[list[skeleton.Call]]], list[list[Tensor]]]:
    """Calls and hidden states before the first block, of each variant where they differ there, else of all as one."""
    calls, hidden = [], []
    for variant in range(model.count if model.varied_outside else 1):
        model.select(variant)
        own_calls, own_hidden = _record(model, batches, count)
        calls.append(own_calls)
        hidden.append(own_hidden)
    return calls, hidden


def _record(
    model: StreamedModel, batches: Sequence[Batch], count: int
) -> tuple[list[list[skeleton.Call]], list[Tensor]]:
    """What each block is called with for each batch, without the hidden states; and those before the first block."""
    calls: list[list[skeleton.Call]] = []
    hidden: list[Tensor] = []
    masks: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for batch in batches:
        recorded = model.calls(batch.ids, count)
        hidden.append(skeleton.hidden_states(recorded[0]))
        empty = hidden[-1].new_empty(0)
        calls.append([skeleton.with_hidden(_with_shared_masks(call, masks), empty) for call in recorded])
    return calls, hidden


def _with_shared_masks(call: skeleton.Call, known: dict[tuple[int, ...], list[Tensor]]) -> skeleton.Call:
    """The call with each of its masks replaced by an equal one of an earlier batch: length² entries are kept once."""
    args, kwargs = call

    def shared(name: str, value: Any) -> Any:
        if "mask" not in name or not isinstance(value, Tensor):
            return value
        same_shape = known[tuple(value.shape)]
        for mask in same_shape:
            if mask is value or (mask.dtype == value.dtype and torch.equal(mask, value)):
                return mask
        same_shape.append(value)
        return value

    return args, {name: shared(name, value) for name, value in kwargs.items()}


def replay(
    weights: Weights,
    samples: Samples | Sequence[Sample],
    *,
    observe: Callable[[str, Tensor], None],
    sites: Collection[str],
    finished: Callable[[int], None] = _finish_nothing,
    resume_skip: Collection[int] = (),
    compute: Compute = "float32",
    stage: str = "replay",
    progress: Progress = silent,
) -> None:
    """Hand the inputs of linear maps at the selected positions of all samples to `observe`, block by block.

    The result is that of the model's own forward; each stored tensor is read at most once, and no more than two blocks
    are in memory. A sample is fed up to its last selected position: what comes behind cannot change what comes before.

    Args:
        weights: any weights; their layout says which module reads the input of each site.
        samples: token ids and selected positions.
        observe: called with a site's name and rows (n, in) float32, several times a site, in a fixed order.
        sites: names of the sites that are wanted; the pass ends behind the last block that has one.
        finished: called with each block's number when all rows of its sites were handed on.
        resume_skip: blocks whose sites are wanted no more: they are run, not observed.
        compute: "float32", or "stored" for arithmetic in the configuration's type.

    Raises:
        InputError: unknown site, activations that are not finite.
        UnsupportedError: an architecture that does not replay exactly.
    """
    chosen = [_site(weights, name) for name in sites]
    chosen = [site for site in chosen if site.layer not in resume_skip]
    used = [sample for sample in as_list(samples) if sample.positions]
    if not chosen or not used:
        return
    fed = [sample.ids[: sample.positions[-1] + 1] for sample in used]
    model = StreamedModel(Single(weights), fed, compute=compute)
    batches = make_batches(fed)
    selected = [_selected(batch, used) for batch in batches]
    modules = {site.name: _module_of(weights, site) for site in chosen}

    def watch(block: int, number: int) -> AbstractContextManager[None]:
        watchers = {
            modules[site.name]: _watcher(site, batches[number], selected[number], observe)
            for site in chosen
            if site.layer == block
        }
        return model.watching(watchers)

    count = max(site.layer for site in chosen) + 1
    walk(model, batches, count, watch=watch, finished=finished, stage=stage, progress=progress)


def _site(weights: Weights, name: str) -> Site:
    if name not in weights.layout.sites:
        raise InputError(f"measuring site {name!r}: the layout of {weights.layout.architecture!r} has no such site.")
    return weights.layout.sites[name]


def _module_of(weights: Weights, site: Site) -> str:
    """Module path of a linear map that reads the site's input."""
    return weights.layout.tensors[site.tensors[0]].parameter.removesuffix(".weight")


def _selected(batch: Batch, samples: Sequence[Sample]) -> Tensor:
    """Indices of the selected positions in the flattened (batch · length) positions."""
    length = batch.ids.shape[1]
    rows = [torch.tensor(samples[member].positions) + place * length for place, member in enumerate(batch.members)]
    return torch.cat(rows)


def _watcher(
    site: Site, batch: Batch, selected: Tensor, observe: Callable[[str, Tensor], None]
) -> Callable[[Tensor], None]:
    """What takes the selected rows out of a site's input for one batch and hands them on."""

    def take(states: Tensor) -> None:
        flat = states.reshape(-1, states.shape[-1])
        if len(flat) != batch.ids.numel() or flat.shape[1] != site.width:
            raise UnsupportedError(
                f"measuring site {site.name!r}: its input has shape {tuple(states.shape)}, expected one row of width "
                f"{site.width} for each of {tuple(batch.ids.shape)} tokens."
            )
        rows = flat.index_select(0, selected).float()
        # A sum is finite unless an entry is not, or it overflows: the dear test only where the cheap one fails.
        if not math.isfinite(float(rows.sum())) and not torch.isfinite(rows).all():
            raise InputError(f"measuring site {site.name!r}: its activations are not finite (NaN or infinity).")
        observe(site.name, rows)

    return take
