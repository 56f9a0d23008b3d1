"""The recipe as a user runs it, fit included: what 8 fit rows arrive at on other authors, in either storage type."""

import json
import shutil
from pathlib import Path
from typing import Any

import vecsurgery
from benchmarks._checkpoints import save_as
from benchmarks.unlearning.comparing import PARTS
from benchmarks.unlearning.measures import answers
from benchmarks.unlearning.models import samples
from benchmarks.unlearning.training import load
from benchmarks.unlearning.work import Work
from vecsurgery.errors import InputError


def shipped(work: Work, unlearner: str) -> list[dict[str, Any]]:
    """A row for each storage type of original, unlearned and cleaned: the fitted coefficient and measures of the three.

    Stored in bfloat16, original and unlearned are both rounded first, as published checkpoints are. Where the package
    refuses the fit, its message stands in the row.
    """
    found = []
    for dtype in ("float32", "bfloat16"):
        models = {"original": _stored_as(work, "original", dtype), "raw": _stored_as(work, unlearner, dtype)}
        row: dict[str, Any] = {"stored as": dtype}
        try:
            models["cleaned"] = _clean(work, models["original"], models["raw"], f"{unlearner}-{dtype}")
            row["coefficient"] = _coefficient(models["cleaned"])
        except InputError as error:
            row["refused"] = str(error)
        for name, folder in models.items():
            model = load(folder)
            row[name] = {part: answers(model, samples(work, part)).means() for part in PARTS}
        found.append(row)
    return found


def _clean(work: Work, original: Path, unlearned: Path, name: str) -> Path:
    """Run the recipe, and return the folder that it wrote."""
    out = work.folder / "cleaned" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe = out.with_suffix(".yaml")
    recipe.write_text(_recipe(work, original, unlearned))
    shutil.rmtree(out, ignore_errors=True)
    vecsurgery.run(recipe, out)
    return out


def _recipe(work: Work, original: Path, unlearned: Path) -> str:
    comparison = work.settings.comparison
    recipe = {
        "into": str(original),
        "deltas": {"unlearning": {"tuned": str(unlearned)}},
        "geometry": {"retain": {"data": str(work.rows("calibration")), "template": "none"}},
        "steps": [
            {"project": "retain_energy", "geometry": "retain", "keep": comparison.keeps[0]},
            {"fit": "amplify", "data": str(work.rows("fit")), "template": "none", "share": comparison.share},
        ],
        "gates": [],  # what a gate would stop is to be seen here
    }
    return json.dumps(recipe, indent=1)


def _coefficient(out: Path) -> float:
    """The one number of the fit, from its file."""
    table = json.loads((out / "surgery" / "amplify.coefficients.json").read_text())
    (number,) = set(table["tensors"].values())
    return float(number)


def _stored_as(work: Work, name: str, dtype: str) -> Path:
    if dtype == "float32":
        return work.checkpoint(name)
    folder = work.checkpoint(f"{name}-{dtype}")
    if not folder.exists():
        save_as(load(work.checkpoint(name)), work.model, folder, dtype)
    return folder
