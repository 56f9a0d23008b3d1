"""From what the user calls a model to a folder on this machine: a local path, or a snapshot of the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from vecsurgery.recipe.types import Reference

_SIDE_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.md", "LICENSE*"]
_WEIGHTS = ("*.safetensors", "*.bin")
"""`.bin` is fetched only where the repository has no safetensors."""
_LEFT_OUT = ["*/*", "consolidated*", "training_args.bin", "optimizer*", "scheduler*", "rng_state*"]
"""Subfolders (other formats) and second copies of the weights."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve(reference: Reference, *, offline: bool | None = None) -> Path:
    """The folder of a model or adapter; the hub's cache is used, and filled where something is missing.

    A reference's own adapter is a reference of its own: resolve it too.

    Args:
        reference: as the recipe names it.
        offline: take only what is cached; None follows the variables HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE.

    Raises:
        InputError: no such folder, not cached while offline, no access, or an unknown id or revision.
    """
    if reference.path is not None:
        if not reference.path.is_dir():
            raise InputError(f"{_at(reference)}opening the model {reference.text!r}: {reference.path} is no folder.")
        return reference.path
    local_only = _offline() if offline is None else offline
    folder = _snapshot(reference, _WEIGHTS[0], local_only)
    if not any(folder.glob(_WEIGHTS[0])):
        folder = _snapshot(reference, _WEIGHTS[1], local_only)
    return folder


def plan_download(references: Iterable[Reference], *, offline: bool | None = None) -> int:
    """Bytes that `resolve` would fetch for all of these together, adapters included; nothing is fetched.

    Every reference is looked up, and everything that cannot be had is named in one error, so that the first byte is
    fetched only when all of them can be. Offline, the lookups are in the cache and the answer is 0.

    Raises:
        InputError: every reference that is missing or not accessible, a line each.
    """
    local_only = _offline() if offline is None else offline
    total, problems = 0, []
    for reference in _with_adapters(references):
        try:
            if reference.path is not None or local_only:
                resolve(reference, offline=local_only)
            else:
                total += _bytes_to_fetch(reference)
        except InputError as fault:
            problems.append(str(fault))
    if len(problems) > 1:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise InputError(f"{len(problems)} models cannot be opened:{listed}")
    if problems:
        raise InputError(problems[0])
    return total


@contextmanager
def named_at(reference: Reference | None) -> Iterator[None]:
    """What is raised inside, an InputError, begins with the place of the recipe that names the model, if one does."""
    if not _at(reference):
        yield
        return
    try:
        yield
    except UnsupportedError as refusal:
        raise UnsupportedError(f"{_at(reference)}{refusal}") from refusal
    except InputError as fault:
        raise InputError(f"{_at(reference)}{fault}") from fault


def revision_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache (`…/snapshots/COMMIT`); None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None


def _at(reference: Reference | None) -> str:
    return f"{reference.place}: " if reference is not None and reference.place else ""


def _no_folder(reference: Reference) -> str:
    """Ends messages about hub ids that are not found: a misspelt folder, or one elsewhere, is taken for one."""
    looked_in = reference.folder or Path.cwd()
    if looked_in != Path.cwd() and Path(reference.text).is_dir():
        return (
            f"There is no folder of this name in {looked_in}, where the recipe's relative paths start; there is one in "
            f"{Path.cwd()}: if that is meant, write {os.path.relpath(reference.text, looked_in)}."
        )
    starts = ", where the recipe's relative paths start" if reference.place else ""
    return f"There is no folder of this name in {looked_in}{starts}; if one is meant, look at its spelling."


def _offline() -> bool:
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in values)


def _with_adapters(references: Iterable[Reference]) -> list[Reference]:
    """Each model and adapter once, in order."""
    flat = [part for reference in references for part in (reference, reference.adapter) if part is not None]
    return list({(part.path, part.model, part.revision): part for part in flat}.values())


def _bytes_to_fetch(reference: Reference) -> int:
    """What is missing in the cache; a hub that does not answer is no fault where nothing is."""
    from huggingface_hub.errors import DryRunError

    try:
        files: Any = _ask_hub(reference, _WEIGHTS[0], local_files_only=False, dry_run=True)
    except DryRunError:
        resolve(reference, offline=False)
        return 0
    if not any(file.filename.endswith(".safetensors") for file in files):
        files = _ask_hub(reference, _WEIGHTS[1], local_files_only=False, dry_run=True)
    return sum(file.file_size for file in files if file.will_download)


def _snapshot(reference: Reference, weights: str, local_only: bool) -> Path:
    return Path(_ask_hub(reference, weights, local_files_only=local_only))


def _ask_hub(reference: Reference, weights: str, **options: Any) -> Any:
    """`snapshot_download` with our patterns; every way in which it fails becomes one message.

    Only DryRunError passes: the hub did not answer a dry run, which says nothing about what is cached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    # The library raises its HTTP client's own errors beside its own; which client that is depends on its version.
    http_error: Any = vars(errors)["HTTPError"]
    what = f"{_at(reference)}fetching {reference.text!r} from the hub"
    try:
        return huggingface_hub.snapshot_download(
            reference.model,
            revision=reference.revision,
            allow_patterns=[*_SIDE_FILES, weights],
            ignore_patterns=_LEFT_OUT,
            **options,
        )
    except errors.GatedRepoError as fault:
        raise InputError(f"{what}: it is gated; ask for access on its page, then `hf auth login`.") from fault
    except errors.RevisionNotFoundError as fault:
        raise InputError(f"{what}: it has no revision {reference.revision!r}.") from fault
    except errors.RepositoryNotFoundError as fault:
        raise InputError(
            f"{what}: no such model, or a private one: then `hf auth login` first. {_no_folder(reference)}"
        ) from fault
    except errors.LocalEntryNotFoundError as fault:
        reason = (
            "the network is switched off (HF_HUB_OFFLINE) and it is not, or not completely, in the cache; fetch it "
            "once with the network on"
            if options["local_files_only"]
            else "the hub cannot be reached, and it is not, or not completely, in the cache; try again"
        )
        raise InputError(f"{what}: {reason}, or give a local folder. {_no_folder(reference)}") from fault
    except errors.DryRunError:
        raise
    except (OSError, ValueError, http_error) as fault:
        raise InputError(f"{what}: {fault}") from fault
