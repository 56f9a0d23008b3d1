"""Streaming of a shard to disk: byte-exact, atomic, honest about a full disk."""

import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vecsurgery.checkpoint.hashes import file_sha256, tensor_bytes, tensor_sha256
from vecsurgery.checkpoint.shards import ShardPlan, plan_shards
from vecsurgery.checkpoint.writer import write_shard
from vecsurgery.errors import RunError

TYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
]  # fmt: skip


def random_bytes(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).view(dtype).reshape(shape)


def plan(tensors: dict[str, Tensor]) -> ShardPlan:
    entries = [(name, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()]
    (shard,) = plan_shards(entries, 10**9)
    return shard


def ordered(shard: ShardPlan, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(entry.name, tensors[entry.name]) for entry in shard.tensors]


def test_a_written_shard_loads_with_the_same_bytes_for_every_type(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = [(3, 5), (), (0, 4), (7,)]
    tensors = {
        f"{dtype}{shape}": random_bytes(dtype, shape, seed)
        for seed, (dtype, shape) in enumerate((dtype, shape) for dtype in TYPES for shape in shapes)
    }
    tensors["transposed"] = torch.randn(4, 6).T
    shard = plan(tensors)
    written = write_shard(tmp_path, shard, ordered(shard, tensors))
    loaded = load_file(tmp_path / shard.file)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].shape == tensor.shape
        assert bytes(tensor_bytes(loaded[name])) == bytes(tensor_bytes(tensor)), name
    assert written.size == (tmp_path / shard.file).stat().st_size
    assert written.sha256 == file_sha256(tmp_path / shard.file)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_chunks_of_rows_and_whole_tensors_give_the_same_file(tmp_path: Path) -> None:
    tensors = {"embedding": torch.randn(100, 8), "norm": torch.randn(8)}
    shard = plan(tensors)

    def chunks() -> Iterator[tuple[str, Iterator[Tensor | bytes]]]:
        yield "embedding", (tensors["embedding"][start : start + 33] for start in range(0, 100, 33))
        yield "norm", iter([bytes(tensor_bytes(tensors["norm"]))])

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = write_shard(tmp_path / "whole", shard, tensors.items())
    assert write_shard(tmp_path / "parts", shard, chunks()) == whole


def test_the_metadata_say_that_the_file_holds_torch_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2)}
    write_shard(tmp_path, plan(tensors), tensors.items())
    data = (tmp_path / "model.safetensors").read_bytes()
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("a", torch.ones(4)), ("c", torch.ones(2))], "tensor 'c' came, the plan expects 'b'"),
        ([("a", torch.ones(4))], "tensor None came, the plan expects 'b'"),
        ([("a", torch.ones(4).half()), ("b", torch.ones(2))], "type float16 came, the plan says float32"),
        ([("a", torch.ones(3)), ("b", torch.ones(2))], "12 bytes came, 16 expected"),
        ([("a", [torch.ones(4), torch.ones(4)]), ("b", torch.ones(2))], "32 bytes came, 16 expected"),
        ([("a", torch.ones(4)), ("b", torch.ones(2)), ("c", torch.ones(2))], "tensor 'c' came after the last one"),
    ],
)
def test_what_differs_from_the_plan_is_refused_and_leaves_no_file(
    given: list[tuple[str, Tensor]], message: str, tmp_path: Path
) -> None:
    shard = plan({"a": torch.ones(4), "b": torch.ones(2)})
    with pytest.raises(RunError, match=message):
        write_shard(tmp_path, shard, given)
    assert not list(tmp_path.iterdir())


def test_a_fault_of_the_caller_passes_through_and_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.ones(4)
        raise FileNotFoundError("a source vanished")

    with pytest.raises(FileNotFoundError, match="a source vanished"):
        write_shard(tmp_path, plan({"a": torch.ones(4), "b": torch.ones(2)}), failing())
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_grow_is_reported_as_resumable(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(200_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"model\.safetensors: .*run the same command again"):
            write_shard(tmp_path, plan(tensors), tensors.items())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.part").symlink_to("/dev/full")
    tensors = {"a": torch.ones(4)}
    with pytest.raises(RunError, match=r"the disk is full.*free some space"):
        write_shard(tmp_path, plan(tensors), tensors.items())


def test_hash_of_a_tensor_is_that_of_its_bytes_in_row_major_order() -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert tensor_sha256(tensor) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert tensor_sha256(tensor.T) == tensor_sha256(tensor.T.contiguous()) != tensor_sha256(tensor)
