"""The recipe as a user runs it, fit included: what 8 fit rows arrive at on other authors, in either storage type."""

import json
import shutil
from typing import Any

import vecsurgery
from benchmarks._checkpoints import save_as
from benchmarks.unlearning import cleaning
from benchmarks.unlearning.comparing import PARTS
from benchmarks.unlearning.measures import answers
from benchmarks.unlearning.models import samples
from benchmarks.unlearning.training import load
from benchmarks.unlearning.work import Work


def shipped(work: Work, unlearner: str) -> list[dict[str, Any]]:
    """A row for each storage type of original, unlearned and cleaned: the fitted coefficient and measures of the three.

    Stored in bfloat16, original and unlearned are both rounded first, as published checkpoints are.
    """
    found = []
    for dtype in ("float32", "bfloat16"):
        folders = {name: _stored_as(work, name, dtype) for name in ("original", unlearner)}
        out = work.folder / "cleaned" / f"{unlearner}-{dtype}"
        shutil.rmtree(out, ignore_errors=True)
        recipe = out.with_suffix(".yaml")
        out.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(_recipe(work, folders["original"], folders[unlearner], dtype))
        vecsurgery.run(recipe, out)
        measured = {
            name: {part: answers(load(folder), samples(work, part)).means() for part in PARTS}
            for name, folder in (("original", folders["original"]), ("raw", folders[unlearner]), ("cleaned", out))
        }
        found.append({"stored as": dtype, "coefficient": _coefficient(out), **measured})
    return found


def _recipe(work: Work, original: Any, unlearned: Any, dtype: str) -> str:
    comparison = work.settings.comparison
    geometry = {"file": str(cleaning.measure(work))}
    if dtype != "float32":
        geometry = {"data": str(work.rows("calibration")), "template": "none"}
    return json.dumps(
        {
            "into": str(original),
            "deltas": {"unlearning": {"tuned": str(unlearned)}},
            "geometry": {"retain": geometry},
            "steps": [
                {"project": "retain_energy", "geometry": "retain", "keep": comparison.keeps[0]},
                {"fit": "amplify", "data": str(work.rows("fit")), "template": "none", "share": comparison.share},
            ],
            "gates": [],
        },
        indent=1,
    )


def _coefficient(out: Any) -> float:
    """The one number of the fit, from its file."""
    table = json.loads((out / "surgery" / "amplify.coefficients.json").read_text())
    (number,) = set(table["tensors"].values())
    return float(number)


def _stored_as(work: Work, name: str, dtype: str) -> Any:
    if dtype == "float32":
        return work.checkpoint(name)
    folder = work.checkpoint(f"{name}-{dtype}")
    if not folder.exists():
        save_as(load(work.checkpoint(name)), work.model, folder, dtype)
    return folder
