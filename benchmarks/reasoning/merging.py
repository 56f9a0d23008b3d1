"""The methods that are compared: each a line of models in the weight of the instruction delta."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import vecsurgery
from benchmarks._controls import random_geometry
from benchmarks.reasoning.settings import Experiment
from vecsurgery.demo.reasoning.models import Trained
from vecsurgery.demo.reasoning.showing import merge_by_ties
from vecsurgery.fits import Coefficients, FittedMatrix
from vecsurgery.fits.attention_scale import coefficient_table, permuted
from vecsurgery.geometry import Geometry
from vecsurgery.planning.plans import make_plan
from vecsurgery.surgery import api
from vecsurgery.surgery.assembly import assembled
from vecsurgery.surgery.fitting import asking_for, fitted

State = Mapping[str, Tensor]
Line = Callable[[float], State]
"""From the weight of the instruction delta to a model."""

_TAGS = ["<think>", "</think>"]
RULES: dict[str, Any] = {"span": {"between": _TAGS}, "tags": {"around": _TAGS, "before": 1, "after": 0}}
"""The shipped recipe's positions, and the published ones."""


@dataclass(frozen=True)
class Pair:
    """One trained family, where geometries of it are kept, and the experiment."""

    trained: Trained
    folder: Path
    experiment: Experiment

    def recipe(self, rule: str, rtol: float, *, scaled: bool) -> dict[str, Any]:
        """The shipped recipe `rain` with these models and rows. `rule`: of `RULES`; `scaled`: with attention_scale."""
        data = self.trained.data
        steps: list[dict[str, Any]] = [{"project": "null_space", "geometry": "thinking", "rtol": rtol}]
        if scaled:
            steps.append({"fit": "attention_scale", "data": str(data / "instructions.jsonl")})
        return {
            "into": str(self.trained.reasoning),
            "deltas": {"instruct": {"tuned": str(self.trained.instruct), "base": str(self.trained.base)}},
            "geometry": {"thinking": {"data": str(data / "calibration.jsonl"), "tokens": RULES[rule]}},
            "steps": steps,
        }

    def recipe_file(self, rule: str, rtol: float, *, scaled: bool) -> Path:
        """The same as a file."""
        path = self.folder / f"{rule}-{rtol:g}{'-scaled' if scaled else ''}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.recipe(rule, rtol, scaled=scaled)), encoding="utf-8")
        return path

    def geometry(self, rule: str) -> Path:
        """The file of what the reasoning model does at these positions."""
        path = self.folder / f"{rule}.safetensors"
        if not path.exists():
            vecsurgery.measure(self.recipe_file(rule, self.experiment.rtol, scaled=False), "thinking", path)
        return path


def lines(pair: Pair) -> dict[str, Line]:
    """Every method but TIES, whose line has a second number (`ties`)."""
    experiment = pair.experiment
    span = pair.geometry("span")
    found: dict[str, Line] = {
        "task arithmetic": partial(_summed, pair),
        "task arithmetic, matrices": partial(_matrices, pair),
        "null space": partial(_projected, pair, span, experiment.rtol),
        "null space at tags": partial(_projected, pair, pair.geometry("tags"), experiment.rtol),
        "random subspace": partial(
            _projected,
            pair,
            random_geometry(span, span.with_name("span-random.safetensors"), pair.trained.seed),
            experiment.rtol,
        ),
        "exact null space": partial(_projected, pair, span, experiment.exact_rtol),
        "attention scaled": partial(_scaled, pair, span, False),
        "attention permuted": partial(_scaled, pair, span, True),
    }
    for rtol in experiment.other_rtols:
        found[f"null space, rtol {rtol:g}"] = partial(_projected, pair, span, rtol)
    return found


def _deltas(pair: Pair) -> dict[str, tuple[Path, Path]]:
    return {"instruct": (pair.trained.instruct, pair.trained.base)}


def _summed(pair: Pair, weight: float) -> State:
    """Every tensor of the delta, as task arithmetic has it."""
    edited = vecsurgery.edit(into=pair.trained.reasoning, deltas=_deltas(pair), weights={"instruct": weight})
    return edited.state_dict()


def _matrices(pair: Pair, weight: float) -> State:
    """The block matrices alone, which are what `null_space` adds: the projection's own share of the difference."""
    into = vecsurgery.weights_of(pair.trained.reasoning)
    found = dict(_summed(pair, weight))
    for name, info in into.layout.tensors.items():
        if info.matrix is None:
            found[name] = into.read(name)
    return found


def _projected(pair: Pair, geometry: Path, rtol: float, weight: float) -> State:
    """The recipe `rain` at another weight, geometry or cut."""
    edited = vecsurgery.edit(
        into=pair.trained.reasoning,
        deltas=_deltas(pair),
        steps=[{"project": "null_space", "geometry": "thinking", "rtol": rtol}],
        geometry={"thinking": geometry},
        weights={"instruct": weight},
    )
    return edited.state_dict()


def _scaled(pair: Pair, geometry: Path, control: bool, weight: float) -> State:
    """The recipe with its fit, which sees the edited model at this weight; `control`: coefficients on other heads."""
    recipe = pair.recipe_file("span", pair.experiment.rtol, scaled=True)
    inputs = api.opened(recipe, [f"weights.instruct={weight}"])
    geometries = {"thinking": Geometry.open(geometry)}
    with tempfile.TemporaryDirectory() as folder:
        found = fitted(make_plan(inputs), geometries, Path(folder))
    if control:
        step = inputs.recipe.steps[-1]
        tensors = asking_for(inputs, geometries, {}, step).tensors
        table = coefficient_table(permuted(_alpha(found[step.id], tensors)), tensors)
        found = {step.id: replace(found[step.id], tensors=table)}
    return assembled(inputs, geometries, found).state_dict()


def _alpha(found: Coefficients, tensors: Mapping[str, FittedMatrix]) -> Tensor:
    """The coefficients (layers, query heads), read off the rows of q."""
    rows = {
        tensors[name].layer: numbers["q"]
        for name, numbers in found.tensors.items()
        if isinstance(numbers, Mapping) and "q" in numbers
    }
    return torch.tensor([rows[layer] for layer in sorted(rows)], dtype=torch.float64)


def ties(trained: Trained, normalize: bool, density: float, weight: float) -> State:
    """TIES by mergekit: both models against their base, the reasoning model with weight 1 (see `merge_by_ties`)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "merged"
        merge_by_ties(trained, Path(folder) / "ties.yaml", out, density=density, weight=weight, normalize=normalize)
        return load_file(out / "model.safetensors")
