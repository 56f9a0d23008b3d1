"""Time and peak memory of each stage of merging as `rain` does it, against bare forward passes over the same tokens.

    python -m benchmarks.rain                       # six blocks 2048 wide; 3 GB of disk
    python -m benchmarks.rain --size 7b             # two blocks of a 7B Llama
    python -m benchmarks.rain --size tiny           # seconds, to see that it works; its ratios mean nothing

A random pair, 30 texts with a thought and 30 rows with spans. Stages: the geometry of the thinking span (`null_space`);
the attention that responses pay to instructions (`attention_scale`, one pass over the edited model); its control, one
pass for the answer losses of three candidates; writing. Each runs in its own process. A bare forward is a plain
transformers model in float32 without its head, loading not counted; reading the weights, and the deltas of the edited
model, while streaming is.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _passes
from benchmarks._checkpoints import TINY, Shape, make_pair, write_texts
from benchmarks._common import MEGABYTE, Outcome, arguments, child, show

SIZES = {
    "tiny": TINY,
    "1b": Shape(layers=6, hidden=2048, intermediate=5632, vocabulary=32000, heads=32, kv_heads=4),
    "7b": Shape(layers=2, hidden=4096, intermediate=11008, vocabulary=32000, heads=32, kv_heads=32),
}
_RECIPE = """
into: {folder}/into
deltas: {{instruct: {{tuned: {folder}/tuned}}}}
geometry: {{thinking: {{{source}}}}}
steps: [{{project: null_space, geometry: thinking}}{fit}]
gates: []
output: {{keep_geometry: false}}
"""
_SPAN = 'tokens: {between: ["<think>", "</think>"]}'
_ROWS = 30


def attention(recipe: str, out: str) -> dict[str, float]:
    """In the child: attention on instructions in the edited model. Returns seconds of the pass alone."""
    from vecsurgery.fits import Candidate

    asking = _asking(recipe, out)
    start = time.perf_counter()
    asking.attention(Candidate("edited"))
    return {"seconds": time.perf_counter() - start}


def control(recipe: str, out: str) -> dict[str, float]:
    """In the child: answer losses of three candidates, as the control of the coefficients asks for them."""
    from vecsurgery.fits import Candidate

    asking = _asking(recipe, out)
    start = time.perf_counter()
    asking([Candidate("edited", factor) for factor in (1.0, 0.9, 1.1)])
    return {"seconds": time.perf_counter() - start}


def _asking(recipe: str, out: str) -> Any:
    from vecsurgery.planning.plans import make_plan
    from vecsurgery.surgery.api import opened
    from vecsurgery.surgery.fitting import asking_for
    from vecsurgery.surgery.geometries import measured

    inputs = opened(recipe)
    return asking_for(inputs, measured(make_plan(inputs), Path(out)), {}, inputs.recipe.steps[-1])


def writing(recipe: str, out: str) -> dict[str, float]:
    """In the child: the rest of the run from a measured geometry, without the fit."""
    import vecsurgery

    start = time.perf_counter()
    vecsurgery.run(recipe, out)
    return {"seconds": time.perf_counter() - start}


def spanned_rows(path: Path, texts: Path) -> Path:
    """Rows of attention data with the words of `texts`: the first half asks, the second answers."""
    lines = []
    for line in texts.read_text().splitlines():
        words = json.loads(line)["text"].split()
        middle, last = len(words) // 2, len(words) - 1
        lines.append(
            json.dumps(
                {
                    "prompt": " ".join(words[:middle]) + " ",
                    "response": " ".join(words[middle:]),
                    "instruction_spans": [" ".join(words[middle // 2 : middle])],
                    "related_spans": [" ".join(words[middle : (middle + last) // 2])],
                    "unrelated_spans": [" ".join(words[(middle + last) // 2 : last])],
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def _line(stage: str, measured: Outcome, forward: Outcome, tokens: int) -> dict[str, Any]:
    return {
        "stage": stage,
        "tokens": tokens,
        "seconds": measured.result["seconds"],
        "bare forward (s)": forward.result["seconds"],
        "ratio": measured.result["seconds"] / forward.result["seconds"],
        "peak (MB)": measured.anonymous // MEGABYTE,
        "forward, peak (MB)": forward.anonymous // MEGABYTE,
    }


def main(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A line for each stage."""
    length = 16 if options.size == "tiny" else options.length
    with tempfile.TemporaryDirectory(prefix="vecsurgery-rain-", dir=options.folder) as name:
        folder = Path(name)
        make_pair(folder, SIZES[options.size])
        thoughts = write_texts(folder / "thoughts.jsonl", rows=_ROWS, length=length, tags=True)
        texts = write_texts(folder / "texts.jsonl", rows=_ROWS, length=length)
        spans = spanned_rows(folder / "spans.jsonl", texts)
        geometry = folder / "thinking.safetensors"
        fit = f", {{fit: attention_scale, data: {spans}}}"
        recipes = {}
        for stage, source, more in (
            ("measure", f"data: {thoughts}, {_SPAN}", ""),
            ("spans", f"data: {texts}", ""),
            ("fit", f"file: {geometry}", fit),
            ("write", f"file: {geometry}", ""),
        ):
            recipes[stage] = folder / f"{stage}.yaml"
            recipes[stage].write_text(_RECIPE.format(folder=folder, source=source, fit=more))
        measured = child(_passes.measuring, recipe=str(recipes["measure"]), out=str(geometry))
        thinking = child(_passes.bare_forward, recipe=str(recipes["measure"]))
        answering = child(_passes.bare_forward, recipe=str(recipes["spans"]))
        of_fit = {"recipe": str(recipes["fit"]), "out": str(folder / "geometry")}
        fed = _ROWS * (length + 1)
        rows = [
            _line("geometry of the thoughts", measured, thinking, int(measured.result["tokens"])),
            _line("attention on instructions", child(attention, **of_fit), answering, fed),
            _line("control, three candidates", child(control, **of_fit), answering, fed),
        ]
        written = child(writing, recipe=str(recipes["write"]), out=str(folder / "out"))
        rows.append(
            {"stage": "write", "seconds": written.result["seconds"], "peak (MB)": written.anonymous // MEGABYTE}
        )
        sizes = {"geometry file (MB)": geometry.stat().st_size / 1e6}
        sizes |= {"checkpoint (MB)": (folder / "into" / "model.safetensors").stat().st_size / 1e6}
        return {"Stages": rows, "Files": [sizes]}


if __name__ == "__main__":
    chosen = arguments(__doc__, size="1b", length=256, folder=None)
    show(main(chosen), as_json=chosen.json)
