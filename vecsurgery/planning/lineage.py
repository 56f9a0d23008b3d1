"""Are these checkpoints kin? Configuration keys that must agree for a delta to make sense, and a distance."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from vecsurgery.checkpoint.types import Weights

_KEYS: Mapping[str, tuple[str, ...]] = {
    "RoPE base": ("rope_theta", "rotary_emb_base"),
    "RoPE scaling": ("rope_scaling", "rope_type", "partial_rotary_factor", "rotary_pct"),
    "normalisation epsilon": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "activation": ("hidden_act", "activation_function", "hidden_activation", "activation"),
    "attention heads": ("num_attention_heads", "n_head", "num_heads"),
    "key-value heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query"),
    "head dimension": ("head_dim",),
    "sliding window": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
}
_TYING = "tying of embedding and head"
_CONSEQUENCES = {_TYING: "the result is tied or not as `into` is"}
_CONSEQUENCE = "a delta trained under other settings may not transfer"
_SAMPLED = 6
_STRANGERS = 1.0
"""‖into − base‖/‖base‖ from which two checkpoints share no training: independent weights give about 1.4."""


def lineage_warnings(name: str, into: Weights, others: Mapping[str, Weights]) -> list[str]:
    """Differences of configuration between `into` and the models of delta `name`: one warning a key and value."""
    warnings = []
    reference = _facts(into)
    facts = {label: _facts(model) for label, model in others.items()}
    for title, ours in reference.items():
        values: dict[str, list[str]] = {}
        for label, theirs in facts.items():
            if theirs[title] != ours:
                values.setdefault(_shown(theirs[title]), []).append(label)
        for shown, labels in values.items():
            verb = "has" if len(labels) == 1 else "have"
            warnings.append(
                f"deltas.{name}: {title} differs: into has {_shown(ours)}, {' and '.join(labels)} {verb} {shown}; "
                f"{_CONSEQUENCES.get(title, _CONSEQUENCE)}"
            )
    return warnings


def distance(into: Weights, base: Weights) -> float | None:
    """‖into − base‖/‖base‖ over a few block matrices of equal name and shape; None where there is none."""
    theirs = base.layout.by_parameter()
    pairs = [
        (info, theirs[info.parameter])
        for info in into.layout.tensors.values()
        if info.matrix is not None and info.parameter in theirs and theirs[info.parameter].shape == info.shape
    ]
    if not pairs:
        return None
    step = max(1, len(pairs) // _SAMPLED)
    difference = norm = 0.0
    for ours, other in pairs[::step]:
        a, b = into.read(ours.name).float(), base.read(other.name).float()
        difference += float(torch.linalg.vector_norm(a - b, dtype=torch.float64)) ** 2
        norm += float(torch.linalg.vector_norm(b, dtype=torch.float64)) ** 2
    return (difference / norm) ** 0.5 if norm > 0.0 else None


def distance_warning(name: str, value: float | None) -> str | None:
    """A warning where `into` and the base of delta `name` look like strangers."""
    if value is None or value < _STRANGERS:
        return None
    return (
        f"deltas.{name}: into and base differ by {value:.2f} of the base's norm, as unrelated models do; "
        "a delta of one family does not transfer to another"
    )


def _facts(model: Weights) -> dict[str, Any]:
    config = model.config.get_text_config()
    values = config.to_dict()
    rope = values.get("rope_parameters") or {}
    flat = {**values, **(rope if _plain(rope) else {})}
    facts = {}
    for title, keys in _KEYS.items():
        facts[title] = {key: flat[key] for key in keys if flat.get(key) is not None}
    if values.get("use_sliding_window") is False:
        # Qwen configurations keep widths and layer counts of a window that no layer has.
        facts["sliding window"] = {key: flat[key] for key in ("layer_types",) if flat.get(key) is not None}
    if not _plain(rope):
        parts = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
        facts["RoPE base"] = {kind: part.get("rope_theta") for kind, part in parts.items()}
        facts["RoPE scaling"] = {kind: _scaling(part) for kind, part in parts.items()}
    else:
        facts["RoPE scaling"] = {**facts["RoPE scaling"], **_scaling(rope)}
    heads = next(iter(facts["attention heads"].values()), None)
    if not facts["head dimension"] and heads and values.get("hidden_size"):
        facts["head dimension"] = {"head_dim": values["hidden_size"] // heads}  # what is meant where it is not said
    facts[_TYING] = {"tied": bool(values.get("tie_word_embeddings"))}
    return facts


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE parameters without the base; `type` is the older name of `rope_type`, which is always there as well."""
    return {key: value for key, value in rope.items() if key not in ("rope_theta", "type")}


def _plain(rope: Mapping[str, Any]) -> bool:
    """True for one set of RoPE parameters, False where each layer type has its own."""
    return not any(isinstance(part, dict) for part in rope.values())


def _shown(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str) if value else "none"
