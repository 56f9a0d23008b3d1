"""Free space: asked for before the first byte is written, and told plainly when it runs out."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vecsurgery.errors import InputError, RunError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
}


def require_space(folder: Path, needed: int, what: str) -> None:
    """Stop before work starts where `needed` bytes for `what` do not fit on the disk of `folder`.

    `folder` need not exist yet. Errors: InputError with both numbers.
    """
    available = shutil.disk_usage(existing_parent(folder)).free
    if needed > available:
        raise InputError(
            f"writing {what} to {folder}: it needs {readable(needed)}, the disk has {readable(available)} free; "
            "free some space or choose an output on another disk"
        )


def existing_parent(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def readable(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, or any other fault of the file system, into one RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        reason = _FULL.get(error.errno or 0, error.strerror or str(error))
        advice = "free some space" if error.errno in _FULL else "remove the cause"
        raise RunError(
            f"writing {path}: {reason}. Finished files are kept: {advice} and run the same command again, "
            "it goes on where it stopped"
        ) from error
