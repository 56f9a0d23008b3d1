"""Every tensor is read at most once a pass, and nothing is written before the shards but geometry files."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.results import tensors_of, write_adapter
from support.workspace import Workspace
from torch import Tensor

import vecsurgery
from vecsurgery.checkpoint import Stored
from vecsurgery.surgery import running

IO = Path("/proc/self/io")


class Reads:
    """A double around `Stored.read`: how often each row of each tensor was read in the pass at hand."""

    def __init__(self) -> None:
        self.current = "before"
        self.rows: dict[str, Counter[tuple[str, str, int]]] = defaultdict(Counter)
        self.written_before = 0
        self.partial_before: dict[str, int] = {}

    def count(self, weights: Stored, tensor: str, rows: "slice | Tensor | None") -> None:
        shape = weights.headers[tensor].shape
        every = torch.arange(shape[0] if shape else 1)
        wanted = every if rows is None else every[rows]
        self.rows[self.current].update((weights.folder.name, tensor, int(row)) for row in wanted)

    def tensors(self, name: str) -> set[tuple[str, str]]:
        return {(folder, tensor) for folder, tensor, _ in self.rows[name]}

    def repeated(self, name: str) -> set[tuple[str, str]]:
        return {(folder, tensor) for (folder, tensor, _), count in self.rows[name].items() if count > 1}


def _written() -> int:
    """Bytes that this process gave to write calls so far."""
    fields = dict(line.split(": ") for line in IO.read_text().splitlines()) if IO.exists() else {"wchar": "0"}
    return int(fields["wchar"])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counter = Reads()
    read, data = Stored.read, Stored.data

    def counted(self: Stored, tensor: str, rows: "slice | Tensor | None" = None) -> Tensor:
        counter.count(self, tensor, rows)
        return read(self, tensor, rows)

    def counted_bytes(self: Stored, tensor: str) -> memoryview:
        counter.count(self, tensor, None)
        return data(self, tensor)

    def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "measure":
                counter.written_before = _written()
            else:
                counter.written_before = _written() - counter.written_before
                folder = args[3].path
                counter.partial_before = {
                    str(path.relative_to(folder)): path.stat().st_size
                    for path in folder.rglob("*")
                    if path.is_file() and ".vecsurgery" not in path.parts
                }
            counter.current = name
            try:
                return function(*args, **kwargs)
            finally:
                counter.current = "after"

        return call

    monkeypatch.setattr(Stored, "read", counted)
    monkeypatch.setattr(Stored, "data", counted_bytes)
    monkeypatch.setattr(running, "measured", within("measure", running.measured))
    monkeypatch.setattr(running, "write_all", within("write", running.write_all))
    return counter


def test_each_tensor_is_read_once_a_pass_where_the_base_is_into(workspace: Workspace, reads: Reads) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    names = set(tensors_of(workspace.root / "into"))
    assert reads.repeated("measure") == set()
    assert reads.repeated("write") == set()
    assert {folder for folder, _ in reads.tensors("measure")} == {"into"}
    assert reads.tensors("write") == {(folder, name) for folder in ("into", "tuned") for name in names}
    assert "after" not in reads.rows


def test_each_tensor_is_read_once_a_pass_with_a_base_of_its_own_and_two_deltas(rain: Workspace, reads: Reads) -> None:
    rain.recipe["deltas"]["second"] = {"tuned": "base", "base": "into"}
    vecsurgery.run(rain.write(), rain.out)
    assert reads.repeated("measure") == set()
    assert reads.repeated("write") == set()
    assert {folder for folder, _ in reads.tensors("write")} == {"into", "tuned", "base"}


def test_each_tensor_is_read_once_a_pass_where_rows_of_the_vocabulary_are_masked(rain: Workspace, reads: Reads) -> None:
    file = rain.root / "tuned" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w100"', '"other"'))
    rain.recipe["steps"][0]["others"] = "source"
    vecsurgery.run(rain.write(), rain.out)
    assert reads.repeated("write") == set()


def test_each_tensor_is_read_once_a_pass_of_a_base_with_an_adapter(workspace: Workspace, reads: Reads) -> None:
    write_adapter(workspace.root / "adapter", {"model.layers.1.self_attn.q_proj": 32})
    workspace.recipe["deltas"] = {"change": {"tuned": "into+./adapter", "base": "base"}}
    vecsurgery.run(workspace.write(), workspace.out)
    assert reads.repeated("write") == set()


def test_blocks_above_the_last_site_are_not_read_when_measuring(workspace: Workspace, reads: Reads) -> None:
    workspace.recipe["steps"][0]["layers"] = 0
    vecsurgery.run(workspace.write(), workspace.out)
    assert not [name for _, name in reads.tensors("measure") if ".layers.2." in name]


@pytest.mark.skipif(not IO.exists(), reason="needs the counters that Linux keeps of each process")
def test_bytes_written_before_the_shards_are_those_of_the_geometry_files(workspace: Workspace, reads: Reads) -> None:
    vecsurgery.run(workspace.write(), workspace.out)
    geometry = (workspace.out / "surgery" / "retain.safetensors").stat().st_size
    assert reads.partial_before == {"surgery/retain.safetensors": geometry}
    journal_lines = 3 * 8192
    assert reads.written_before <= geometry + journal_lines


def test_recorded_hashes_of_inputs_are_those_of_the_tensors(workspace: Workspace) -> None:
    record = vecsurgery.run(workspace.write(), workspace.out)
    expected = {}
    for role, folder in (("into", "into"), ("deltas.change.tuned", "tuned")):
        for name, tensor in tensors_of(workspace.root / folder).items():
            expected[f"{role}: {name}"] = hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
    assert record.get("inputs") == expected
