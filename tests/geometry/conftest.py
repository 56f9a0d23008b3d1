"""A tiny model and samples to measure."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models

from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.checkpoint import Stored


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored Llama of three blocks, 32 wide."""
    return models.checkpoint(tmp_path_factory.mktemp("llama"), "llama", tokenizer=False)


@pytest.fixture(scope="session")
def weights(folder: Path) -> Any:
    return Stored(folder)


def _samples(count: int, *, seed: int = 0, length: int = 9, names: str = "row") -> Samples:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        ids = tuple(torch.randint(0, 160, (length,), generator=generator).tolist())
        made.append(Sample(ids, tuple(range(1, length)), (), f"{names}{number}", f"data.jsonl:{number + 1}"))
    fingerprint = hashlib.sha256(repr([(sample.ids, sample.positions) for sample in made]).encode()).hexdigest()
    counts = {"rows": count, "samples": count, "positions": count * (length - 1)}
    return Samples(tuple(made), counts, fingerprint)


@pytest.fixture
def make() -> Callable[..., Samples]:
    return _samples
