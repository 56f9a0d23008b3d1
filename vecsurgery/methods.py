"""methods: which steps there are: the projectors and fits of this package, and what other distributions register."""

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points

from vecsurgery.errors import InputError
from vecsurgery.fits import Fit
from vecsurgery.projectors import Projector

GROUP = "vecsurgery.steps"
"""The entry-point group through which other distributions add projectors and fits."""
_ROOMS = {"projectors": "PROJECTOR", "fits": "FIT"}
"""Room → the name under which each of its methods' modules holds its object."""


def builtin() -> dict[str, Projector | Fit]:
    """The methods of this package by name: each is one file of `projectors` with a `PROJECTOR`, or of `fits` with a
    `FIT`.
    """
    found: dict[str, Projector | Fit] = {}
    for room, attribute in _ROOMS.items():
        package = importlib.import_module(f"vecsurgery.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            method = vars(importlib.import_module(module.name)).get(attribute)
            if method is not None:
                found[method.name] = method
    return found


def available() -> dict[str, Projector | Fit]:
    """All methods by name: the built-in ones and the entry points of the group `vecsurgery.steps`.

    Raises InputError, naming the distribution, for an entry point that cannot be imported, that is neither `Projector`
    nor `Fit`, or whose name is taken (a projector and a fit may not share one: names address steps).
    """
    found = builtin()
    owners = dict.fromkeys(found, "vecsurgery")
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (_distribution(entry), entry.name)):
        method = _load(entry)
        if method.name in found:
            raise InputError(
                f"two distributions give a step called {method.name!r}: {owners[method.name]} and "
                f"{_distribution(entry)}; uninstall one of them"
            )
        found[method.name], owners[method.name] = method, _distribution(entry)
    return found


def _load(entry: EntryPoint) -> Projector | Fit:
    source = f"the step {entry.name!r} ({entry.value}) of the distribution {_distribution(entry)}"
    try:
        method = entry.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{source} cannot be imported: {error}; repair or uninstall it") from error
    if not isinstance(method, Projector | Fit):
        raise InputError(
            f"{source} is of type {type(method).__name__}; expected a vecsurgery.projectors.Projector or a "
            f"vecsurgery.fits.Fit: report this to its authors, or uninstall it"
        )
    return method


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"
