"""The geometries of a run: measured into the output folder, and read back from file."""

import shutil
from pathlib import Path

from vecsurgery.geometry import Geometry, measure
from vecsurgery.planning.inputs import label
from vecsurgery.planning.plans import Plan
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import Around, Between, TokenRule

FOLDER = "surgery"
"""Sub-folder of the output that holds geometry files."""


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
