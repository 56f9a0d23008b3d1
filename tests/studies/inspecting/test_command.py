"""The command `inspect`: its tables, JSON and pictures, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support import models
from support.results import QUERY, edit_json, tensors_of

import vecsurgery
from vecsurgery.cli import main
from vecsurgery.errors import InputError
from vecsurgery.report import inspection_picture
from vecsurgery.report.inspection import Inspection

DOWN = "model.layers.0.mlp.down_proj.weight"


def test_the_command_prints_tables_or_json_and_draws(here: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(main, ["inspect", "recipe.yaml", "--worst", "2"])
    assert shown.exit_code == 0, shown.output
    assert "delta first: first − into\n" in shown.stdout
    assert "first in geometry retain: role" in shown.stdout
    assert "inspecting: " in shown.stderr
    assert "looked at, all 3 blocks.\n" in shown.stdout
    assert (
        "Between deltas, over the tensors that both change (overlaps and angles: matrices of blocks alone)\n"
        in shown.stdout
    )
    content = json.loads(
        runner.invoke(main, ["inspect", "one=first", "--base", "base", "--limit", "1", "--json"]).stdout
    )
    assert list(content["deltas"]) == ["one"]
    assert (
        content["deltas"]["one"]["total"]
        == vecsurgery.inspect(["one=first"], base="base", limit=1).to_dict()["deltas"]["one"]["total"]
    )
    sites = runner.invoke(main, ["inspect", "retain.safetensors", "--picture", "sites.svg", "--json"])
    assert len(json.loads(sites.stdout)["sites"]) == 12
    again = vecsurgery.inspect("retain.safetensors")
    inspection_picture(again, here / "again.svg")
    assert (here / "sites.svg").read_bytes() == (here / "again.svg").read_bytes()


def test_the_picture_has_the_deltas_their_geometries_and_their_overlap(found: Inspection, tmp_path: Path) -> None:
    first = replace(found, changes=found.of_delta("first"))
    inspection_picture(first, tmp_path / "seen.svg")
    drawn = (tmp_path / "seen.svg").read_text()
    for title in ("first: ‖D‖/‖W‖", "first: singular values", "share inside retain", "first · second: cosine"):
        assert title in drawn
    assert "Matrices of blocks alone, all 3 blocks; grey: no change" in drawn
    with pytest.raises(InputError, match="no changed matrix"):
        inspection_picture(replace(found, changes=(), pairs=()), tmp_path / "seen.svg")


def test_a_sample_says_which_blocks_of_how_many_it_shows(root: Path, tmp_path: Path) -> None:
    found = vecsurgery.inspect(root / "first", base=root / "base", modules=["q"], limit=2)
    assert (found.layers, found.blocks) == ((0, 2), 3)
    assert "2 of 30 tensors looked at, 2 of 3 blocks: 0, 2.\n" in found.text()
    assert "2 of 3 blocks: 0-1." in vecsurgery.inspect(root / "first", base=root / "base", layers="0-1").text()
    inspection_picture(found, tmp_path / "seen.svg")
    drawn = (tmp_path / "seen.svg").read_text()
    assert "2 of 3 blocks: 0, 2; grey" in drawn
    below = [line for line in drawn.splitlines() if "<text" in line and ">1</text>" in line]
    assert not below  # block 1 was not looked at, so that no column stands for it


def test_terms_of_figures_that_are_not_there_are_not_told(root: Path, found: Inspection) -> None:
    same = vecsurgery.inspect({"same": str(root / "base")}, base=root / "base", limit=1).text()
    for term in ("stable rank:", "overlap:", "share inside:"):
        assert term in found.text()
        assert term not in same


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "second"], "give --base MODEL"),
        (["adapter"], "this is an adapter, not a model; give --base"),
        (["recipe.yaml", "first"], "looked at alone"),
        (["recipe.yaml", "--base", "base"], "leave out --base"),
        (["retain.safetensors", "--base", "base"], "give --geometry retain.safetensors"),
        (["first", "--base", "base", "--set", "output.dtype=float32"], "--set changes a recipe"),
        (
            ["first", "--base", "base", "--layers", "7"],
            "inspecting: layers 7: the model has 3 blocks, 0 to 2; leave out 7",
        ),
        (["first", "--base", "base", "--layers", "x"], "expected block numbers"),
        (["first", "--base", "base", "--modules", "query"], "'query' is none; expected some of q, k"),
        (["first", "--base", "base", "--geometry", "recipe.yaml"], "cannot be opened as a safetensors file"),
        (["first", "--base", "base", "--geometry", "a=retain.safetensors", "--geometry", "a=x"], "are called 'a'"),
        (["recipe.yaml", "--geometry", "retain.safetensors"], "two geometries are called 'retain'"),
        (["first", "first", "--base", "base"], "inspecting: two models are called 'first'"),
        (["absent-folder/x/y", "--base", "base"], "inspecting the model 'absent-folder/x/y'"),
        (["first", "--base", "base", "--picture", "seen.pdf"], "drawing into seen.pdf"),
        (["wide", "--base", "base"], "differ in the shape"),
        (["wide", "--geometry", "retain.safetensors"], "is 48 wide there and 56 here"),
        (["nan", "--base", "base"], "NaN"),
        (["nan"], "NaN"),
    ],
)
def test_what_cannot_be_inspected_exits_2(here: Path, arguments: list[str], message: str) -> None:
    if "wide" in arguments and not (here / "wide").is_dir():
        models.checkpoint(here / "wide", seed=1, intermediate_size=56)
    if "nan" in arguments and not (here / "nan").is_dir():
        models.perturbed(here / "base", here / "nan", seed=0, only="nothing is called so")
        tensors = tensors_of(here / "base")
        tensors[QUERY][0, 0] = torch.nan
        save_file(tensors, here / "nan" / "model.safetensors", metadata={"format": "pt"})
    result = CliRunner().invoke(main, ["inspect", *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_geometry_of_other_blocks_or_another_model_is_refused_or_told(root: Path, tmp_path: Path) -> None:
    file = root / "retain.safetensors"
    other = models.checkpoint(tmp_path / "gpt2", "gpt2", seed=1)
    with pytest.raises(InputError, match="has none of the sites"):
        vecsurgery.inspect(other, geometry=[file])
    found = vecsurgery.inspect(root / "second", base=root / "first", geometry=[file], limit=1)
    assert any("which is not the base" in line for line in found.warnings)
    with pytest.raises(InputError, match="energy 1 is no share"):
        vecsurgery.inspect(file, energy=1.0)
    with pytest.raises(InputError, match="top and limit are numbers from 1"):
        vecsurgery.inspect(root / "first", base=root / "base", limit=0)


def test_a_run_s_own_record_does_not_stand_in_the_way(root: Path, tmp_path: Path) -> None:
    copy = models.perturbed(root / "first", tmp_path / "copy", seed=0, only="nothing is called so")
    edit_json(copy / "config.json", use_cache=True)
    assert vecsurgery.inspect(copy, base=root / "base", limit=1).total("copy").norm > 0
