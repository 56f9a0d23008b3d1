"""methods: which steps there are: the projectors, fits and merges of this package, mergekit's, and others' own."""

import importlib
import pkgutil
from collections.abc import ItemsView, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from vecsurgery.errors import InputError
from vecsurgery.fits import Fit
from vecsurgery.merges import Merge
from vecsurgery.projectors import Projector

Method = Projector | Fit | Merge
GROUP = "vecsurgery.steps"
"""The entry-point group through which other distributions add projectors, fits and merges."""
_ROOMS = {"projectors": "PROJECTOR", "fits": "FIT", "merges": "MERGE"}
"""Room → the name under which each of its methods' modules holds its object."""


class Methods(Mapping[str, Method]):
    """Methods by name. A merge that is not among them is looked for in the installed mergekit.

    Where that is another version than the one whose methods are listed here, it says itself what its methods are; only
    that imports it, and only for a name that is asked for.
    """

    def __init__(self, found: Mapping[str, Method]) -> None:
        self._found = dict(found)
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> Method:
        from vecsurgery.merges import mergekit

        listed = self._found.get(name)
        own = listed is not None and listed not in mergekit.MERGES
        if not own and name not in self._asked and not (listed is not None and mergekit.complete()):
            self._asked.add(name)
            merge = mergekit.installed(name)
            if merge is not None:
                self._found[name] = merge
            elif listed is not None:
                del self._found[name]
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def items(self) -> ItemsView[str, Method]:
        """Those that are known so far, without looking for more."""
        return self._found.items()


def builtin() -> dict[str, Method]:
    """The methods of this package by name: each is one file of `projectors` with a `PROJECTOR`, of `fits` with a `FIT`,
    or of `merges` with a `MERGE`; mergekit's methods are in one file together.
    """
    found: dict[str, Method] = {}
    for room, attribute in _ROOMS.items():
        package = importlib.import_module(f"vecsurgery.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            content = vars(importlib.import_module(module.name))
            own = [content[attribute]] if attribute in content else content.get(f"{attribute}S", ())
            found |= {method.name: method for method in own}
    return found


def available() -> Methods:
    """All methods by name: the built-in ones and the entry points of the group `vecsurgery.steps`.

    Raises InputError, naming the distribution, for an entry point that cannot be imported, that is neither `Projector`,
    `Fit` nor `Merge`, or whose name is taken (no two may share one: names address steps).
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
    return Methods(found)


def _load(entry: EntryPoint) -> Method:
    source = f"the step {entry.name!r} ({entry.value}) of the distribution {_distribution(entry)}"
    try:
        method = entry.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{source} cannot be imported: {error}; repair or uninstall it") from error
    if not isinstance(method, Method):
        raise InputError(
            f"{source} is of type {type(method).__name__}; expected a vecsurgery.projectors.Projector, a "
            f"vecsurgery.fits.Fit or a vecsurgery.merges.Merge: report this to its authors, or uninstall it"
        )
    return method


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "unknown"
