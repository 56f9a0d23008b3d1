"""What the demonstrations write for the user: a folder that is free, and shipped recipes with the demo's own files."""

from collections.abc import Mapping
from pathlib import Path

from vecsurgery.errors import InputError


def output_folder(out: Path | None) -> Path:
    """`out`, or `vecsurgery-demo` in the current folder, with a number where that exists; made if need be.

    Raises InputError where `out` exists and is not empty.
    """
    folder = Path("vecsurgery-demo") if out is None else out
    number = 2
    while out is None and folder.exists():
        folder = Path(f"vecsurgery-demo-{number}")
        number += 1
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"writing the demo to {folder}: it exists and is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def filled_in(name: str, text: str, places: Mapping[str, str]) -> str:
    """The text of the shipped recipe `name` with other words for its examples; every setting stays.

    Raises ValueError where an example does not stand in it exactly once.
    """
    for example, own in places.items():
        if text.count(example) != 1:
            raise ValueError(f"the shipped recipe {name!r} names {example!r} {text.count(example)} times, expected 1")
        text = text.replace(example, own)
    return text
