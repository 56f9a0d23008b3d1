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


def fit(factor: float = 4.0, **facts: float) -> Any:
    """A fit that amplifies every matrix by `factor` and reaches 5 nats, 90 % of the rise from 0.5 to 5.5."""
    curve = [(1.0, 2.0, 0.5), (2.0, 3.5, 0.2), (4.0, 5.0, 0.1), (8.0, 6.0, 0.01)]
    return {
        "step": "amplify",
        "method": "amplify",
        "delta": "unlearning",
        "tensors": 4,
        "rows": 20,
        "facts": {
            "factor": factor,
            "target": 5.0,
            "into": 0.5,
            "raw": 5.5,
            "reached": 5.0,
            "share": 0.9,
            "asks": 2.0,
            "norm_growth": 0.8 * factor,
        }
        | facts,
        "curve": [
            {"factor": factor, "capped": capped, "nll": 1.5 * capped, "probability": probability}
            for factor, capped, probability in curve
        ],
        "warnings": [],
        "file": "surgery/amplify.coefficients.json",
        "sha256": "e" * 64,
        "data": {"forget.jsonl": "d" * 64},
    }


def gate(measure: str, value: float | None, *, passed: bool = True, **limits: float) -> Any:
    """A gate with its reason."""
    bounds = " and ".join(f"{name} {limit:g}" for name, limit in limits.items())
    reason = f"{measure} {value}, {'within' if passed else 'outside'} {bounds}" if bounds else f"{measure}: all is well"
    return {
        "measure": measure,
        "min": limits.get("min"),
        "max": limits.get("max"),
        "value": value,
        "passed": passed,
        "reason": reason,
    }


def amplified(factor: float = 4.0) -> Any:
    """The record of a run that amplifies after projecting, evaluates and has two gates that pass.

    Bias 2 % and norm 80 % are left by the projection; the factor 4 makes 32 % and 320 % of them, exactly as stored.
    """
    changed = record()
    for item in changed["matrices"]:
        facts = {"factor": factor}
        step = {"step": "amplify", "method": "amplify", "delta": "unlearning", "geometry": None, "facts": facts}
        item["steps"].append(step | {"warnings": []})
        stored = item["stored"]["retain"]
        after = stored["rab_after_intended"] * factor**2
        stored |= {"rab_after_intended": after, "rab_after_stored": after}
        stored |= {"norm_ratio_intended": 0.8 * factor, "norm_ratio_stored": 0.8 * factor}
    changed["fits"] = [fit(factor)]
    changed["evaluation"] = {
        "forget": {
            "rows": 40,
            "tokens": 312,
            "data": {"forget-test.jsonl": "b" * 64},
            "figures": {
                "into": {"capped_loss": 0.5, "token_probability": 0.8},
                "raw": {"capped_loss": 5.5, "token_probability": 0.01},
                "edited": {"capped_loss": 4.75, "token_probability": 0.03, "leak@4": 0.25},
            },
            "warnings": ["evaluate.forget: 2 rows were cut"],
        },
        "retain": {
            "rows": 1,
            "tokens": 9,
            "data": {"retain-test.jsonl": "c" * 64},
            "figures": {"into": {"nll": 0.25}, "raw": {"nll": 3.25}, "edited": {"nll": 0.4}},
            "warnings": [],
        },
        "general": {
            "rows": 3,
            "tokens": 90,
            "data": {"general.txt": "a" * 64},
            "figures": {"into": {"perplexity": 12.5}, "raw": {"perplexity": 12.5}, "edited": {"perplexity": 12.75}},
            "warnings": [],
        },
    }
    changed["gates"] = [gate("retention", 0.15, max=0.2), gate("smoke", None)]
    return changed
