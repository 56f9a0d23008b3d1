"""Jobs that are timed against each other, each in its own process: measuring, bare forward passes, products."""

import time
from typing import Any

from vecsurgery.surgery.api import opened


def measuring(recipe: str, out: str) -> dict[str, float]:
    """Measure the recipe's one geometry into `out`. Returns seconds of that alone, opened models taken for granted."""
    from vecsurgery import geometry
    from vecsurgery.planning.plans import make_plan

    inputs = opened(recipe)
    plan = make_plan(inputs)
    ((name, planned),) = plan.geometry.items()
    spec = inputs.recipe.geometry[name]
    start = time.perf_counter()
    geometry.measure(
        inputs.models[name],
        inputs.samples[name],
        out,
        sites=planned.sites,
        tokens=spec.tokens,
        skip_first=spec.skip_first,
        max_directions=spec.max_directions,
    )
    return {"seconds": time.perf_counter() - start, "positions": planned.positions, "tokens": _fed(inputs, name)}


def bare_forward(recipe: str) -> dict[str, float]:
    """The same token batches through the blocks of a plain transformers model in float32, without the head.

    Returns seconds of loading and of the forward passes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    inputs = opened(recipe)
    ((name, model),) = inputs.models.items()
    batches = _batches(inputs, name)
    start = time.perf_counter()
    loaded: Any = AutoModelForCausalLM.from_pretrained(_folder(model), dtype=torch.float32).eval()
    ready = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            loaded.base_model(input_ids=batch.ids, use_cache=False)
    return {"load": ready - start, "seconds": time.perf_counter() - ready}


def products(recipe: str) -> dict[str, float]:
    """XᵀX in float32 of as many random rows as the geometry has positions, for each site: the n·in² of its moments."""
    import torch

    inputs = opened(recipe)
    ((name, model),) = inputs.models.items()
    positions = inputs.samples[name].positions
    widths = [site.width for site in model.layout.sites.values()]
    seconds = {}
    for width in set(widths):
        rows = torch.randn(min(positions, 1024), width)
        start = time.perf_counter()
        for _ in range(-(-positions // len(rows))):
            rows.T @ rows
        seconds[width] = time.perf_counter() - start
    return {"seconds": sum(seconds[width] for width in widths)}


def _folder(model: Any) -> str:
    return str(model.folder)


def _batches(inputs: Any, name: str) -> Any:
    from vecsurgery.forward.batches import make_batches

    used = [sample for sample in inputs.samples[name].samples if sample.positions]
    return make_batches([sample.ids[: sample.positions[-1] + 1] for sample in used])


def _fed(inputs: Any, name: str) -> int:
    return sum(batch.ids.numel() for batch in _batches(inputs, name))
