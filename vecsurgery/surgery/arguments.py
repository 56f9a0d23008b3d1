"""The two folders that `apply` and `undo` take: which of them is wrong, what it is, and what was expected."""

from pathlib import Path

from vecsurgery.checkpoint import resolve
from vecsurgery.delta.description import DESCRIPTION_FILE
from vecsurgery.delta.folder import Way
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.recipe import parse_reference
from vecsurgery.recipe.types import Reference

_MODEL = {
    "apply": ("INTO", "the folder or hub id of the model that the delta was made from"),
    "undo": ("EDITED", "the model folder that `apply` made"),
}
_DELTA = "a folder that `vecsurgery extract`, or a run with `output: {format: delta}`, has made"


def require_arguments(model: Reference, delta: Path, way: Way) -> None:
    """Refuse a missing folder, and one of the other kind. A model on the hub is left to whoever opens it.

    Errors: InputError naming the argument, what was found, and what to give.
    """
    first, expected = _MODEL[way]
    given = None if model.path is None else _kind(model.path)
    second = _kind(delta)
    if given == "a delta folder" and second == "a model folder":
        raise InputError(
            f"{way}: {model.text} is a delta folder and {delta} a model folder; give them the other way round: "
            f"vecsurgery {way} {delta} {model.text} OUT"
        )
    if given not in (None, "a model folder"):
        raise InputError(f"{way}: {first} (the first argument), {model.text}, is {given}; expected {expected}")
    if second != "a delta folder":
        raise InputError(f"{way}: DELTA (the second argument), {delta}, is {second}; expected {_DELTA}")


def resolved(model: Reference, way: Way) -> Path:
    """The folder of the model. Errors: InputError naming the argument."""
    try:
        return resolve(model)
    except InputError as error:
        raise InputError(f"{way}: {_MODEL[way][0]} (the first argument): {error}") from error


def parsed(text: str, way: Way) -> Reference:
    """The model as it was given. Errors: InputError naming the argument; UnsupportedError for one with an adapter."""
    first, expected = _MODEL[way]
    try:
        reference = parse_reference(text, Path.cwd(), require_files=False)
    except ValueError as error:
        raise InputError(f"{way}: {first} (the first argument), {text!r}: {error}; expected {expected}") from error
    if reference.adapter is not None:
        raise UnsupportedError(
            f"{way}: {first} (the first argument), {text!r}: a delta belongs to a checkpoint without an adapter on it"
        )
    return reference


def _kind(path: Path) -> str:
    if path.is_file():
        return "a delta folder" if path.name == DESCRIPTION_FILE else "a file"
    if not path.is_dir():
        return "a folder that does not exist"
    kinds = {DESCRIPTION_FILE: "a delta folder", "config.json": "a model folder"}
    found = next((kind for file, kind in kinds.items() if (path / file).is_file()), None)
    if found is None and (path / "adapter_config.json").is_file():
        return "an adapter folder"
    return found or f"a folder with neither config.json nor {DESCRIPTION_FILE}"
