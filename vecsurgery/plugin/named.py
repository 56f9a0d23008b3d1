"""The models that a configuration names: each is looked for before mergekit asks a hub or writes anything."""

from pathlib import Path
from typing import Any

from mergekit.options import MergeOptions

from vecsurgery.errors import InputError
from vecsurgery.recipe import parse_reference
from vecsurgery.recipe.types import Reference
from vecsurgery.studies.subjects import is_adapter, is_delta

_EXPECTED = "expected the folder of a checkpoint or a hub id"


def require_folders(path: Path, merge: Any, *, ours: bool) -> None:
    """Refuse local models that are not there, adapters and deltas in their place, and adapters that are none.

    `merge`: mergekit's MergeConfiguration; `ours`: whether its method is one of ours. Errors: InputError.
    """
    for model in _models(merge):
        text = model.model.path
        folder = reference(path, text).path
        if folder is not None:
            _require_checkpoint(f"{path}: the model {text!r}", text, folder, ours)
        if model.lora is not None:
            folder = reference(path, model.lora.path).path
            if folder is not None and not (folder / "adapter_config.json").is_file():
                raise InputError(
                    f"{path}: {model}: {model.lora.path} is no adapter: it has no adapter_config.json; behind the + "
                    "belongs the folder of an adapter, or a hub id"
                )


def require_configurations(path: Path, merge: Any, options: MergeOptions) -> None:
    """Refuse models whose config.json mergekit cannot read, from a folder or the hub. Errors: InputError."""
    for model in _models(merge):
        try:
            model.config(trust_remote_code=options.trust_remote_code)
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split())
            raise InputError(f"{path}: the model {str(model.model)!r}: {told}; {_EXPECTED}") from error


def reference(path: Path, text: str) -> Reference:
    """What a model's name means in the current folder. Errors: InputError where there is no such folder."""
    try:
        return parse_reference(text, Path.cwd(), start="the current folder")
    except ValueError as error:
        raise InputError(f"{path}: the model {text!r}: {error}; {_EXPECTED}") from error


def _models(merge: Any) -> list[Any]:
    """mergekit's references, each once, in an order that does not depend on hashes."""
    return sorted(merge.referenced_models(), key=str)


def _require_checkpoint(where: str, text: str, folder: Path, ours: bool) -> None:
    if (folder / "config.json").is_file():
        return
    if is_adapter(folder):
        way = "name it in a recipe, deltas: {NAME: {adapter: …}}, and use `vecsurgery run`"
        if not ours:
            way = f"write BASE+{text}, with the model that it was trained on for BASE"
        raise InputError(f"{where} is an adapter, not a checkpoint; {way}")
    if is_delta(folder):
        raise InputError(
            f"{where} is a delta folder of vecsurgery, not a checkpoint; name it in a recipe, deltas: {{NAME: {{file: "
            f"{text}}}}}, and use `vecsurgery run`"
        )
    raise InputError(f"{where}: {folder} has no config.json; {_EXPECTED}")
