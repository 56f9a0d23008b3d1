"""Data files for the tests of this room."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON Lines and returns the file."""

    def write(*rows: object, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
