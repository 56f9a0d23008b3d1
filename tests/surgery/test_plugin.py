"""A projector of another distribution, one file and an entry point, works from YAML; nothing here knows it."""

from pathlib import Path

import pytest
import torch
from support.results import QUERY, in_float32, require_close, tensors_of
from support.workspace import Workspace

import vecsurgery

TOY = '''
"""consensus: every delta becomes a share of the mean of all deltas."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vecsurgery.delta import Dense, Edit
from vecsurgery.projectors import Projector


class Consensus(BaseModel):
    model_config = ConfigDict(extra="forbid")
    share: float = Field(default=1.0, ge=0.0, le=1.0, description="Share of the mean that is kept.")
    others: Literal["source", "drop"] = Field(default="drop", description="What becomes of other tensors.")


def consensus(deltas, geometry, *, options):
    mean = sum(delta.dense() for delta in deltas.values()) / len(deltas)
    edited = {name: Dense(mean * options.share) for name in deltas}
    return Edit(edited, {"together": float(len(deltas))}, ())


PROJECTOR = Projector("consensus", Consensus, consensus, joint=True)
'''
METADATA = "Metadata-Version: 2.1\nName: toy-steps\nVersion: 1.0\n"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution: one module, and the metadata that pip would leave."""
    site = tmp_path / "site"
    information = site / "toy_steps-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text("[vecsurgery.steps]\nconsensus = toy_consensus:PROJECTOR\n")
    (site / "toy_consensus.py").write_text(TOY)
    monkeypatch.syspath_prepend(site)


def test_a_step_of_another_distribution_works_from_yaml(plugin: None, workspace: Workspace) -> None:
    in_float32(workspace)
    workspace.recipe |= {"steps": [{"project": "consensus", "share": 0.25}], "geometry": {}}
    record = vecsurgery.run(workspace.write(), workspace.out)
    into, tuned, written = (tensors_of(workspace.root / name) for name in ("into", "tuned", "out"))
    require_close(written[QUERY] - into[QUERY], 0.25 * (tuned[QUERY].double() - into[QUERY].double()), 1e-4)
    assert torch.equal(written["model.norm.weight"], into["model.norm.weight"])
    assert record["matrices"][0]["steps"][0]["facts"] == {"together": 1.0}
    assert record["others"][0]["treatment"] == "drop"
    assert "consensus" in (workspace.out / "report.html").read_text()


def test_a_joint_step_gets_all_deltas_of_a_matrix_at_once(plugin: None, workspace: Workspace) -> None:
    in_float32(workspace)
    workspace.recipe |= {
        "deltas": {"one": {"tuned": "tuned"}, "two": {"tuned": "base"}},
        "steps": [{"project": "consensus"}],
        "geometry": {},
        "weights": {"one": 1.0, "two": 0.5},
    }
    record = vecsurgery.run(workspace.write(), workspace.out)
    into, tuned, base, written = (tensors_of(workspace.root / name) for name in ("into", "tuned", "base", "out"))
    mean = (tuned[QUERY].double() + base[QUERY].double()) / 2 - into[QUERY].double()
    require_close(written[QUERY] - into[QUERY], 1.5 * mean, 1e-4)
    steps = [step for matrix in record["matrices"] for step in matrix["steps"]]
    assert {step["delta"] for step in steps} == {"one", "two"}
    assert all(step["facts"]["together"] == 2.0 for step in steps)


def test_options_of_another_distribution_are_checked_like_any(plugin: None, workspace: Workspace) -> None:
    workspace.recipe |= {"steps": [{"project": "consensus", "shrae": 0.25}], "geometry": {}}
    with pytest.raises(vecsurgery.errors.InputError, match=r"recipe.yaml:\d+: .*shrae.*share"):
        vecsurgery.run(workspace.write(), workspace.out)
