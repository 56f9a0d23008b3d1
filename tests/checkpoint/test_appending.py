"""A file whose tensors are known as they come is an ordinary safetensors file, aligned, whole or not there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vecsurgery.checkpoint.appending import FILLER, appending, written
from vecsurgery.checkpoint.files import safetensors_headers
from vecsurgery.checkpoint.hashes import file_sha256
from vecsurgery.errors import RunError

TENSORS = {
    "bytes": torch.arange(3, dtype=torch.uint8),
    "half": torch.arange(5).to(torch.bfloat16),
    "wide": torch.arange(4, dtype=torch.float64).reshape(2, 2),
    "one": torch.tensor(7.0),
}


def test_tensors_of_any_width_and_pieces_are_read_back(tmp_path: Path) -> None:
    with appending(tmp_path, "a.safetensors", TENSORS) as target:
        for name, tensor in TENSORS.items():
            target.add(name, [tensor[:1], tensor[1:]] if tensor.ndim else [tensor])
    found = load_file(tmp_path / "a.safetensors")
    assert {name for name in found if not name.startswith(FILLER)} == set(TENSORS)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert written(tmp_path / "a.safetensors").sha256 == file_sha256(tmp_path / "a.safetensors")


def test_a_tensor_without_entries_is_not_there(tmp_path: Path) -> None:
    with appending(tmp_path, "a.safetensors", ["none", "some"]) as target:
        assert target.add("none", [torch.zeros(0, 3)]) is None
        assert target.add("some", [torch.zeros(0, 3), torch.ones(2, 3), torch.ones(1, 3)]) is not None
    assert safetensors_headers(tmp_path / "a.safetensors").keys() == {"some"}
    assert safetensors_headers(tmp_path / "a.safetensors")["some"].shape == (3, 3)


def test_what_is_raised_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a piece of type"), appending(tmp_path, "a.safetensors", ["x"]) as target:
        target.add("x", [torch.ones(1), torch.ones(1, dtype=torch.float64)])
    assert not list(tmp_path.iterdir())


def test_more_names_than_were_told_are_refused(tmp_path: Path) -> None:
    names = [f"a long name that nobody told {number}" for number in range(30)]
    with pytest.raises(RunError, match="were kept free"), appending(tmp_path, "a.safetensors", ["x"]) as target:
        _ = [target.add(name, [torch.ones(1)]) for name in names]
    assert not list(tmp_path.iterdir())
