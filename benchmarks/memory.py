"""Peak anonymous memory of measuring, fitting and writing: against the bound, with depth, and with many shards.

    python -m benchmarks.memory                     # Llama 3 8B's width, 4 and 16 layers: 28 GB of disk, 40 minutes
    python -m benchmarks.memory --folder FOLDER     # where the checkpoints go while it runs; they are deleted
    python -m benchmarks.memory --phases measure,write    # without the fit, which takes most of the time
    python -m benchmarks.memory --size tiny         # seconds, to see that it works; its ratios mean nothing

Random checkpoints of equal width and equal calibration tokens: `--layers` 4 and 16 in one file, then the shallow one in
many shards. Measuring, one pass of a fit (11 candidate models) and writing (retain_energy, keep 0.1) run in processes
of their own. The bound: the weights of two blocks of each open checkpoint (in the type they are computed in), the
hidden states of the tokens (of each candidate), the geometry of one block, one row chunk of an embedding, 1 GB.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._checkpoints import TINY, Shape, make_pair, write_questions, write_texts
from benchmarks._common import MEGABYTE, Outcome, arguments, child, show

SIZES = {
    "tiny": TINY,
    "8b": Shape(layers=4, hidden=4096, intermediate=14336, vocabulary=128256, heads=32, kv_heads=8),
}
_RECIPE = """
into: {folder}/into
deltas: {{change: {{tuned: {folder}/tuned}}}}
geometry: {{retain: {{{source}}}}}
steps: [{{project: retain_energy, geometry: retain, keep: 0.1}}{fit}]
gates: []
output: {{shard_size: {shard_size}, keep_geometry: false}}
"""
_FIT = ", {{fit: amplify, data: {questions}}}"
_CANDIDATES = 11
_CHUNK = 64 * 2**20
_SPARE = 10**9
_WIDEST_EXACT = 1024


def measure_geometry(recipe: str, out: str) -> dict[str, float]:
    """In the child: measure the recipe's geometry into a file."""
    import vecsurgery

    vecsurgery.measure(recipe, None, out)
    return {}


def fit_candidates(recipe: str, out: str) -> dict[str, float]:
    """In the child: one pass over `into`, the raw delta and 9 factors, as the first of `amplify`."""
    from vecsurgery.fits import Candidate
    from vecsurgery.planning.plans import make_plan
    from vecsurgery.surgery.api import opened
    from vecsurgery.surgery.fitting import asking_for
    from vecsurgery.surgery.geometries import measured

    inputs = opened(recipe)
    geometries = measured(make_plan(inputs), Path(out))
    factors = [Candidate("edited", 1.0 + number) for number in range(_CANDIDATES - 2)]
    losses = asking_for(inputs, geometries, {}, inputs.recipe.steps[-1])(
        [Candidate("into"), Candidate("raw"), *factors]
    )
    return {"capped loss of into": losses[0].capped}


def write_model(recipe: str, out: str) -> dict[str, float]:
    """In the child: the rest of the run, from a measured geometry. Returns seconds per phase."""
    import vecsurgery

    seconds: dict[str, float] = vecsurgery.run(recipe, out)["seconds"]
    return seconds


def bounds(shape: Shape, tokens: int) -> dict[str, int]:
    """The bound of each phase in bytes. Measuring computes in float32 on one model; fitting, in float32 too,
    and writing have two models open.
    """
    widths = (shape.hidden, shape.hidden, shape.hidden, shape.intermediate)
    if tokens <= _WIDEST_EXACT:
        geometry = sum(width * tokens * 4 for width in widths)
    else:
        geometry = sum(width * width * 8 for width in widths)
    states = tokens * shape.hidden * 4
    directions = sum(width * min(tokens, 1024, width) * 4 for width in widths)
    return {
        "measure": 2 * shape.block * 4 + states + geometry + _CHUNK + _SPARE,
        "fit": 2 * 2 * shape.block * 4 + _CANDIDATES * states + directions + _CHUNK + _SPARE,
        "write": 2 * 2 * shape.block * shape.itemsize + directions + _CHUNK + _SPARE,
    }


def run_case(
    folder: Path, shape: Shape, data: Path, questions: Path, tokens: int, phases: list[str]
) -> dict[str, Outcome]:
    """These phases, of which the others need what measuring leaves, on one pair of checkpoints in `folder`, which is
    made, and emptied afterwards.
    """
    make_pair(folder, shape)
    shard_size = -(-shape.parameters * shape.itemsize // shape.shards) + 10**6
    text = {"folder": folder, "shard_size": shard_size}
    geometry = folder / "retain.safetensors"
    source = f"data: {data}, max_tokens: {tokens}"
    (folder / "measure.yaml").write_text(_RECIPE.format(source=source, fit="", **text))
    fit = _FIT.format(questions=questions)
    (folder / "fit.yaml").write_text(_RECIPE.format(source=f"file: {geometry}", fit=fit, **text))
    (folder / "write.yaml").write_text(_RECIPE.format(source=f"file: {geometry}", fit="", **text))
    jobs = {
        "measure": (measure_geometry, geometry),
        "fit": (fit_candidates, folder / "geometry"),
        "write": (write_model, folder / "out"),
    }
    outcomes = {
        phase: child(job, recipe=str(folder / f"{phase}.yaml"), out=str(out))
        for phase, (job, out) in jobs.items()
        if phase in phases
    }
    shutil.rmtree(folder)
    return outcomes


def rows_of(shape: Shape, tokens: int, outcomes: dict[str, Outcome], first: dict[str, Outcome]) -> list[dict[str, Any]]:
    """A line for each phase: the peak, its share of the bound, and its ratio to the first case."""
    limit = bounds(shape, tokens)
    return [
        {
            "phase": phase,
            "layers": shape.layers,
            "shards": len(shape.files),
            "parameters (10⁹)": shape.parameters / 1e9,
            "tokens": tokens,
            "seconds": outcome.seconds,
            "peak anonymous (MB)": outcome.anonymous // MEGABYTE,
            "bound (MB)": limit[phase] // MEGABYTE,
            "of bound": outcome.anonymous / limit[phase],
            "to the first case": outcome.anonymous / first[phase].anonymous,
        }
        for phase, outcome in outcomes.items()
    ]


def main(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every case, one after the other, so that the disk holds one pair and its output at a time."""
    shallow = SIZES[options.size]
    depths = [shallow.with_layers(int(layers)) for layers in options.layers.split(",")]
    cases = [*depths, depths[0].with_shards(options.shards)]
    rows: list[dict[str, Any]] = []
    first: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="vecsurgery-memory-", dir=options.folder) as name:
        folder = Path(name)
        length = min(256, options.tokens)
        data = write_texts(folder / "data.jsonl", rows=-(-options.tokens // length) + 1, length=length)
        questions = write_questions(folder / "questions.jsonl", rows=8, tokens=options.tokens)
        for shape in cases:
            outcomes = run_case(folder / "case", shape, data, questions, options.tokens, options.phases.split(","))
            first = first or outcomes
            rows += rows_of(shape, options.tokens, outcomes, first)
            if not options.json:
                print(json.dumps(rows[-len(outcomes) :]), flush=True)
    rows.sort(key=lambda row: row["phase"])
    return {"Peak anonymous memory": rows}


if __name__ == "__main__":
    chosen = arguments(
        __doc__, size="8b", layers="4,16", shards=24, tokens=256, phases="measure,fit,write", folder=None
    )
    show(main(chosen), as_json=chosen.json)
