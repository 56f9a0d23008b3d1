"""What inspections look at: a base, two models tuned from it, an adapter, a geometry and a recipe."""

from pathlib import Path

import pytest
import torch
from support import models
from support.results import write_adapter

import vecsurgery
from vecsurgery.report.inspection import Inspection

TARGETS = {"model.layers.0.self_attn.q_proj": 32, "model.layers.1.self_attn.v_proj": 16}
RECIPE = """\
into: base
deltas:
  first: {tuned: first}
  second: {tuned: second}
geometry:
  retain: {file: retain.safetensors}
  later: {data: retain.jsonl}
steps:
  - {project: retain_energy, geometry: retain, keep: 0.1}
  - {project: null_space, geometry: later}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 Llama, two models tuned from it, an adapter, a geometry of it, and a recipe."""
    folder = tmp_path_factory.mktemp("inspected")
    base = models.checkpoint(folder / "base", seed=1, dtype=torch.bfloat16)
    models.perturbed(base, folder / "first", seed=2, only="proj")
    models.perturbed(base, folder / "second", seed=3)
    write_adapter(folder / "adapter", TARGETS)
    models.write_texts(folder / "retain.jsonl")
    text = RECIPE.replace("{file: retain.safetensors}", "{data: retain.jsonl}")
    (folder / "measured.yaml").write_text(text)
    vecsurgery.measure(folder / "measured.yaml", "retain", folder / "retain.safetensors")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def targets() -> dict[str, int]:
    """Modules of the adapter and their numbers of outputs."""
    return TARGETS


@pytest.fixture(scope="module")
def found(root: Path) -> Inspection:
    """The recipe, inspected."""
    return vecsurgery.inspect(root / "recipe.yaml", top=5)


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root
