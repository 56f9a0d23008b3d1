"""Time of measuring a geometry against bare forward passes, and against forward passes and n·in² products.

    python -m benchmarks.measure                    # two blocks of a 7B Llama: 15 minutes on 2 cores, 5 GB of disk
    python -m benchmarks.measure --size 1b          # six blocks 2048 wide
    python -m benchmarks.measure --model MODEL --data DATA      # a checkpoint and texts of your own, all positions

Three token rules on one random checkpoint: few positions of long texts (tags, as in RAIN-Merging: rows are kept), 1,024
positions that are all tokens (the dearest case of kept rows), and many positions (exact moments). Budgets: 1.3 × the
forward where rows are kept, 1.2 × (forward + n·in² products) for moments. Each job runs in its own process; loading
the bare model is not counted, reading the weights while measuring is.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import _passes
from benchmarks._checkpoints import TINY, Shape, make_pair, write_texts
from benchmarks._common import MEGABYTE, arguments, child, show

SIZES = {
    "tiny": TINY,
    "1b": Shape(layers=6, hidden=2048, intermediate=5632, vocabulary=32000, heads=32, kv_heads=4),
    "7b": Shape(layers=2, hidden=4096, intermediate=11008, vocabulary=32000, heads=32, kv_heads=32),
}
_RECIPE = """
into: {into}
deltas: {{change: {{tuned: {tuned}}}}}
geometry: {{retain: {{data: {data}, tokens: {rule}, max_tokens: {limit}}}}}
steps: [{{project: retain_energy, geometry: retain, keep: 0.1}}]
gates: []
"""
_AROUND = '{around: ["<think>", "</think>"], before: 1}'
_ROWS_LIMIT = 1024


def compare(recipe: Path, title: str) -> dict[str, Any]:
    """One recipe measured, forwarded and multiplied: a line of the table."""
    measured = child(_passes.measuring, recipe=str(recipe), out=str(recipe.with_suffix(".safetensors")))
    forward = child(_passes.bare_forward, recipe=str(recipe))
    multiplied = child(_passes.products, recipe=str(recipe))
    rows_kept = measured.result["positions"] <= _ROWS_LIMIT
    allowed = forward.result["seconds"] + (0.0 if rows_kept else multiplied.result["seconds"])
    return {
        "case": title,
        "tokens": int(measured.result["tokens"]),
        "positions": int(measured.result["positions"]),
        "measure (s)": measured.result["seconds"],
        "forward (s)": forward.result["seconds"],
        "load (s)": forward.result["load"],
        "n·in² (s)": multiplied.result["seconds"],
        "ratio": measured.result["seconds"] / allowed,
        "budget": 1.3 if rows_kept else 1.2,
        "measure, peak (MB)": measured.anonymous // MEGABYTE,
        "forward, peak (MB)": forward.anonymous // MEGABYTE,
    }


def random_cases(folder: Path, shape: Shape, tokens: int) -> dict[str, Path]:
    """Recipes over one random pair: few positions, 1,024 of them, `tokens` of them."""
    into, tuned = make_pair(folder, shape)
    length = 256 if tokens >= 256 else tokens
    texts = write_texts(folder / "texts.jsonl", rows=-(-tokens // length) + 1, length=length + 1)
    tagged = write_texts(folder / "tagged.jsonl", rows=max(1, tokens // length // 2), length=length, tags=True)
    cases = {
        "few positions (tags)": (tagged, _AROUND, tokens),
        "all positions, kept": (texts, "all", min(tokens, _ROWS_LIMIT)),
        "all positions, moments": (texts, "all", tokens),
    }
    recipes = {}
    for number, (title, (data, rule, limit)) in enumerate(cases.items()):
        recipes[title] = folder / f"case{number}.yaml"
        recipes[title].write_text(_RECIPE.format(into=into, tuned=tuned, data=data, rule=rule, limit=limit))
    return recipes


def main(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A line for each case."""
    with tempfile.TemporaryDirectory(prefix="vecsurgery-measure-", dir=options.folder) as name:
        folder = Path(name)
        if options.model is None:
            recipes = random_cases(folder, SIZES[options.size], options.tokens)
        else:
            recipes = {f"all positions of {options.data.name}": _own(folder, options)}
        return {"Measuring": [compare(recipe, title) for title, recipe in recipes.items()]}


def _own(folder: Path, options: argparse.Namespace) -> Path:
    """A recipe over the user's checkpoint; its tuned twin differs in every matrix, so every site is measured."""
    from benchmarks._checkpoints import perturbed

    recipe = folder / "own.yaml"
    tuned = perturbed(options.model.resolve(), folder / "tuned")
    recipe.write_text(
        _RECIPE.format(
            into=options.model.resolve(), tuned=tuned, data=options.data.resolve(), rule="all", limit=options.tokens
        )
    )
    return recipe


if __name__ == "__main__":
    chosen = arguments(__doc__, size="7b", tokens=8192, model=None, data=None, folder=None)
    show(main(chosen), as_json=chosen.json)
