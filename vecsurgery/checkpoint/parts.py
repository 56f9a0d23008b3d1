"""What the output rows of a matrix mean: roles, heads, and the parts of fused matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .types import Part, Role

_ATTENTION = re.compile(r"(self_)?(attn|attention)")
_PLAIN: Mapping[str, Role] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
    "fc1": "up",
    "fc2": "down",
    "c_fc": "up",
    "fc_in": "up",
    "fc_out": "down",
    "dense_h_to_4h": "up",
    "dense_4h_to_h": "down",
}
"""Role by the last name of the module, wherever it stands."""
_IN_ATTENTION: Mapping[str, Role] = {
    "query": "q",
    "key": "k",
    "value": "v",
    "o_proj": "o",
    "out_proj": "o",
    "c_proj": "o",
    "dense": "o",
}
"""Role by the last name of a module whose parent is an attention module."""
_OUTSIDE: Mapping[str, Role] = {"c_proj": "down"}
_FUSED_QKV = {"qkv_proj", "c_attn", "query_key_value", "Wqkv"}
_FUSED_GATE_UP = {"gate_up_proj"}

_Order = Sequence[tuple[Role, int]]


def _blocks_of(config: Any) -> tuple[int, _Order]:
    heads, shared = _head_counts(config)
    return 1, (("q", heads), ("k", shared), ("v", shared))


def _interleaved(config: Any) -> tuple[int, _Order]:
    heads, _ = _head_counts(config)
    return heads, (("q", 1), ("k", 1), ("v", 1))


def _falcon(config: Any) -> tuple[int, _Order]:
    heads = config.num_attention_heads
    if config.new_decoder_architecture:
        return config.num_kv_heads, (("q", heads // config.num_kv_heads), ("k", 1), ("v", 1))
    if config.multi_query:
        return 1, (("q", heads), ("k", 1), ("v", 1))
    return heads, (("q", 1), ("k", 1), ("v", 1))


def _gpt_bigcode(config: Any) -> tuple[int, _Order]:
    if config.multi_query:
        return 1, (("q", config.num_attention_heads), ("k", 1), ("v", 1))
    return _interleaved(config)


def _codegen(config: Any) -> tuple[int, _Order]:
    """CodeGen keeps the four slices of the machine that trained it, each as [q v k]."""
    each = config.num_attention_heads // 4
    return 4, (("q", each), ("v", each), ("k", each))


_QKV: Mapping[str, Callable[[Any], tuple[int, _Order]]] = {
    "gpt2": _blocks_of,
    "phi3": _blocks_of,
    "mpt": _blocks_of,
    "dbrx": _blocks_of,
    "gpt_neox": _interleaved,
    "gpt_neox_japanese": _interleaved,
    "bloom": _interleaved,
    "persimmon": _interleaved,
    "falcon": _falcon,
    "gpt_bigcode": _gpt_bigcode,
    "codegen": _codegen,
}
"""How a fused matrix is laid out, by model type: (groups, heads of each role in one group, in order)."""


def parts_of(module: str, outputs: int, inputs: int, config: Any) -> tuple[Part, ...]:
    """The parts of a linear map, from its dotted name and the configuration; together they cover every output row.

    Head sizes come from the shape (rows / heads), never from hidden size / heads. A fused matrix of a model type whose
    layout is not known is one part of role `other`, as is any linear map of unknown meaning.
    """
    names = module.split(".")
    leaf, parent = names[-1], names[-2]
    attention = _ATTENTION.fullmatch(parent) is not None
    if leaf in _FUSED_QKV:
        return _fused_qkv(outputs, config)
    if leaf in _FUSED_GATE_UP and outputs % 2 == 0:
        half = outputs // 2
        return (Part("gate", ((0, half),)), Part("up", ((half, outputs),)))
    role = (_IN_ATTENTION if attention else _OUTSIDE).get(leaf) or _PLAIN.get(leaf, "other")
    if role in ("gate", "up", "down") and any("attn" in name or "attention" in name for name in names[:-1]):
        role = "other"
    heads, shared = _head_counts(config)
    if role == "q":
        return (_whole(role, outputs, outputs, heads),)
    if role in ("k", "v"):
        return (_whole(role, outputs, outputs, shared),)
    return (_whole(role, outputs, inputs, heads if role == "o" else 0),)


def _whole(role: Role, outputs: int, numbered: int, heads: int) -> Part:
    """One part of all rows; `numbered`: how many rows (or, for o, columns) the heads share out."""
    if heads <= 0 or numbered % heads:
        return Part(role, ((0, outputs),))
    return Part(role, ((0, outputs),), heads, numbered // heads)


def _fused_qkv(outputs: int, config: Any) -> tuple[Part, ...]:
    layout = _QKV.get(config.model_type)
    if layout is None:
        return (Part("other", ((0, outputs),)),)
    groups, order = layout(config)
    units = groups * sum(count for _, count in order)
    if outputs % units:
        return (Part("other", ((0, outputs),)),)
    head_dim = outputs // units
    rows: dict[Role, list[tuple[int, int]]] = {"q": [], "k": [], "v": []}
    heads: dict[Role, int] = {role: groups * count for role, count in order}
    start = 0
    for _ in range(groups):
        for role, count in order:
            rows[role].append((start, start + count * head_dim))
            start += count * head_dim
    return tuple(Part(role, tuple(rows[role]), heads[role], head_dim) for role in rows)


def _head_counts(config: Any) -> tuple[int, int]:
    """(query heads, key and value heads); 0 where the configuration does not say."""
    heads = getattr(config, "num_attention_heads", None)
    heads = heads if isinstance(heads, int) else 0
    shared = getattr(config, "num_key_value_heads", None)
    if not isinstance(shared, int):
        shared = _attention_settings(config).get("kv_n_heads", heads)
    return heads, shared


def _attention_settings(config: Any) -> dict[str, Any]:
    """DBRX keeps its key and value heads in a configuration of its own."""
    settings: Any = getattr(config, "attn_config", None)
    return settings.to_dict() if hasattr(settings, "to_dict") else {}
