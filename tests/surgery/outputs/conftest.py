"""Models whose deltas and adapters are written, and a way to run recipes on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.results import write_adapter

import vecsurgery

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`into`, `tuned`, `other` (another model of the family), an adapter and calibration text; bfloat16."""
    folder = tmp_path_factory.mktemp("outputs")
    models.checkpoint(folder / "into", seed=1, dtype=torch.bfloat16, num_hidden_layers=2)
    models.perturbed(folder / "into", folder / "tuned", seed=2, size=0.05)
    models.perturbed(folder / "into", folder / "other", seed=3)
    modules = {
        f"model.layers.{layer}.{name}": 32 for layer in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    write_adapter(folder / "adapter", {name: 32 for name in modules if "q_proj" in name})
    models.write_texts(folder / "retain.jsonl", 8)
    return folder


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Run a recipe on the models of `root` into a folder of `tmp_path`; returns its record."""

    def carried_out(name: str, **keys: Any) -> Any:
        recipe = {"into": str(root / "into"), "deltas": {"x": {"tuned": str(root / "tuned")}}, "gates": [], **keys}
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        return vecsurgery.run(path, tmp_path / name)

    return carried_out


@pytest.fixture
def projected(root: Path) -> dict[str, Any]:
    """Keys of a recipe that projects its delta and weighs it."""
    return {
        "geometry": {"retain": {"data": str(root / "retain.jsonl")}},
        "steps": [{"project": "retain_energy", "geometry": "retain", "keep": 0.1}],
        "weights": {"x": 0.7},
    }
