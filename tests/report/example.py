"""A record of a run with known figures: two layers, one geometry, rounding that shows, names that need escaping."""

import copy
import math
from typing import Any


def _model(reference: str, revision: str | None = None) -> dict[str, Any]:
    return {
        "reference": reference,
        "revision": revision,
        "fingerprint": "0123456789abcdef" * 4,
        "architecture": "llama",
    }


def matrix(layer: int, role: str, before: float, intended: float, stored: float) -> dict[str, Any]:
    """A matrix whose raw change has norm 2 and keeps 80 % of it."""
    tensor = f"model.layers.{layer}.self_attn.{role}_proj.weight"
    facts = {"norm": 2.0, "norm_ratio": 0.8, "rab": before, "rab_after": intended, "rank": 48.0, "energy": 0.97}
    step = {
        "step": "retain_energy",
        "method": "retain_energy",
        "delta": "unlearning",
        "geometry": "retain",
        "facts": {**facts, "energy_removed": 0.36, "strength": 12.5, "floor": 0.001},
        "warnings": [],
    }
    measured = {
        "rab_before": before,
        "rab_after_intended": intended,
        "rab_after_stored": stored,
        "norm_before": 2.0,
        "norm_ratio_intended": 0.8,
        "norm_ratio_stored": 0.81,
        "rab_relative_before": 0.05,
        "rab_relative_after": 0.05 * math.sqrt(stored / before),
        "leak": 0.02,
    }
    return {
        "tensor": tensor,
        "layer": layer,
        "site": f"model.layers.{layer}.self_attn.q_proj",
        "roles": [role],
        "shape": [64, 64],
        "steps": [step],
        "stored": {"retain": measured},
    }


def record() -> dict[str, Any]:
    """Totals: bias 100 before, 2 intended, 3 stored; norm kept 81 %; one geometry warning, one rounding warning."""
    matrices = [
        matrix(0, "q", 40.0, 0.8, 0.9),
        matrix(0, "o", 10.0, 0.2, 0.9),
        matrix(1, "q", 30.0, 0.6, 0.7),
        matrix(1, "o", 20.0, 0.4, 0.5),
    ]
    return copy.deepcopy(
        {
            "version": 1,
            "created": "2026-01-02T03:04:05Z",
            "output": "cleaned",
            "recipe": "into: org/original\n",
            "source": "retain.yaml",
            "seed": 0,
            "compute": "float32",
            "versions": {"vecsurgery": "0.1.0", "torch": "2.6"},
            "seconds": {"measure": 61.0, "write": 3.25},
            "into": _model("org/original", "a" * 40),
            "deltas": {
                "unlearning": {
                    "tuned": _model("org/<b>unlearned</b>"),
                    "base": _model("org/original"),
                    "weight": 1.0,
                    "changed": 4,
                }
            },
            "geometry": {
                "retain": {
                    "model": _model("org/original"),
                    "rule": "all",
                    "tokens": 20000,
                    "counts": {"rows used": 120, "repeated": 3},
                    "sites": 4,
                    "warnings": ["fewer positions than inputs at 1 site"],
                }
            },
            "matrices": matrices,
            "left_out": [],
            "others": [
                {
                    "delta": "unlearning",
                    "step": "retain_energy",
                    "treatment": "source",
                    "tensors": ["model.norm.weight", "lm_head.weight"],
                }
            ],
            "files": {"model.safetensors": "f" * 64},
            "warnings": [],
        }
    )
