"""Every benchmark runs at a tiny size and says what its table promises: scripts that nobody runs rot."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
from support import models

from benchmarks import _checkpoints, measure, memory, rain, real_model, spectral, startup, write
from benchmarks._common import Outcome, process, table
from vecsurgery.checkpoint import Stored


def _here(function: Callable[..., Any], **arguments: Any) -> Outcome:
    """In place of `child`: the same call in this process, which is spared the imports. Its memory is made up."""
    start = time.perf_counter()
    result = json.loads(json.dumps(function(**json.loads(json.dumps(arguments)))))
    return Outcome(result, time.perf_counter() - start, 10**8, 10**8)


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (measure, memory, rain, real_model, spectral, write):
        monkeypatch.setattr(script, "child", _here)


def _options(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(json=True, folder=None, model=None, data=None, **values)


def test_memory_compares_depths_and_shards_with_the_bound(tmp_path: Path) -> None:
    options = _options(size="tiny", layers="1", shards=3, tokens=24, phases="measure,fit,write")
    options.folder = tmp_path
    (rows,) = memory.main(options).values()
    many = len(_checkpoints.TINY.with_layers(1).with_shards(3).files)
    assert [(row["phase"], row["shards"]) for row in rows] == [
        ("fit", 1),
        ("fit", many),
        ("measure", 1),
        ("measure", many),
        ("write", 1),
        ("write", many),
    ]
    assert all(row["of bound"] < 1.0 and row["to the first case"] == 1.0 for row in rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shards", [1, 3, 24])
def test_the_files_of_a_shape_are_those_that_are_written(tmp_path: Path, shards: int) -> None:
    shape = _checkpoints.TINY.with_shards(shards)
    for folder in _checkpoints.make_pair(tmp_path, shape):
        assert sorted(file.name for file in folder.glob("*.safetensors")) == sorted(shape.files)


def test_measure_compares_with_bare_forwards_of_the_same_tokens(tmp_path: Path) -> None:
    texts = models.write_texts(tmp_path / "texts.jsonl", 3)
    folder = models.checkpoint(tmp_path / "model", "llama")
    options = _options(size="tiny", tokens=24)
    options.model, options.data = folder, texts
    ((row,),) = measure.main(options).values()
    assert row["positions"] <= row["tokens"]
    assert row["ratio"] == pytest.approx(row["measure (s)"] / row["forward (s)"])


def test_write_compares_programs_that_make_the_same_merge(tmp_path: Path) -> None:
    options = _options(size="tiny", tensors=0)
    options.folder = tmp_path
    (rows,) = write.main(options).values()
    programs = ["copying the bytes", "copy loop", "plain loop", "vecsurgery run", "mergekit-yaml"]
    assert [row["program"] for row in rows] == programs
    assert rows[-1]["time ratio"] == 1.0


def test_tiny_tensors_come_as_experts_and_as_blocks(tmp_path: Path) -> None:
    shapes = write._of_many_tensors(10_000)
    assert {what: len(shape.tensors()) for what, shape in shapes.items()} == {"experts": 10003, "blocks": 10002}
    small = write._of_many_tensors(60)["experts"]
    folder, _ = _checkpoints.make_pair(tmp_path / "pair", small)
    layout = Stored(folder).layout
    assert layout.architecture == "mixtral"
    assert set(layout.tensors) == {name for name, _, _ in small.tensors()}
    assert sum(prod(info.shape) for info in layout.tensors.values() if len(info.shape) > 1) == small.parameters


def test_real_model_runs_both_projectors_on_a_delta_that_training_made(tmp_path: Path) -> None:
    folder = models.checkpoint(tmp_path / "model", "llama")
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"question": question, "answer": "w9 w10"} for question in models.sentences(4, seed=0)]
    for name in ("forget10.json", "retain90.json"):
        (data / name).write_text(json.dumps(rows))
    options = _options(steps=2, seed=0, rows=20)
    options.model, options.data = folder, data
    tables = real_model.main(options)
    for row in tables["Effect on the delta"]:
        assert 0 < row["rank, least"] <= row["most"]
        assert row["left, intended"] <= 0.11
    assert len(tables["Cost"]) == 4


def test_startup_times_commands_that_load_nothing() -> None:
    (rows,) = startup.main(_options(repeats=1)).values()
    assert [row["command"] for row in rows][:2] == ["vecsurgery --help", "vecsurgery check, wrong recipe"]


def test_peak_memory_of_a_job_holds_what_it_allocated() -> None:
    small, large = (
        process([sys.executable, "-c", f"x = b'1' * {size}; import time; time.sleep(0.3)"]) for size in (1, 10**8)
    )
    assert 0.9e8 < large.anonymous - small.anonymous < 1.2e8


def test_a_failing_job_reports_its_error() -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        process([sys.executable, "-c", "raise SystemExit('out of luck')"])


def test_a_table_is_markdown_with_numbers_on_the_right() -> None:
    assert table([{"name": "a", "n": 1.23456}]).splitlines() == [
        "| name |    n |",
        "|------|-----:|",
        "| a    | 1.23 |",
    ]


def test_rain_compares_each_stage_with_a_bare_forward_and_its_file_with_the_checkpoint(tmp_path: Path) -> None:
    options = _options(size="tiny", length=16)
    options.folder = tmp_path
    stages, (sizes,) = rain.main(options).values()
    assert [row["stage"] for row in stages] == [
        "geometry of the thoughts",
        "attention on instructions",
        "control, three candidates",
        "write",
    ]
    assert all(row["ratio"] > 0.0 and row["tokens"] > 0 for row in stages[:3])
    assert sizes["geometry file (MB)"] > 0.0
    assert not list(tmp_path.iterdir())


def test_spectral_compares_with_its_products_and_factors_with_dense_matrices() -> None:
    (dense, flat), (low,) = spectral.main(_options(size=48, deltas=3, rank=8, low_rank=2, repeats=1)).values()
    assert dense["products"] >= 3 + 3 * 2
    assert dense["gflop"] > 3 * 2 * 48**2 * 8 / 1e9
    assert dense["ratio"] == pytest.approx(dense["project and add (s)"] / dense["products alone (s)"])
    assert (dense["spectrum"], flat["spectrum"], flat["matrix"], flat["rank"]) == ("slow", "flat", "12 × 12", 2)
    for row in (dense, flat):
        assert row["to the bound"] == pytest.approx(row["project and add (s)"] / row["bound (s)"])
    assert low["times faster"] == pytest.approx(low["dense (s)"] / low["factored (s)"])


def test_a_table_has_a_column_for_every_key_and_empty_cells() -> None:
    text = table([{"a": 1.0, "b": "x"}, {"a": None, "c": 2}])
    assert text.splitlines()[0].replace(" ", "") == "|a|b|c|"
    assert text.splitlines()[-1].replace(" ", "") == "|||2|"
