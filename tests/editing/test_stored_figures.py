"""Figures of the report against a computation of its own from written files and recorded inputs."""

import re
from typing import Any

import pytest
import torch
from support import models
from support.results import fed, tensors_of
from support.workspace import Workspace
from torch import Tensor

import vecsurgery
from tests.blackbox import reference


def _bias(change: Tensor, inputs: Tensor) -> float:
    """tr(D C Dᵀ) with C = XᵀX/n: the mean squared output that the change gives to the inputs."""
    return float((inputs @ change.double().T).square().sum() / len(inputs))


def _leak(change: Tensor, inputs: Tensor, rank: int) -> float:
    _, _, directions = torch.linalg.svd(inputs, full_matrices=False)
    change = change.double()
    return float(torch.linalg.vector_norm(change @ directions[:rank].T) / torch.linalg.vector_norm(change))


def _records(record: Any, geometry: str) -> dict[str, tuple[Any, int]]:
    return {
        matrix["tensor"]: (matrix["stored"][geometry], int(matrix["steps"][0]["facts"]["rank"]))
        for matrix in record["matrices"]
    }


@pytest.mark.parametrize("method", ["retain_energy", "null_space"])
def test_stored_figures_equal_those_computed_from_the_written_files(workspace: Workspace, method: str) -> None:
    workspace.recipe["steps"] = [{"project": method, "geometry": "retain"}]
    workspace.recipe["steps"][0] |= {"keep": 0.3} if method == "retain_energy" else {"rtol": 0.3}
    workspace.recipe["weights"] = {"change": 0.5}
    record = vecsurgery.run(workspace.write(), workspace.out)
    inputs = reference.recorded_inputs(workspace.root / "into", fed(workspace))
    into, tuned, written = (tensors_of(workspace.root / name) for name in ("into", "tuned", "out"))
    found = _records(record, "retain")
    assert len(found) == 21
    for name, (stored, rank) in found.items():
        raw = 0.5 * (tuned[name].double() - into[name].double())
        change = written[name].double() - into[name].double()
        expected = {
            "rab_before": _bias(raw, inputs[name]),
            "rab_after_stored": _bias(change, inputs[name]),
            "norm_before": float(raw.norm()),
            "norm_ratio_stored": float(change.norm() / raw.norm()),
            "rab_relative_before": (_bias(raw, inputs[name]) / _bias(into[name], inputs[name])) ** 0.5,
            "rab_relative_after": (_bias(change, inputs[name]) / _bias(into[name], inputs[name])) ** 0.5,
        }
        assert {key: stored[key] for key in expected} == pytest.approx(expected, rel=1e-4), name
        assert stored["leak"] == pytest.approx(_leak(change, inputs[name], rank), rel=1e-3), name
        if method == "null_space":
            assert stored["leak_intended"] < 1e-5 < stored["leak"]


def test_intended_figures_are_those_before_rounding(workspace: Workspace) -> None:
    record = vecsurgery.run(workspace.write(), workspace.out)
    inputs = reference.recorded_inputs(workspace.root / "into", fed(workspace))
    into, tuned = tensors_of(workspace.root / "into"), tensors_of(workspace.root / "tuned")
    for name, (stored, rank) in _records(record, "retain").items():
        change = reference.delta(tuned[name], into[name], transposed=False)
        intended = reference.retain_energy(change, inputs[name], 0.1, rank)
        assert stored["rab_after_intended"] == pytest.approx(_bias(intended, inputs[name]), rel=1e-4)
        assert stored["rab_after_intended"] == pytest.approx(0.1 * stored["rab_before"], rel=1e-3)
        assert stored["norm_ratio_intended"] == pytest.approx(float(intended.norm() / change.norm()), rel=1e-4)


def test_rounding_that_undoes_the_projection_is_a_warning(workspace: Workspace) -> None:
    models.perturbed(workspace.root / "into", workspace.root / "tuned", seed=2, size=0.001)
    workspace.recipe["steps"][0]["keep"] = 0.001
    record = vecsurgery.run(workspace.write(), workspace.out)
    text = vecsurgery.report.text(record)
    assert re.search(r"rounding to the storage type more than doubled the bias on retain of \d+ matrices", text)
    assert "no warnings" not in record["verdict"]
    workspace.recipe["output"] = {"dtype": "float32"}
    exact = vecsurgery.run(workspace.write(), workspace.root / "exact")
    assert "rounding to the storage type" not in vecsurgery.report.text(exact)


def test_figures_count_every_delta_and_every_row_where_a_step_took_a_part(workspace: Workspace) -> None:
    """One step on one of two deltas: its facts alone would miss the other."""
    workspace.recipe["deltas"]["second"] = {"tuned": "base"}
    workspace.recipe["steps"][0]["delta"] = "change"
    record = vecsurgery.run(workspace.write(), workspace.out)
    inputs = reference.recorded_inputs(workspace.root / "into", fed(workspace))
    into, tuned, second = (tensors_of(workspace.root / name) for name in ("into", "tuned", "base"))
    for name, (stored, rank) in _records(record, "retain").items():
        first = reference.delta(tuned[name], into[name], transposed=False)
        other = reference.delta(second[name], into[name], transposed=False)
        intended = reference.retain_energy(first, inputs[name], 0.1, rank) + other
        assert stored["rab_before"] == pytest.approx(_bias(first + other, inputs[name]), rel=1e-4)
        assert stored["rab_after_intended"] == pytest.approx(_bias(intended, inputs[name]), rel=1e-4)
