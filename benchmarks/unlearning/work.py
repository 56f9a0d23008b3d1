"""The work folder: each result is made once, under a name, for the settings, model and data it was begun with."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._once import once
from benchmarks.unlearning.settings import Settings


@dataclass(frozen=True)
class Work:
    """A seed's folder, what it is made from, and a function that is told what happens."""

    folder: Path
    model: Path
    data: Path
    settings: Settings
    seed: int
    say: Callable[[str], None]

    def rows(self, part: str) -> Path:
        """The file of a part of the rows."""
        return self.folder / "rows" / f"{part}.jsonl"

    def checkpoint(self, name: str) -> Path:
        """The folder of a model of this seed."""
        return self.folder / "models" / name

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON result `name`: read where it exists, else made and written, with the seconds that it took."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            self.say(f"seed {self.seed}: {name}")
        return once(path, make)


def open_work(folder: Path, model: Path, data: Path, settings: Settings, seed: int, say: Callable[[str], None]) -> Work:
    """The folder of a seed, made or gone on with. Raises ValueError where it was begun for something else."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    begun = {
        "settings": settings.to_dict(),
        "model": _digest(model / "config.json"),
        "data": _digest(data / "full.json"),
    }
    text = json.dumps(begun, indent=1) + "\n"
    path = folder / "settings.json"
    if not path.exists():
        path.write_text(text)
    if json.loads(path.read_text()) != json.loads(text):
        raise ValueError(f"{folder} was begun with other settings, model or data; give another folder, or delete it")
    seed_folder = folder / f"seed-{seed}"
    seed_folder.mkdir(exist_ok=True)
    return Work(seed_folder, model.resolve(), data.resolve(), settings, seed, say)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
