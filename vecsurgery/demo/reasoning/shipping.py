"""The demo's models of the first seed, which are shipped because training them takes minutes.

`python -m vecsurgery.demo.reasoning.shipping` trains them again and puts them in place.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from vecsurgery.demo.reasoning.models import Trained, train_family
from vecsurgery.demo.reasoning.settings import Settings
from vecsurgery.demo.reasoning.sums import sums

SHIPPED_SEED = 0
_FOLDER = Path(__file__).with_name("shipped")


def shipped_models() -> Trained:
    """Base, reasoning and instruction model of the first seed, and their rows, as `train_family` makes them."""
    folders = (_FOLDER / name for name in ("base", "reasoning", "instruct", "data"))
    return Trained(SHIPPED_SEED, "sums", *folders)


def ship() -> None:
    """Train the family of the first seed, or take it from the cache, and put it among the package's files."""
    trained = train_family(sums, SHIPPED_SEED)
    shutil.rmtree(_FOLDER, ignore_errors=True)
    shutil.copytree(trained.base.parent, _FOLDER)
    settings = json.dumps(asdict(Settings()), indent=1) + "\n"
    (_FOLDER / "settings.json").write_text(settings, encoding="utf-8")


if __name__ == "__main__":
    ship()
