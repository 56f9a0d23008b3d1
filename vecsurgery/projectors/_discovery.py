"""Which projectors there are: the modules of this room, and what other distributions register."""

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from vecsurgery.errors import InputError

from ._registry import Projector

GROUP = "vecsurgery.steps"


def builtin() -> dict[str, Projector]:
    """The projectors of this package by name: every module without a leading underscore has one as `PROJECTOR`."""
    found: dict[str, Projector] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            projector: Projector = importlib.import_module(f"{__package__}.{module.name}").PROJECTOR
            found[projector.name] = projector
    return found


def available() -> dict[str, Projector]:
    """All projectors by name: the built-in ones and the entry points of the group `vecsurgery.steps`.

    Raises InputError, naming the distribution, for an entry point that cannot be imported, that is no `Projector`,
    or whose name is taken.
    """
    found = builtin()
    owners = dict.fromkeys(found, "vecsurgery")
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (_distribution(entry), entry.name)):
        projector = _load(entry)
        if projector.name in found:
            raise InputError(
                f"two distributions give a step called {projector.name!r}: {owners[projector.name]} and "
                f"{_distribution(entry)}; uninstall one of them"
            )
        found[projector.name], owners[projector.name] = projector, _distribution(entry)
    return found


def _load(entry: EntryPoint) -> Projector:
    source = f"the step {entry.name!r} ({entry.value}) of the distribution {_distribution(entry)}"
    try:
        projector = entry.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{source} cannot be imported: {error}; repair or uninstall it") from error
    if not isinstance(projector, Projector):
        raise InputError(
            f"{source} is of type {type(projector).__name__}; expected a vecsurgery.projectors.Projector: "
            f"report this to its authors, or uninstall it"
        )
    return projector


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"
