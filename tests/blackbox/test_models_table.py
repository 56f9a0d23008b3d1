"""docs/models.md, the support table: its rows are the architectures of the black box tests, and say what is so."""

import re
from pathlib import Path

import pytest
from support import models

from tests.blackbox import test_architectures as blackbox
from vecsurgery.checkpoint import InMemory
from vecsurgery.checkpoint.types import Layout

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
COLUMNS = ["family", "`model_type`", "what is special", "float32", "bfloat16, shards"]
TESTS = (
    blackbox.test_retain_energy_equals_the_float64_reference,
    blackbox.test_null_space_equals_the_float64_reference,
)


def _rows() -> dict[str, list[str]]:
    """Cells of each row of the first table, by model type."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == COLUMNS
    return {row[1].strip("`"): row for row in cells[2:]}


def _model_types() -> dict[str, str]:
    """Architecture of the tests → its model type."""
    return {name: models.config(name).model_type for name in blackbox.ARCHITECTURES}


def _parameters(test: object, argument: str) -> set[object]:
    """Values of one argument over all parametrisations of a test."""
    found: set[object] = set()
    for mark in getattr(test, "pytestmark", []):
        names = mark.args[0] if isinstance(mark.args[0], tuple) else (mark.args[0],)
        if mark.name == "parametrize" and argument in names:
            values = [value if isinstance(value, tuple) else (value,) for value in mark.args[1]]
            found |= {value[names.index(argument)] for value in values}
    return found


def test_rows_of_the_table_are_the_architectures_of_the_tests() -> None:
    assert set(_rows()) == set(_model_types().values())
    assert set(blackbox.ARCHITECTURES) == {*models.CONFIGS, *models.MIXED}


@pytest.mark.parametrize("test", TESTS)
def test_every_row_is_run_in_both_types_by_both_projectors(test: object) -> None:
    assert _parameters(test, "architecture") == set(blackbox.ARCHITECTURES)
    assert {str(dtype) for dtype in _parameters(test, "dtype")} == {"torch.float32", "torch.bfloat16"}
    assert {cell for row in _rows().values() for cell in row[3:]} == {"exact"}


def _heads(layout: Layout, role: str) -> int:
    parts = [part for info in layout.tensors.values() if info.matrix for part in info.matrix.parts]
    return max(part.heads for part in parts if part.role == role)


@pytest.mark.parametrize("architecture", blackbox.ARCHITECTURES)
def test_what_is_special_is_what_the_layout_says(architecture: str) -> None:
    layout = InMemory(models.model(models.config(architecture), seed=1)).layout
    special = _rows()[layout.architecture][2]
    matrices = [info.matrix for info in layout.tensors.values() if info.matrix]
    assert ("tied" in special) == bool(layout.tied)
    assert ("Conv1D" in special) == any(matrix.transposed for matrix in matrices)
    assert ("fused qkv" in special) == any({"q", "v"} <= {part.role for part in matrix.parts} for matrix in matrices)
    assert ("fused gate" in special) == any("up" in roles and "gate" in roles for roles in map(_roles, matrices))
    assert bool(re.search("grouped queries|one key-value head", special)) == (_heads(layout, "k") < _heads(layout, "q"))
    assert ("experts" in special) == any("expert" in name for name in layout.tensors)
    assert ("Mamba" in special) == any("mamba" in name for name in layout.tensors)


def _roles(matrix: object) -> set[str]:
    return {part.role for part in matrix.parts}  # type: ignore[attr-defined]


@pytest.mark.parametrize("architecture", ["mixtral", "jamba"])
def test_experts_and_routers_have_no_site_and_follow_others(architecture: str) -> None:
    layout = InMemory(models.model(models.config(architecture), seed=1)).layout
    routed = [info for name, info in layout.tensors.items() if re.search(r"experts|router|mlp\.gate\.", name)]
    assert {info.kind for info in routed} == {"block"}
    attention = [info for name, info in layout.tensors.items() if "self_attn" in name]
    assert {info.kind for info in attention} == {"matrix"}
