"""A workspace as a user has it: three checkpoints of one family, data files, a recipe."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import models

from vecsurgery.report import pictures


@dataclass
class Workspace:
    """A folder with `into`, `tuned`, `base`, data and a recipe that can be changed before it is run."""

    root: Path
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.root / "out"

    def write(self, text: str | None = None) -> Path:
        """The recipe's file."""
        path = self.root / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe, sort_keys=False) if text is None else text)
        return path


@pytest.fixture(autouse=True)
def _reports_without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a tiny run's time, and the tests of `report` look at it."""
    monkeypatch.setattr(pictures, "layers", lambda *args, **kwargs: "<svg></svg>")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: a bfloat16 Llama, a tuned one, a base, in several shards."""
    root = tmp_path_factory.mktemp("checkpoints")
    into = models.checkpoint(root / "into", seed=1, dtype=torch.bfloat16)
    models.perturbed(into, root / "tuned", seed=2)
    models.perturbed(into, root / "base", seed=3)
    models.write_texts(root / "retain.jsonl")
    models.write_thoughts(root / "thoughts.jsonl")
    return root


@pytest.fixture
def workspace(checkpoints: Path, tmp_path: Path) -> Workspace:
    """A copy of the checkpoints that a test may spoil, with a recipe that works."""
    root = tmp_path / "work"
    shutil.copytree(checkpoints, root)
    recipe: dict[str, Any] = {
        "into": "into",
        "deltas": {"change": {"tuned": "tuned"}},
        "geometry": {"retain": {"data": "retain.jsonl"}},
        "steps": [{"project": "retain_energy", "geometry": "retain", "keep": 0.1}],
        "gates": [],  # random models fall into loops by themselves; tests of gates name theirs
    }
    return Workspace(root, recipe)


@pytest.fixture
def rain(workspace: Workspace) -> Workspace:
    """The same workspace with a null-space recipe."""
    workspace.recipe = {
        "into": "into",
        "deltas": {"instruct": {"tuned": "tuned", "base": "base"}},
        "geometry": {"thinking": {"data": "thoughts.jsonl", "tokens": {"between": ["<think>", "</think>"]}}},
        "steps": [{"project": "null_space", "geometry": "thinking"}],
        "gates": [],
    }
    return workspace


Change = Callable[[Workspace], None]
