"""Writing a checkpoint again with other numbers: the same files, with the same headers, around other bytes."""

import json
from pathlib import Path

from vecsurgery.checkpoint.shards import INDEX_FILE, ShardPlan, index_text, plan_shards, plan_tensor
from vecsurgery.checkpoint.stored import Stored

_LENGTH = 8
_SHARD_SIZE = 5_000_000_000


def mirrored_files(source: Stored) -> tuple[list[ShardPlan], bytes | None]:
    """The weight files of a checkpoint as plans for others of the same names, types and shapes, and its index's bytes.

    safetensors files keep their names, the order of their tensors and their headers byte for byte, so that the same
    numbers give the same files. Weights in torch's format are written as safetensors in the usual order.
    """
    files = list(dict.fromkeys(header.file for header in source.headers.values()))
    if any(file.suffix != ".safetensors" for file in files):
        named = [(info.name, info.dtype, info.shape) for info in source.layout.tensors.values()]
        shards = plan_shards(named, _SHARD_SIZE)
        text = index_text(shards)
        return shards, None if text is None else text.encode()
    index = source.folder / INDEX_FILE
    return [_mirrored(source, file) for file in files], index.read_bytes() if index.is_file() else None


def _mirrored(source: Stored, file: Path) -> ShardPlan:
    with file.open("rb") as stream:
        length = stream.read(_LENGTH)
        text = stream.read(int.from_bytes(length, "little"))
    places = {name: entry["data_offsets"] for name, entry in json.loads(text).items() if name != "__metadata__"}
    ordered = sorted(places, key=lambda name: tuple(places[name]))
    tensors = [plan_tensor(name, source.headers[name].dtype, source.headers[name].shape) for name in ordered]
    return ShardPlan(file.name, tuple(tensors), length + text)
