"""Files that are either there in full or not there: written beside their place, synced, renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from vecsurgery.checkpoint.disk import write_errors

PART = ".part"
"""Ending of a file that is being written."""


def part_of(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(path.name + PART)


@contextmanager
def replacing(path: Path) -> Iterator[FileIO]:
    """A file to write to, `NAME.part`, which is synced and takes the place of `path` at the end.

    A crash at any moment leaves the old file, or the new one, never a mixture; what is raised meanwhile passes through
    and leaves no part. Errors: RunError where the disk is full.
    """
    part = part_of(path)
    try:
        with write_errors(path):
            file = part.open("wb", buffering=0)
        with file:
            yield file
            with write_errors(path):
                os.fsync(file.fileno())
        with write_errors(path):
            part.replace(path)
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)  # there only where something failed


def write_all(file: FileIO, data: memoryview, path: Path) -> None:
    """Write bytes to an unbuffered file, which may take less than it is given.

    Errors: RunError naming `path` where the disk is full.
    """
    with write_errors(path):
        while data:
            data = data[file.write(data) :]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file by `replacing`. Errors: RunError where the disk is full."""
    with replacing(path) as file:
        write_all(file, memoryview(data), path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
