"""Room on disk: no output takes more than its plan says at any time, and what may not fit is refused at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import models
from support.results import write_adapter

import vecsurgery
from vecsurgery.checkpoint import appending, disk, writer
from vecsurgery.errors import InputError
from vecsurgery.planning import plans
from vecsurgery.surgery import delta_output

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`into`, `tuned` and an adapter; bfloat16."""
    folder = tmp_path_factory.mktemp("room")
    models.checkpoint(folder / "into", seed=1, dtype=torch.bfloat16, num_hidden_layers=1)
    models.perturbed(folder / "into", folder / "tuned", seed=2, size=1.0)
    write_adapter(folder / "adapter", {"model.layers.0.self_attn.q_proj": 32})
    return folder


def _most(folder: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> int:
    """The most bytes that weight files, and files without a name, took while `act` wrote, less their headers."""
    taken, unnamed, headers = [0], list[Any](), dict[Path, int]()
    made, write_all, begin = delta_output.tempfile.TemporaryFile, writer.write_all, appending.Appending.__init__

    def temporary(*args: Any, **kwargs: Any) -> Any:
        unnamed.append(made(*args, **kwargs))
        return unnamed[-1]

    def beginning(self: appending.Appending, path: Path, file: Any, room: int) -> None:
        headers[path] = room
        begin(self, path, file, room)

    def writing(file: Any, data: memoryview, path: Path) -> None:
        headers.setdefault(path, len(data))  # of files that are planned, the first bytes
        write_all(file, data, path)
        held = sum(os.fstat(each.fileno()).st_size for each in unnamed if not each.closed)
        held += sum(each.stat().st_size for each in folder.rglob("*") if each.suffix in (".safetensors", ".part"))
        taken.append(held - sum(headers.values()))

    with monkeypatch.context() as watched:
        watched.setattr(delta_output.tempfile, "TemporaryFile", temporary)
        watched.setattr(appending.Appending, "__init__", beginning)
        for module in (writer, appending):
            watched.setattr(module, "write_all", writing)
        act()
    return max(taken)


@pytest.mark.parametrize(
    ("output", "deltas"),
    [
        ({"format": "delta"}, {}),
        ({"format": "delta", "dtype": "float16"}, {"x": {"adapter": "{root}/adapter"}}),
        ({"format": "delta"}, {"x": {"adapter": "{root}/adapter"}}),
        ({"format": "delta", "dtype": "float32"}, {}),
        ({"format": "adapter"}, {"x": {"adapter": "{root}/adapter"}}),
        ({"format": "adapter", "rank": 3, "others": "drop"}, {}),
    ],
    ids=str,
)
def test_no_output_takes_more_room_than_is_planned(
    root: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Any, deltas: Any
) -> None:
    given = {"deltas": json.loads(json.dumps(deltas).replace("{root}", str(root)))} if deltas else {}
    most = _most(tmp_path, monkeypatch, lambda: run("out", **given, output=output))
    plan = vecsurgery.plan(tmp_path / "out.yaml")
    values = [load_file(file).values() for file in (tmp_path / "out").glob("*.safetensors")]
    size = sum(tensor.nbytes for found in values for tensor in found)
    planned = plan.disk - plans.SIDE_FILES
    assert size <= planned - plan.room.passing
    assert size <= most <= planned


def test_what_does_not_fit_with_its_patch_is_refused_before_anything_is_written(
    root: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = {"output": {"format": "delta", "dtype": "float16"}}
    run("fits", **output)
    plan = vecsurgery.plan(tmp_path / "fits.yaml")
    assert "of patches (an upper bound, as if every entry needed one)" in plan.text()
    free = plan.disk - plan.room.patches // 2
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(InputError, match=r"writing the delta \(at most .* of values, .* of patches"):
        run("full", **output)
    with pytest.raises(InputError, match="writing the delta"):
        vecsurgery.extract(root / "into", root / "tuned", tmp_path / "full", dtype="float16")
    free = _weights(root / "into")
    for way in (vecsurgery.apply, vecsurgery.undo):
        with pytest.raises(InputError, match=r"writing the checkpoint \(.* of tensors\)"):
            way(root / "into", tmp_path / "fits", tmp_path / "full")
    assert not list(tmp_path.glob("full*/"))


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
