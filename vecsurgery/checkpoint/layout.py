"""Facts about every tensor of a checkpoint, from its configuration and headers: no data is read.

The module that transformers builds says what a tensor is (class, site, heads, tying); the files say which tensors
there are. Here the two are matched, and the tensors put into walking order.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from vecsurgery.errors import InputError

from .names import Names
from .parts import parts_of
from .tracing import Trace, trace
from .types import Kind, Layout, Matrix, Site, TensorInfo

Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Stored name → (type, shape)."""
_recent: deque[tuple[Trace, Headers, Layout]] = deque(maxlen=2)
"""The last layouts: checkpoints of one recipe usually have the same tensors, and there may be thousands."""
_lock = threading.Lock()


def trace_layout(config: Any, headers: Headers) -> Layout:
    """The layout of a checkpoint.

    Walking order: embedding, what runs before the blocks, blocks in numeric order, what runs behind them (final norm,
    tensors that the module does not have), head. Within a block the module's own order.

    Args:
        config: the transformers configuration.
        headers: type (torch's name without prefix) and shape of every stored tensor.

    Raises:
        UnsupportedError: an architecture that cannot be traced; the message names it and the block.
        InputError: a stored tensor whose shape is not the one that the configuration describes.
    """
    facts = trace(config)
    with _lock:
        for known, same, layout in _recent:
            if known is facts and same == headers:
                return layout
    layout = _laid_out(facts, config, headers)
    with _lock:
        _recent.append((facts, headers, layout))
    return layout


def _laid_out(facts: Trace, config: Any, headers: Headers) -> Layout:
    names = Names(facts)
    tied = _tied(facts, {names.parameter(stored) for stored in headers})
    position = {parameter: index for index, parameter in enumerate(facts.parameters)}
    infos: list[tuple[tuple[Any, ...], TensorInfo]] = []
    for stored, (dtype, shape) in headers.items():
        info = _info(facts, names, config, stored, dtype, tuple(shape))
        place = position.get(info.parameter, len(position))
        infos.append(((*_phase(facts, info), place, _natural(stored)), info))
    ordered = [info for _, info in sorted(infos, key=lambda item: item[0])]
    tensors, sites = _with_sites(facts, ordered)
    return Layout(config.model_type, tensors, sites, facts.count, facts.hidden, tied)


def settle_tying(layout: Layout, equal: Callable[[str, str], bool]) -> Layout:
    """The layout without the ties that its files break.

    The configuration ties two parameters; where both are stored and differ, transformers keeps them apart, and so do
    we. `equal`: compares two stored tensors of one shape by name.
    """
    stored = layout.by_parameter()

    def holds(target: str, source: str) -> bool:
        if target not in stored or source not in stored:
            return True
        left, right = stored[target], stored[source]
        return left.shape == right.shape and left.dtype == right.dtype and equal(left.name, right.name)

    tied = {target: source for target, source in layout.tied.items() if holds(target, source)}
    return dataclasses.replace(layout, tied=tied)


def missing_parameters(layout: Layout, config: Any) -> tuple[str, ...]:
    """Parameters of the module that no stored tensor provides and no tying explains, in the module's order.

    Mixtral's experts, for one: three matrices an expert on disk, two fused 3-D parameters in the module.
    """
    facts = trace(config)
    provided = {info.parameter for info in layout.tensors.values()}
    provided |= {target for target, source in layout.tied.items() if source in provided}
    return tuple(name for name in facts.parameters if name in facts.required and name not in provided)


def _tied(facts: Trace, stored: set[str]) -> dict[str, str]:
    """Parameter → the one whose storage it shares, turned round where only the target is stored."""
    tied: dict[str, str] = {}
    for target, source in facts.tied.items():
        swap = source not in stored and target in stored
        tied[source if swap else target] = target if swap else source
    return tied


def _info(facts: Trace, names: Names, config: Any, stored: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    parameter = names.parameter(stored)
    expected = facts.parameters.get(parameter)
    if expected is not None and expected != shape:
        raise InputError(
            f"tensor {stored!r} has shape {list(shape)}, config.json describes {list(expected)}. The weights and the "
            "configuration do not belong together."
        )
    layer = names.layer(stored)
    linear = facts.linears.get(parameter)
    if linear is None:
        return TensorInfo(stored, shape, dtype, parameter, _kind(facts, parameter, layer), layer)
    parts = parts_of(linear.module, linear.outputs, linear.inputs, config)
    matrix = Matrix(stored, linear.layer, linear.site, linear.transposed, parts)
    return TensorInfo(stored, shape, dtype, parameter, "matrix", linear.layer, matrix)


def _kind(facts: Trace, parameter: str, layer: int | None) -> Kind:
    if layer is not None:
        return "block"
    module = parameter.rpartition(".")[0]
    if parameter in facts.parameters and module == facts.embedding:
        return "embedding"
    if parameter in facts.parameters and module == facts.head:
        return "head"
    return "other"


def _phase(facts: Trace, info: TensorInfo) -> tuple[int, int]:
    if info.layer is not None:
        return (2, info.layer)
    if info.kind in ("embedding", "head"):
        return (0 if info.kind == "embedding" else 4, 0)
    early = info.parameter in facts.parameters and info.parameter.rpartition(".")[0] in facts.early
    return (1 if early else 3, 0)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts experts.2 before experts.10."""
    return tuple((int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name))


def _with_sites(facts: Trace, ordered: list[TensorInfo]) -> tuple[dict[str, TensorInfo], dict[str, Site]]:
    groups: dict[str, list[TensorInfo]] = {}
    for info in ordered:
        if info.matrix is not None:
            groups.setdefault(info.matrix.site, []).append(info)
    sites = {
        name: Site(
            name, group[0].layer or 0, facts.linears[group[0].parameter].inputs, tuple(info.name for info in group)
        )
        for name, group in groups.items()
    }
    return {info.name: info for info in ordered}, sites
