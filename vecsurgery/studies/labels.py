"""What a model is called in tables: NAME=MODEL, or the last part of its own name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import InputError

if TYPE_CHECKING:
    from vecsurgery.surgery.calls import Model


def labelled(models: "Mapping[str, Model] | Sequence[str | Path]", *, doing: str = "evaluating") -> "dict[str, Model]":
    """Label → model, of a mapping or of names as the command line gives them.

    "NAME=MODEL" has the label NAME, unless a file or folder of that whole name exists; MODEL alone has the last part of
    its path or hub id, a TOFU_EVAL.json that of its folder. Raises InputError where there is no model, where two have
    one label, and for a label that cannot be the name of a folder. `doing`: how messages begin.
    """
    if isinstance(models, str | Path):
        models = [models]
    pairs: list[tuple[str, Any]] = (
        list(models.items()) if isinstance(models, Mapping) else [_pair(m, doing) for m in models]
    )
    if not pairs:
        raise InputError(f"{doing}: no model was named; expected at least one folder or hub id")
    found: dict[str, Any] = {}
    for label, model in pairs:
        if not label.strip() or label in (".", "..") or any(character in label for character in "/\\\0"):
            raise InputError(f"{doing} {model}: {label!r} cannot name a model; give NAME=MODEL")
        if label in found:
            raise InputError(f"{doing}: two models are called {label!r}; give NAME=MODEL, with another name for each")
        found[label] = model
    return found


def is_figures(model: Any) -> bool:
    """Whether a model is given by the file of its figures: an existing file, or a name that ends in .json."""
    if not isinstance(model, str | Path):
        return False
    path = Path(model)
    return path.is_file() or (path.suffix.lower() == ".json" and not path.is_dir())


def _pair(given: str | Path, doing: str) -> tuple[str, str | Path]:
    if not isinstance(given, str | Path):
        raise InputError(f"{doing} a {type(given).__name__}: a model in memory needs a label: {{'NAME': model}}")
    text = str(given)
    name, separator, model = text.partition("=")
    if separator and not Path(text).exists():
        if not model:
            raise InputError(f"{doing} {text!r}: no model stands behind the =; expected NAME=MODEL")
        return name, model
    return _short(text), given


def _short(text: str) -> str:
    """The last part of a path or hub id."""
    if is_figures(text):
        return Path(text).absolute().parent.name or Path(text).stem
    return Path(text).absolute().name
