"""Every safetensors file that a run writes, read by the parser that llama.cpp's converter uses for local folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf.utility import SafetensorsLocal
from safetensors.torch import load_file
from support import models
from support.workspace import Workspace

import vecsurgery
from vecsurgery.checkpoint import tensor_bytes

KINDS = {torch.uint8: "U", torch.int16: "I", torch.int32: "I", torch.int64: "I", torch.bfloat16: "BF"}


def read_by_both(file: Path) -> list[str]:
    """Names of a file's tensors, whose types, shapes, and bytes are the same by both readers."""
    other, own = SafetensorsLocal(file).tensors, load_file(file)
    assert list(other) == sorted(own)
    for name, found in other.items():
        assert (found.dtype, found.shape) == (_name(own[name].dtype), tuple(own[name].shape))
        stored = bytes(tensor_bytes(own[name]))
        assert found.data_range.size == len(stored)
        if stored:
            assert found.mmap_bytes().tobytes() == stored
    return list(other)


def _name(dtype: torch.dtype) -> str:
    return f"{KINDS.get(dtype, 'F')}{8 * dtype.itemsize}"


@pytest.mark.parametrize(
    ("output", "pattern", "count"),
    [
        ({}, "model.safetensors", 1),
        ({"dtype": "float32", "shard_size": "40KB"}, "model-*.safetensors", 3),
        ({"format": "delta", "shard_size": "40KB"}, "delta-*.safetensors", 2),
        ({"format": "adapter", "rank": 4, "others": "drop"}, "adapter_model.safetensors", 1),
        ({"keep_geometry": True}, "**/retain.safetensors", 1),
    ],
)
def test_another_reader_finds_the_same_tensors(
    workspace: Workspace, output: dict[str, Any], pattern: str, count: int
) -> None:
    workspace.recipe["output"] = output
    vecsurgery.run(workspace.write(), workspace.out)
    files = sorted(workspace.out.glob(pattern))
    assert len(files) >= count
    assert sum(len(read_by_both(file)) for file in files) > 0


def test_another_reader_finds_what_undoing_needs(tmp_path: Path) -> None:
    base = models.checkpoint(tmp_path / "base", seed=1, dtype=torch.bfloat16)
    models.perturbed(base, tmp_path / "tuned", seed=2)
    vecsurgery.extract(base, tmp_path / "tuned", tmp_path / "delta")
    vecsurgery.apply(base, tmp_path / "delta", tmp_path / "applied")
    files = sorted(path for folder in ("delta", "applied") for path in (tmp_path / folder).rglob("*.safetensors"))
    assert len(files) >= 2
    assert all(read_by_both(file) for file in files)
