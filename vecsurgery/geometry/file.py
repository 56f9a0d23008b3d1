"""The geometry file: directions and energies of every site, read one site at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vecsurgery.checkpoint.types import Weights
from vecsurgery.delta.reading import label
from vecsurgery.errors import InputError
from vecsurgery.linalg import Subspace

from .container import LayeredFile, open_layered
from .info import GeometryInfo

FORMAT = "vecsurgery geometry"
_LONGEST = {"count": 10**15, "rest": -1.2345678901234567e-300}


Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and largest shape of each tensor that a file keeps of a site, by name."""


Record = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""What a file keeps of a site: tensors by name, and the numbers `count` and, of a subspace, `rest`."""
Facts = Mapping[str, Mapping[str, Any]]
"""What `site_facts` says of each site, in walking order."""


class SiteFile:
    """A safetensors file with some tensors and facts for each site, opened for reading; data are read when asked for.

    Raises:
        InputError: not such a file, damaged, or of another format version.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = Path(path)
        try:
            self._file = cast(Any, safe_open(str(self.path), framework="pt"))
            metadata = self._file.metadata() or {}
            self._names = frozenset(self._file.keys())
        except (SafetensorError, OSError) as fault:
            raise InputError(
                f"reading geometry {self.path}: it cannot be opened as a safetensors file: {fault}"
            ) from fault
        if metadata.get("format") != FORMAT:
            raise InputError(
                f"reading geometry {self.path}: it is not a geometry file (no {FORMAT!r} in its metadata)."
            )
        try:
            self.info = GeometryInfo.from_json(json.loads(metadata["info"]))
            self.facts: dict[str, dict[str, Any]] = json.loads(metadata["sites"])
        except (KeyError, ValueError, TypeError, InputError) as fault:
            raise InputError(f"reading geometry {self.path}: {fault}. Measure it again.") from fault
        if self.info.kind != kind:
            raise InputError(f"reading geometry {self.path}: it holds {self.info.kind}, expected {kind}.")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the measured sites, in walking order."""
        return tuple(self.facts)

    def tensor(self, site: str, what: str, shape: tuple[int | None, ...]) -> Tensor:
        """One tensor of a site, of this shape (None: any length)."""
        if site not in self.facts:
            raise InputError(f"reading geometry {self.path}: site {site!r} was not measured.")
        name = f"{site}.{what}"
        if name not in self._names:
            raise InputError(f"reading geometry {self.path}: tensor {name!r} is missing. Measure it again.")
        tensor: Tensor = self._file.get_tensor(name)
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
            raise InputError(f"reading geometry {self.path}: {name!r} has shape {found}, expected {shape}.")
        return tensor


class Geometry(SiteFile):
    """What calibration text does at each site of a model: `Geometry.open(path)`, then `subspace(site)`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "subspaces")
        self._site_of = {tensor: site for site, facts in self.facts.items() for tensor in facts["tensors"]}
        expected = {f"{site}.{what}" for site in self.facts for what in ("directions", "energies")}
        if expected != self._names:
            wrong = sorted(expected ^ self._names)[0]
            raise InputError(f"reading geometry {self.path}: tensor {wrong!r} is missing or unknown. Measure it again.")

    @classmethod
    def open(cls, path: str | Path) -> Geometry:
        """Open a geometry file; only its header is read.

        Raises:
            InputError: not a geometry file, damaged, or of another format version.
        """
        return cls(Path(path))

    def subspace(self, site: str) -> Subspace:
        """Directions (float32) and energies (float64) of a site, from the file.

        Raises:
            InputError: the site was not measured, or its numbers contradict each other.
        """
        facts = self.facts.get(site, {})
        directions = self.tensor(site, "directions", (facts.get("width"), None))
        energies = self.tensor(site, "energies", (directions.shape[1],))
        descending = bool((energies[:-1] >= energies[1:]).all())
        if not (torch.isfinite(energies).all() and descending and bool((energies >= 0).all())):
            raise InputError(f"reading geometry {self.path}: the energies of {site!r} are damaged. Measure it again.")
        return Subspace(directions, energies, float(facts["rest"]), int(facts["count"]))

    def site_of(self, tensor: str) -> str | None:
        """The site that a stored tensor reads; None where it was not measured."""
        return self._site_of.get(tensor)

    def require_model(self, weights: Weights, advice: str) -> None:
        """Stop unless this geometry was measured on these weights. Errors: InputError naming both, with the advice."""
        made = self.info.model_fingerprint
        if weights.fingerprint != made:
            raise InputError(
                f"geometry {self.path} was measured on {self.info.model} (fingerprint {made[:12]}), not on "
                f"{label(weights)} (fingerprint {weights.fingerprint[:12]}), whose inputs have other directions; "
                f"{advice}"
            )


class SiteWriter:
    """Writes the sites of one layer after the other; made by `writing`."""

    def __init__(self, file: LayeredFile, info: GeometryInfo, facts: Facts) -> None:
        self._file = file
        self._facts = facts
        self.info = info

    @property
    def finished(self) -> frozenset[int]:
        """Layers that are safely on disk."""
        return self._file.finished

    def add(self, layer: int, records: Mapping[str, Record]) -> None:
        """Add a layer: what is kept of each of its sites."""
        tensors = {f"{site}.{what}": tensor for site, (parts, _) in records.items() for what, tensor in parts.items()}
        self._file.append(layer, tensors, {site: numbers for site, (_, numbers) in records.items()})

    def finish(self) -> None:
        """Complete the file and give it its name."""
        numbers = {site: facts for record in self._file.records for site, facts in record.facts.items()}
        self._file.finish(_metadata(self.info, self._facts, numbers))


@contextmanager
def writing(path: Path, info: GeometryInfo, facts: Facts, shapes: Mapping[str, Shapes]) -> Iterator[SiteWriter]:
    """Start a site file, or go on with an interrupted one of the same measurement.

    `facts`, `shapes`: for each site what `site_facts` says, and the type and largest shape of its tensors.
    """
    identity = {"info": info.to_json(), "sites": list(facts)}
    tensors = {f"{site}.{what}": shape for site in facts for what, shape in shapes[site].items()}
    metadata = _metadata(info, facts, dict.fromkeys(facts, _LONGEST))
    with open_layered(path, identity=identity, metadata=metadata, tensors=tensors) as file:
        yield SiteWriter(file, info, facts)


def _metadata(info: GeometryInfo, facts: Facts, numbers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    sites = {site: {**values, **numbers[site]} for site, values in facts.items()}
    return {"format": FORMAT, "info": json.dumps(info.to_json()), "sites": json.dumps(sites)}
