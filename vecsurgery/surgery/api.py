"""The calls behind the commands: every command is one of these, and a notebook can make the same.

A recipe is validated before torch is imported, so that a wrong one is refused at once.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery import methods
from vecsurgery.errors import InputError
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe import load
from vecsurgery.recipe.types import GeometrySpec
from vecsurgery.report.record import Record, read

if TYPE_CHECKING:
    from vecsurgery.forward import Compute
    from vecsurgery.planning.inputs import Inputs
    from vecsurgery.planning.plans import Plan

UNSTABLE = ("surgery.json", "report.html")
"""Files that carry times and so differ between two equal runs."""


def run(
    recipe: str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    compute: "Compute" = "float32",
    progress: Progress = silent,
) -> Record:
    """Carry out a recipe and write the folder `out`; an interrupted run of the same plan goes on where it stopped.

    Args:
        recipe: a YAML file.
        out: folder to make; it exists afterwards only if everything succeeded, until then there is `out`.partial.
        overrides: `--set` assignments, such as "retain_energy.keep=0.05".
        compute: type of the forward passes: "float32", or "stored" for the checkpoint's own.
        progress: called as work proceeds.

    Returns: the record of the run, as `surgery.json` holds it.

    Raises: InputError for what cannot be used, before anything is written; RunError for faults while writing.

    Example: `vecsurgery.run("retain.yaml", "cleaned")["verdict"]`
    """
    inputs = opened(recipe, overrides)
    from vecsurgery.surgery.process import modules_uncollected
    from vecsurgery.surgery.running import execute

    with modules_uncollected():
        return execute(inputs, Path(out), compute=compute, progress=progress)


def check(
    recipe: str | Path, *, overrides: Sequence[str] = (), weights: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Compare models, tokenizers and data of a recipe before heavy work.

    `weights`: also read every tensor and refuse NaN and infinity. Returns {"warnings": [...], "facts": {...}}.
    Raises: InputError for what makes the surgery impossible.
    """
    inputs = opened(recipe, overrides)
    from vecsurgery.planning.checking import check_inputs, check_weights
    from vecsurgery.planning.plans import make_plan

    found = check_inputs(inputs)
    if weights:
        check_weights(inputs, progress)
    make_plan(inputs, progress=progress)
    return found.to_dict()


def plan(recipe: str | Path, *, overrides: Sequence[str] = (), progress: Progress = silent) -> "Plan":
    """Resolve a recipe to every tensor, cost and file, without running it. Raises: InputError."""
    inputs = opened(recipe, overrides)
    from vecsurgery.planning.disjoint import require_disjoint
    from vecsurgery.planning.plans import make_plan

    require_disjoint(inputs)
    return make_plan(inputs, progress=progress)


def measure(
    recipe: str | Path,
    name: str | None,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    rows: tuple[int, int] | None = None,
    moments: bool = False,
    compute: "Compute" = "float32",
    progress: Progress = silent,
) -> Path:
    """Measure one geometry of a recipe into a file that other recipes can name.

    Args:
        name: which geometry; None where the recipe has only one.
        rows: only these rows of its data, first and last, 0-based.
        moments: write exact partial moments, which `union` adds, in place of the spectral form.

    Raises: InputError; the file must not exist yet.
    """
    target = Path(out)
    if target.exists():
        raise InputError(f"measuring into {target}: the file exists; choose another name, or delete it")
    assignments = [*overrides]
    inputs = opened(recipe, assignments)
    from vecsurgery import geometry as geometry_room
    from vecsurgery.planning.checking import check_inputs
    from vecsurgery.planning.inputs import label
    from vecsurgery.planning.plans import make_plan

    chosen = _chosen(inputs, name)
    if rows is not None:
        assignments.append(f"geometry.{chosen}.rows={rows[0]}-{rows[1]}")
        inputs = opened(recipe, assignments)
    check_inputs(inputs)
    planned = make_plan(inputs, compute=compute, progress=progress).geometry[chosen]
    spec: GeometrySpec = inputs.recipe.geometry[chosen]
    if spec.file is not None:
        raise InputError(f"geometry {chosen!r} is read from {spec.file}; there is nothing to measure")
    samples = inputs.samples[chosen]
    common: dict[str, Any] = {
        "sites": planned.sites,
        "tokens": spec.tokens,
        "skip_first": spec.skip_first,
        "max_directions": spec.max_directions,
        "compute": compute,
        "model": label(spec.model or inputs.recipe.into),
        "stage": f"measuring {chosen}",
        "progress": progress,
    }
    if moments:
        geometry_room.measure_moments(inputs.models[chosen], samples, target, **common)
    else:
        geometry_room.measure(inputs.models[chosen], samples, target, **common)
    return target


def union(parts: Sequence[str | Path], out: str | Path) -> Path:
    """Add partial moments of one model and rule exactly, and write the geometry file. Raises: InputError."""
    from vecsurgery import geometry as geometry_room

    geometry_room.union([Path(part) for part in parts], Path(out))
    return Path(out)


def reproduce(record: str | Path, out: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Run the recipe of a record again into `out` and compare the hashes of everything that was read and written.

    Returns {"identical": bool, "files": {name: "same" | "differs" | "missing" | "new"}, "inputs": {…}} (only the
    inputs that differ). Raises: InputError where the record or what it names cannot be used.
    """
    path = Path(record)
    before = read(path)
    with tempfile.TemporaryDirectory(prefix="vecsurgery-") as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(before["recipe"], encoding="utf-8")
        after = run(recipe, out, compute=before.get("compute", "float32"), progress=progress)
    files = _compared(before["files"], after["files"])
    inputs = _compared(_inputs(before), _inputs(after))
    return {
        "identical": all(state == "same" for state in files.values()),
        "files": files,
        "inputs": {name: state for name, state in inputs.items() if state != "same"},
    }


def verify(folder: str | Path) -> dict[str, str]:
    """Compare the files of an output folder with the hashes of its record: {name: "same" | "differs" | "missing"}."""
    from vecsurgery.checkpoint import file_sha256

    root = Path(folder)
    states = {}
    for name, digest in read(root)["files"].items():
        path = root / name
        states[name] = "missing" if not path.is_file() else "same" if file_sha256(path) == digest else "differs"
    return states


def opened(recipe: str | Path, overrides: Sequence[str] = ()) -> "Inputs":
    """The recipe validated first, without torch; then everything that it names, opened."""
    available = methods.available()
    parsed = load(Path(recipe), available, overrides=tuple(overrides))
    from vecsurgery.surgery.process import nothing_collected, use_memory_well

    use_memory_well()
    with nothing_collected():
        from vecsurgery.planning.inputs import open_inputs

        return open_inputs(parsed, available)


def _inputs(record: Record) -> dict[str, str]:
    """Hashes of everything that was read: tensors, data files, adapters."""
    found = dict(record.get("inputs", {}))
    for geometry in record["geometry"].values():
        found |= geometry.get("data", {})
    for measured in [*record.get("fits", []), *record.get("evaluation", {}).values(), *record.get("gates", [])]:
        found |= measured.get("data", {})
    for name, delta in record["deltas"].items():
        for key, made in (("adapter", delta.get("adapter")), ("file", delta.get("file"))):
            if made is not None:
                found[f"deltas.{name}.{key}"] = made["fingerprint"]
    return found


def _compared(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    states = {}
    for name, digest in before.items():
        states[name] = "missing" if name not in after else "same" if after[name] == digest else "differs"
    return states | {name: "new" for name in after if name not in before}


def _chosen(inputs: "Inputs", name: str | None) -> str:
    names = list(inputs.recipe.geometry)
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise InputError(
            f"measuring geometry {name!r}: the recipe has {json.dumps(names)}; name one of them"
            if name
            else f"the recipe has {len(names)} geometries ({', '.join(names) or 'none'}); name one"
        )
    return name
