"""A tiny checkpoint and question files, as TOFU has them, in words that its tokenizer knows."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import models


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a word-level tokenizer."""
    return models.checkpoint(tmp_path_factory.mktemp("evaluated") / "model", seed=3)


@pytest.fixture
def tofu(tmp_path: Path) -> Callable[..., Path]:
    """Writes question files: `count` rows, with other answers unless `plain`."""

    def write(count: int = 5, *, seed: int = 0, plain: bool = False, name: str = "forget.jsonl") -> Path:
        generator = random.Random(seed)

        def words(number: int) -> str:
            return " ".join(f"w{generator.randrange(9, models.VOCABULARY)}" for _ in range(number))

        rows: list[dict[str, Any]] = []
        for _ in range(count):
            row: dict[str, Any] = {"question": words(4) + " ?", "answer": words(generator.randrange(2, 6))}
            if not plain:
                row |= {"paraphrased_answer": words(4), "perturbed_answer": [words(3), words(5), words(2)]}
            rows.append(row)
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
