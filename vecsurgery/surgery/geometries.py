"""The geometries of a run: measured into the output folder, read back from file, handed out site by site."""

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from vecsurgery.checkpoint.types import Layout
from vecsurgery.geometry import Geometry, measure
from vecsurgery.linalg import Subspace
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import Around, Between, TokenRule
from vecsurgery.surgery.inputs import label
from vecsurgery.surgery.planning import Plan

FOLDER = "surgery"
"""Sub-folder of the output that holds geometry files."""


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


def rule_text(rule: TokenRule) -> str:
    """A token rule in words, for reports and geometry files."""
    if isinstance(rule, Between):
        return f"between {rule.open} and {rule.close}"
    if isinstance(rule, Around):
        return f"around {' '.join(rule.tags)} (before {rule.before}, after {rule.after})"
    return rule


def measured(plan: Plan, folder: Path, progress: Progress = silent) -> dict[str, Geometry]:
    """Measure every geometry of the plan into `folder` (or copy the files that the recipe names) and open the files.

    Finished files are kept, unfinished ones go on at the first block that is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    geometries = {}
    for name, planned in plan.geometry.items():
        path = folder / f"{name}.safetensors"
        spec = plan.inputs.recipe.geometry[name]
        if spec.file is not None:
            _copy(spec.file, path)
        elif planned.sites:
            measure(
                plan.inputs.models[name],
                plan.inputs.samples[name],
                path,
                sites=planned.sites,
                tokens=spec.tokens,
                skip_first=spec.skip_first,
                max_directions=spec.max_directions,
                compute=plan.compute,
                model=label(spec.model or plan.inputs.recipe.into),
                stage=f"measuring {name}",
                progress=progress,
            )
        if path.exists():
            geometries[name] = Geometry.open(path)
    return geometries


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    part.replace(target)
