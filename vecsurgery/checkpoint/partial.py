"""A folder that is being written: OUT.partial, bound to one plan, with a journal of what is finished in it.

OUT exists only when it is complete.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vecsurgery.checkpoint import atomic
from vecsurgery.checkpoint.disk import write_errors
from vecsurgery.checkpoint.writer import WrittenFile
from vecsurgery.errors import InputError, RunError

_STATE = ".vecsurgery"
"""Folder inside OUT.partial that holds the plan's hash, the lock and the journal; moved out and removed at the end."""
_STATE_NAMES = frozenset({"plan", "lock", "journal"})
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Entry:
    """A finished file, and what its writer wanted to remember about it."""

    written: WrittenFile
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """What is finished in a partial folder: one small file an entry, written after the file that it speaks of."""

    partial: Path

    @property
    def folder(self) -> Path:
        return self.partial / _STATE / "journal"

    def record(self, written: WrittenFile, facts: Mapping[str, Any]) -> None:
        """Remember a finished file (name relative to the partial folder) with JSON-serialisable facts, durably."""
        entry = {"file": written.file, "size": written.size, "sha256": written.sha256, "facts": dict(facts)}
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(self._entry_path(written.file), json.dumps(entry).encode())

    def finished(self) -> dict[str, Entry]:
        """Finished files by name: those with an entry that are there with the recorded size.

        Anything else is to be written again. Errors: RunError for an entry that cannot be read.
        """
        entries = {}
        for path in sorted(self.folder.glob("*.json")):
            entry = self._read(path)
            file = self.partial / entry.written.file
            if file.is_file() and file.stat().st_size == entry.written.size:
                entries[entry.written.file] = entry
        return entries

    def _entry_path(self, file: str) -> Path:
        return self.folder / (file.replace("%", "%25").replace("/", "%2F") + ".json")

    def _read(self, path: Path) -> Entry:
        try:
            entry = json.loads(path.read_text("utf-8"))
            return Entry(WrittenFile(entry["file"], entry["size"], entry["sha256"]), entry["facts"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"resuming {self.partial}: the journal entry {path} is damaged ({error}); "
                "delete that entry and run the same command again: its file is written anew"
            ) from error


@dataclass(frozen=True)
class Partial:
    """An output in the making. Files go into `path`; they get the name `out` all at once."""

    out: Path
    path: Path
    resumed: bool
    """True where an earlier run of the same plan left something."""

    @property
    def journal(self) -> Journal:
        return Journal(self.path)


def partial_path(out: Path) -> Path:
    """OUT.partial, beside OUT."""
    return out.with_name(out.name + ".partial")


def left_over(out: Path) -> int:
    """Bytes of what an interrupted run has left of an output."""
    partial = partial_path(out.resolve())
    return sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.is_dir() else 0


def check_output(out: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output that is a file, holds something, is an input, holds one, or lies within one.

    A folder inside a model's is taken for one of its files by whoever copies, publishes or hashes the model.
    Errors: InputError.
    """
    target = out.resolve()
    for folder in inputs:
        source = folder.resolve()
        for place in (target, partial_path(target)):
            if place == source or place in source.parents:
                raise InputError(
                    f"writing to {out}: {place} is, or holds, the input {folder}; choose an output that is no input"
                )
        if source in target.parents:
            raise InputError(
                f"writing to {out}: it lies within the input {folder}, which would change by it; choose an output "
                "beside the inputs"
            )
    if target.exists() and not target.is_dir():
        raise InputError(f"writing to {out}: a file of that name exists, expected a new or an empty folder")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(
            f"writing to {out}: the folder exists and is not empty; choose another name, or delete it to write it anew"
        )


@contextmanager
def open_partial(out: Path, plan_hash: str, *, inputs: Sequence[Path] = ()) -> Iterator[Partial]:
    """Create OUT.partial for a plan, or go on in the one that an interrupted run of the same plan left.

    While it is open, no second run can work in it. It stays when the work fails, so that it can be resumed.
    `plan_hash`: of everything that determines the result. `inputs`: folders that are read.
    Errors: InputError where OUT is taken (see `check_output`), where OUT.partial belongs to another plan or is none of
    ours, or where another run works in it.
    """
    check_output(out, inputs)
    target = out.resolve()
    path = partial_path(target)
    state = path / _STATE
    with write_errors(path):
        _refuse_foreign(path)
        _take_back(path)
        _refuse_unknown(path)
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, path)
        resumed = _bind(path, plan_hash)
        _remove_parts(path)
        yield Partial(target, path, resumed)
    finally:
        os.close(descriptor)


def publish(partial: Partial, config: bytes, *, failed: bool = False, name: str = CONFIG_FILE) -> Path:
    """Finish: write config.json as the last file, sync everything, and give the folder its name in one step.

    The journal is moved out before, so that what has the name holds nothing else, wherever this is cut off.

    `name`: of the last file, where the folder is no checkpoint. `config`: its bytes. `failed`: the result does not get
    the name OUT but OUT.failed, or the first of OUT.failed-2, OUT.failed-3 … that is free. Call it inside
    `open_partial`. Returns the folder. Errors: RunError where the file system fails, InputError where something came
    into being at OUT meanwhile.
    """
    if not failed:
        check_output(partial.out)
    target = _failed_path(partial.out) if failed else partial.out
    atomic.write_bytes(partial.path / name, config)
    with write_errors(target):
        _sync_tree(partial.path)
        aside = _aside(partial.path)
        if aside.exists():  # left by a run that was cut off behind its renaming
            shutil.rmtree(aside)
        (partial.path / _STATE).replace(aside)
        partial.path.replace(target)
        atomic.sync_folder(target.parent)
        shutil.rmtree(aside)
    return target


def _aside(path: Path) -> Path:
    """Where the state of OUT.partial is while the folder gets its name."""
    return path.with_name(f"{path.name}.state")


def _take_back(path: Path) -> None:
    """Put back the state of a folder that was cut off just before it got its name.

    Errors: InputError where the run is not cut off but at work.
    """
    aside, state = _aside(path), path / _STATE
    if not aside.is_dir() or not path.is_dir() or state.exists():
        return
    with (aside / "lock").open("rb") as lock:
        _hold(lock.fileno(), path)
        aside.replace(state)


def _failed_path(out: Path) -> Path:
    """A name beside OUT that nothing has: what failed before is kept."""
    path, number = out.with_name(f"{out.name}.failed"), 2
    while path.exists():
        path, number = out.with_name(f"{out.name}.failed-{number}"), number + 1
    return path


def _refuse_foreign(path: Path) -> None:
    """Refuse names that something of another origin has: the folder's, and that of its state while it is published."""
    aside = _aside(path)
    for taken in (path, aside):
        if taken.exists() and not taken.is_dir():
            raise InputError(f"writing to {taken}: a file of that name is in the way; move it away")
    if aside.is_dir() and not {entry.name for entry in aside.iterdir()} <= _STATE_NAMES:
        raise InputError(f"writing to {path}: {aside} holds files of another origin; move it away")


def _refuse_unknown(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()) and not (path / _STATE).is_dir():
        raise InputError(
            f"writing to {path}: the folder holds files of another origin; move it away or choose another output"
        )


def _hold(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"writing to {path}: another run is working in it; wait until it ends, or choose another output"
        ) from error


def _lock(descriptor: int, path: Path) -> None:
    _hold(descriptor, path)
    lock = path / _STATE / "lock"
    if not lock.exists() or not os.path.samestat(os.fstat(descriptor), lock.stat()):
        raise InputError(
            f"writing to {path}: another run finished in it at this very moment; look at its result, or choose another "
            "output"
        )


def _bind(path: Path, plan_hash: str) -> bool:
    """Tie the folder to the plan; True where it was tied to the same plan before."""
    plan = path / _STATE / "plan"
    if plan.exists():
        if plan.read_text("utf-8") == plan_hash:
            return True
        raise InputError(
            f"writing to {path}: it holds an unfinished run of another plan (other recipe, inputs or options); "
            "run that recipe again to finish it, or delete the folder, or choose another output"
        )
    if any(entry.name != _STATE for entry in path.iterdir()):
        raise InputError(
            f"writing to {path}: the folder does not say which plan it belongs to; delete it or choose another output"
        )
    atomic.write_bytes(plan, plan_hash.encode())
    return False


def _remove_parts(path: Path) -> None:
    """Remove half-written shards: their bytes are made anew. Only at the top, where shards and side files lie."""
    for part in path.glob("*.safetensors" + atomic.PART):
        part.unlink()


def _sync_tree(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        atomic.sync_folder(Path(folder))
