"""Models of one family in two storage types, a geometry of each, and a merge by mergekit's command line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from support import models
from support.results import tensors_of
from support.workspace import _reports_without_pictures as _reports_without_pictures
from torch import Tensor

import vecsurgery
from vecsurgery.cli import mergekit_yaml

KEEP = {"project": "retain_energy", "geometry": "retain", "keep": 0.1}


@dataclass(frozen=True)
class Family:
    """A folder with `into`, `one`, `two`, `base`, and `geometry.safetensors` measured on `into`."""

    root: Path

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """A recipe that edits the delta of `one`, with paths."""
        return {
            "into": str(self.root / "into"),
            "deltas": {"one": {"tuned": str(self.root / "one")}},
            "geometry": {"retain": {"file": str(self.root / "geometry.safetensors")}},
            "steps": [KEEP],
            "gates": [],
            **changes,
        }

    def run(self, out: Path, **changes: Any) -> dict[str, Tensor]:
        """What `vecsurgery run` writes."""
        path = out.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(self.recipe(**changes)))
        vecsurgery.run(path, out)
        return tensors_of(out)

    def configuration(self, method: str, *named: str, **changes: Any) -> dict[str, Any]:
        """A configuration of mergekit over these models, with parameters of the first."""
        listed = [{"model": str(self.root / name)} for name in named or ("one",)]
        return {"merge_method": method, "base_model": str(self.root / "into"), "models": listed, **changes}


def merge(content: dict[str, Any] | str, out: Path, *options: str) -> click.testing.Result:
    """What `vecsurgery-mergekit` says of a configuration, also of one as text; the model lies in `out` afterwards."""
    path = out.with_suffix(".yml")
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    arguments = [str(path), str(out), "--quiet", "--no-copy-tokenizer", *options]
    return CliRunner().invoke(mergekit_yaml.command(), arguments)


def merged(content: dict[str, Any], out: Path, *options: str) -> dict[str, Tensor]:
    """The tensors that `vecsurgery-mergekit` writes."""
    result = merge(content, out, *options)
    assert result.exit_code == 0, (result.output, result.exception)
    return tensors_of(out)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Families by storage type, each made when first asked for."""
    made: dict[str, Family] = {}

    def family(dtype: str) -> Family:
        if dtype not in made:
            root = tmp_path_factory.mktemp(dtype)
            models.checkpoint(root / "into", seed=1, dtype=getattr(torch, dtype), num_hidden_layers=2)
            for seed, name in enumerate(("one", "two", "base"), start=2):
                models.perturbed(root / "into", root / name, seed=seed)
            models.write_texts(root / "retain.jsonl", count=8)
            made[dtype] = Family(root)
            recipe = made[dtype].recipe(geometry={"retain": {"data": str(root / "retain.jsonl")}})
            (root / "measure.yaml").write_text(yaml.safe_dump(recipe))
            vecsurgery.measure(root / "measure.yaml", None, root / "geometry.safetensors")
        return made[dtype]

    return family


def refused(content: dict[str, Any] | str, folder: Path) -> str:
    """The one line that `vecsurgery-mergekit` says before anything is written. `content`: also YAML as text."""
    result = merge(content, folder / "merged")
    assert result.exit_code == 2, (result.output, result.exception)
    assert not (folder / "merged").exists()
    assert result.output.count("\n") == 1
    return result.output
