"""The demo's models of the first seed, which are shipped because training them takes minutes.

`python -m vecsurgery.demo.reasoning.shipping` trains them again and puts them in place.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vecsurgery.demo.reasoning.models import Trained, train_family
from vecsurgery.demo.reasoning.settings import Settings
from vecsurgery.demo.reasoning.sums import sums

SHIPPED_SEED = 0
_FOLDER = Path(__file__).with_name("shipped")


def shipped_models() -> Trained:
    """Base, reasoning and instruction model of the first seed, and their rows, as `train_family` makes them."""
    folders = (_FOLDER / name for name in ("base", "reasoning", "instruct", "data"))
    return Trained(SHIPPED_SEED, "sums", *folders)


def made_of() -> dict[str, Any]:
    """What decides the shipped models beside the training itself: settings, and a digest of all that they read."""
    settings, family = Settings(), sums(SHIPPED_SEED)
    rows = [
        *family.base_texts(),
        *family.base_rows(SHIPPED_SEED, settings.times),
        *family.reasoning_rows(SHIPPED_SEED, settings.times),
        *family.instruction_rows(SHIPPED_SEED, settings.times),
    ]
    return {"settings": asdict(settings), "read": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}


def ship() -> None:
    """Train the family of the first seed, or take it from the cache, and put it among the package's files."""
    trained = train_family(sums, SHIPPED_SEED)
    shutil.rmtree(_FOLDER, ignore_errors=True)
    shutil.copytree(trained.base.parent, _FOLDER, ignore=shutil.ignore_patterns("files.json"))
    (_FOLDER / "made-of.json").write_text(json.dumps(made_of(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    ship()
