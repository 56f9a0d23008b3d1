"""Model references: `path-or-hub-id[@revision][+adapter[@revision]]`, where an existing path is taken literally."""

import re
from pathlib import Path

from .types import Reference

_HUB_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_LOCAL_STARTS = ("/", "./", "../", "~", ".\\", "..\\")


def parse_reference(
    text: str, folder: Path, *, require_files: bool = True, start: str = "the folder of the recipe"
) -> Reference:
    """The model that `text` names.

    A path that exists below `folder` (or absolute) is the local model, whatever characters it has: `@`, `+`, spaces.
    Otherwise the text is split at `+` (behind the longest local path, if it starts with one) and at `@`. A text that is
    clearly a local path (`/`, `./`, `../`, `~`) must exist, unless `require_files` is False. `start`: what `folder` is
    to the user, for messages.

    Raises ValueError with the reason.
    """
    if not text.strip():
        raise ValueError("expected a folder or a hub id; got empty text")
    local = _local(text, folder)
    if local is not None:
        return Reference(text, local, str(local))
    for end in [match.start() for match in re.finditer(r"\+", text)][::-1]:
        local = _local(text[:end], folder) if end else None
        if local is not None:
            adapter = parse_reference(text[end + 1 :], folder, require_files=require_files, start=start)
            return Reference(text, local, str(local), adapter=_only(adapter, text))
    model, plus, rest = text.partition("+")
    adapter_or_none = (
        _only(parse_reference(rest, folder, require_files=require_files, start=start), text) if plus else None
    )
    if _is_clearly_local(model):
        path = _missing(model, folder, start if require_files else None)
        return Reference(text, path, str(path), adapter=adapter_or_none)
    name, revision = _hub(model, folder)
    return Reference(text, None, name, revision, adapter_or_none, folder=folder.absolute())


def canonical(reference: Reference) -> str:
    """The reference as text that names the same model from any folder."""
    text = reference.model if reference.revision is None else f"{reference.model}@{reference.revision}"
    return text if reference.adapter is None else f"{text}+{canonical(reference.adapter)}"


def absolute(text: str, folder: Path) -> Path:
    """A path of the recipe as an absolute one; links are followed only where `..` demands it."""
    path = (folder / Path(text).expanduser()).absolute()
    if ".." not in path.parts:
        return path
    return path.resolve() if path.name == ".." else path.parent.resolve() / path.name


def _local(text: str, folder: Path) -> Path | None:
    """The folder of that name if there is one. Raises ValueError where it is a file."""
    try:
        path = absolute(text, folder)
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, an unknown ~user, a NUL: no local path
        return None
    if exists and not path.is_dir():
        raise ValueError(f"{path} is a file; expected the folder of a checkpoint, or a hub id")
    return path if exists else None


def _is_clearly_local(text: str) -> bool:
    return text.startswith(_LOCAL_STARTS) or text in (".", "..")


def _missing(text: str, folder: Path, start: str | None) -> Path:
    """A local path that does not exist, where that is allowed: no `start`. Raises ValueError where it is not."""
    before, at, _ = text.rpartition("@")
    if at and _local(before, folder) is not None:
        raise ValueError(f"{before} is a local folder and has no revisions; leave out what follows the @")
    try:
        path = absolute(text, folder)
    except RuntimeError as error:
        raise ValueError(f"the path {text} cannot be resolved: {error}") from error
    if start is not None:
        raise ValueError(f"there is no folder {path} (relative paths start at {start})")
    return path


def _hub(text: str, folder: Path) -> tuple[str, str | None]:
    """Hub id and revision of `org/name[@revision]` or `name[@revision]`."""
    name, at, revision = text.partition("@")
    if at and name and _local(name, folder) is not None:
        raise ValueError(f"{name} is a local folder and has no revisions; leave out what follows the @")
    parts = name.split("/")
    valid = 1 <= len(parts) <= 2 and all(_HUB_NAME.fullmatch(part) for part in parts) and len(name) <= 96
    if not valid or "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError(
            f"'{name}' is neither an existing folder (looked in {folder.absolute()}) nor a hub id, which is name or "
            "org/name of letters, digits, '-', '_' and '.'"
        )
    if at and not _REVISION.fullmatch(revision):
        raise ValueError(f"'{revision}' is no revision; expected a branch, a tag or a commit after the @")
    return name, revision if at else None


def _only(adapter: Reference, text: str) -> Reference:
    if adapter.adapter is not None:
        raise ValueError(f"'{text}' names more than one adapter; expected at most one")
    return adapter
