"""Geometries read site by site, as the edited weights ask for them."""

import hashlib
import json
import threading
from collections.abc import Mapping

from vecsurgery.checkpoint.types import Layout
from vecsurgery.geometry import Geometry
from vecsurgery.linalg import Subspace


class SiteReader:
    """Subspaces by (geometry, tensor); keeps those of one block, since a walk never returns to an earlier one."""

    def __init__(self, geometries: Mapping[str, Geometry], layout: Layout) -> None:
        self._geometries, self._layout = geometries, layout
        self._lock = threading.Lock()
        self._layer: int | None = None
        self._held: dict[tuple[str, str], Subspace] = {}

    @property
    def fingerprint(self) -> str:
        """Of what was measured, on what and how, at every site of every geometry."""
        facts = {name: [opened.info.to_json(), opened.facts] for name, opened in self._geometries.items()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __call__(self, geometry: str, tensor: str) -> Subspace:
        # Blocks are read ahead in a thread of their own, and a notebook may read beside it.
        with self._lock:
            return self._subspace(geometry, tensor)

    def _subspace(self, geometry: str, tensor: str) -> Subspace:
        matrix = self._layout.tensors[tensor].matrix
        assert matrix is not None  # only block matrices are projected with a geometry
        if matrix.layer != self._layer:
            self._held.clear()
            self._layer = matrix.layer
        key = (geometry, matrix.site)
        if key not in self._held:
            self._held[key] = self._geometries[geometry].subspace(matrix.site)
        return self._held[key]
