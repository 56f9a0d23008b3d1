"""Geometry through the commands: partial moments united, and files that serve another run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from support import models
from support.results import contents, in_float32, require_close, tensors_of
from support.workspace import Workspace

import vecsurgery
from vecsurgery.cli import main
from vecsurgery.errors import InputError
from vecsurgery.geometry import Geometry


def _measure(*arguments: str | Path) -> None:
    result = CliRunner().invoke(main, ["measure", *(str(argument) for argument in arguments)])
    assert result.exit_code == 0, result.stderr


def _parts(workspace: Workspace, rows: Sequence[str]) -> list[Path]:
    paths = []
    for number, interval in enumerate(rows):
        paths.append(workspace.root / f"part-{number}.safetensors")
        _measure(workspace.write(), "retain", "--rows", interval, "--moments", "--out", paths[-1])
    return paths


def _result(workspace: Workspace, geometry: str, name: str) -> dict[str, torch.Tensor]:
    workspace.recipe["geometry"] = {"retain": {"file": geometry}}
    vecsurgery.run(workspace.write(), workspace.root / name)
    return tensors_of(workspace.root / name)


def test_united_parts_equal_one_measurement(workspace: Workspace) -> None:
    in_float32(workspace)
    whole, united = workspace.root / "whole.safetensors", workspace.root / "united.safetensors"
    parts = _parts(workspace, ["0-9", "10-10", "11-23"])
    _measure(workspace.write(), "--out", whole)
    _measure("--union", *parts, "--out", united)
    one, many = Geometry.open(whole), Geometry.open(united)
    assert one.sites == many.sites
    assert one.info.counts["positions"] == many.info.counts["positions"]
    assert one.info.model_fingerprint == many.info.model_fingerprint
    for site in one.sites:
        first, second = one.subspace(site), many.subspace(site)
        assert torch.allclose(first.energies, second.energies, rtol=0.0, atol=1e-6 * float(first.energies[0]))
        assert first.count == second.count
        moments = [item.directions.double() * item.energies @ item.directions.double().T for item in (first, second)]
        require_close(moments[1], moments[0], 1e-6)
    into = tensors_of(workspace.root / "into")
    direct, added = _result(workspace, "whole.safetensors", "direct"), _result(workspace, "united.safetensors", "added")
    for name in direct:
        require_close(added[name] - into[name], direct[name] - into[name], 1e-4)


def test_a_geometry_file_gives_the_bytes_of_the_run_that_measured_it(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    workspace.recipe["geometry"] = {"retain": {"file": "out/surgery/retain.safetensors"}}
    record = vecsurgery.run(workspace.write(), workspace.root / "again")
    measured, read = contents(workspace.out), contents(workspace.root / "again")
    assert {name for name in measured if measured[name] != read[name]} == {"recipe.yaml", "README.md"}
    assert record["geometry"]["retain"]["tokens"] == 264
    assert record["seconds"]["measure"] >= 0.0


def test_measure_writes_the_file_that_run_keeps(workspace: Workspace) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    path = workspace.root / "retain.safetensors"
    _measure(workspace.write(), "retain", "--out", path)
    assert path.read_bytes() == (workspace.out / "surgery" / "retain.safetensors").read_bytes()


def test_parts_that_share_rows_are_refused(workspace: Workspace) -> None:
    parts = _parts(workspace, ["0-9", "9-23"])
    with pytest.raises(InputError, match="share 1 rows"):
        vecsurgery.union(parts, workspace.root / "united.safetensors")
    assert not (workspace.root / "united.safetensors").exists()


def test_parts_of_different_models_are_refused(workspace: Workspace) -> None:
    first = _parts(workspace, ["0-9"])[0]
    first = first.rename(workspace.root / "first.safetensors")
    models.perturbed(workspace.root / "tuned", workspace.root / "into", seed=8)
    second = _parts(workspace, ["10-23"])[0]
    with pytest.raises(InputError, match=r"does not go with .*model"):
        vecsurgery.union([first, second], workspace.root / "united.safetensors")


def test_partial_moments_are_no_geometry_for_a_run(workspace: Workspace) -> None:
    _parts(workspace, ["0-9"])
    workspace.recipe["geometry"] = {"retain": {"file": "part-0.safetensors"}}
    with pytest.raises(InputError, match="moments"):
        vecsurgery.run(workspace.write(), workspace.out)


def test_a_file_without_the_sites_that_a_step_needs_is_refused_before_anything_is_written(
    workspace: Workspace,
) -> None:
    workspace.recipe["steps"][0]["layers"] = 0
    _measure(workspace.write(), "--out", workspace.root / "low.safetensors")
    workspace.recipe["steps"][0]["layers"] = "0-2"
    workspace.recipe["geometry"] = {"retain": {"file": "low.safetensors"}}
    with pytest.raises(InputError, match=r"'retain'.*model\.layers\.1"):
        vecsurgery.run(workspace.write(), workspace.out)
    assert not workspace.out.exists()
    assert not (workspace.root / "out.partial").exists()


def test_measuring_alone_is_shown_under_the_name_that_a_run_shows(workspace: Workspace) -> None:
    stages: dict[str, None] = {}
    vecsurgery.measure(
        workspace.write(),
        None,
        workspace.root / "retain.safetensors",
        progress=lambda stage, done, total, unit: stages.setdefault(stage),
    )
    assert list(stages) == ["comparing checkpoints", "measuring retain"]
