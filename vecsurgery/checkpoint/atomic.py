"""Small files that are either there in full or not there: written beside their place, synced, renamed."""

import os
from pathlib import Path

from vecsurgery.checkpoint.disk import write_errors

PART = ".part"
"""Ending of a file that is being written."""


def part_of(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(path.name + PART)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one, or the new one, never a mixture.

    Errors: RunError where the disk is full.
    """
    part = part_of(path)
    with write_errors(path):
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
