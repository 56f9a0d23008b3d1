"""The only place that calls the package's surgery: what its recipes make of an unlearned checkpoint.

The evidence splits a cleaned delta into what the coefficient multiplies and what it does not, so that every method is a
line `into + fixed + a · moving`, whose points are plain state dicts, measured apart from the package.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vecsurgery
from benchmarks.unlearning.work import Work

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Line:
    """The models into + fixed + a·moving, in float32, by tensor name; absent from both: `into`'s."""

    into: State
    moving: State
    fixed: State

    def at(self, coefficient: float) -> dict[str, Tensor]:
        """The state dict of one point."""
        found = dict(self.into)
        for part, factor in ((self.fixed, 1.0), (self.moving, coefficient)):
            for name, delta in part.items():
                found[name] = found[name] + factor * delta
        return found


def state(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors in float32."""
    weights = vecsurgery.weights_of(folder)
    return {name: weights.read(name).float() for name in weights.layout.order}


def raw_delta(into: State, tuned: State) -> dict[str, Tensor]:
    """tuned − into, of the tensors that differ."""
    return {name: tuned[name] - into[name] for name in into if not torch.equal(tuned[name], into[name])}


def scaled(into: State, raw: State) -> Line:
    """The trivial alternative: every tensor of the raw delta times one number."""
    return Line(into, raw, {})


def projected(work: Work, unlearner: str, into: State, raw: State, step: Mapping[str, Any], geometry: Path) -> Line:
    """A projector's line: the matrices that it edits move, the rest of the delta stays as loaded."""
    edited = vecsurgery.edit(
        into=work.checkpoint("original"),
        deltas={"unlearning": work.checkpoint(unlearner)},
        steps=[{"geometry": "retain", **step}],
        geometry={"retain": geometry},
        dtype="float32",
    )
    touched = [name for name in raw if any(touch.effect == "edit" for touch in edited.touches[name])]
    moving = {name: edited.read(name).float() - into[name] for name in touched}
    dropped = step.get("others") == "drop"
    fixed = {} if dropped else {name: delta for name, delta in raw.items() if name not in moving}
    return Line(into, moving, fixed)


def geometry_recipe(work: Work, unlearner: str, max_tokens: int | None) -> str:
    """The text of a recipe that measures what calibration rows do in the original."""
    rows: dict[str, Any] = {"data": str(work.rows("calibration")), "template": "none"}
    if max_tokens is not None:
        rows |= {"max_tokens": max_tokens, "seed": work.seed}
    return json.dumps(
        {
            "into": str(work.checkpoint("original")),
            "deltas": {"unlearning": {"tuned": str(work.checkpoint(unlearner))}},
            "geometry": {"retain": rows},
            "steps": [{"project": "retain_energy", "geometry": "retain", "keep": 0.5}],
        }
    )


def measure(work: Work, max_tokens: int | None = None) -> Path:
    """The geometry of the calibration rows, or of the first of them up to `max_tokens`, as a file.

    Any unlearned model serves: only `into` is measured, at every site of its blocks.
    """
    name = "calibration" if max_tokens is None else f"calibration-{max_tokens}"
    path = work.folder / "geometry" / f"{name}.safetensors"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = path.with_suffix(".yaml")
    recipe.write_text(geometry_recipe(work, work.settings.unlearners[0].name, max_tokens))
    return vecsurgery.measure(recipe, "retain", path)
