"""A real model: fine-tune it on a task, run both projectors on the delta, and compare with bare forward passes.

    python -m benchmarks.real_model --model MODEL --data DATA [--steps 120] [--seed 0]

MODEL: a small Llama folder (the table in docs is of the 15M stories model). DATA: a folder of TOFU with forget10.json,
the task, and retain90.json, the text to be protected. AdamW in float32 on all weights; base and tuned checkpoint are
stored in float32 and in bfloat16. Every run, and every bare forward over the token batches of its geometry, is a
process of its own.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import _passes
from benchmarks._checkpoints import save_as
from benchmarks._common import MEGABYTE, Outcome, arguments, child, show

_BATCH = 8
_LENGTH = 128
_RATE = 5e-4
_RECIPE = """
into: {folder}/base
deltas: {{task: {{tuned: {folder}/tuned}}}}
geometry: {{retain: {{data: {data}, {limits}}}}}
steps: [{{project: {project}, geometry: retain, {option}}}]
gates: []
"""
PROJECTORS = {
    "retain_energy": ("keep: 0.1", "limit: {rows}"),
    "null_space": ("rtol: 0.1", "limit: {few}"),
}


def fine_tune(model: str, data: str, folder: str, steps: int, seed: int) -> dict[str, float]:
    """In the child: train on the task's questions and answers; save base and tuned in both types.

    Returns the mean loss of the first and the last ten steps, in nats.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for dtype in ("float32", "bfloat16"):
        save_as(loaded, Path(model), Path(folder, dtype, "base"), dtype)
    rows = json.loads(Path(data, "forget10.json").read_text())
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    samples = [tokenizer(text, truncation=True, max_length=_LENGTH)["input_ids"] for text in texts]
    optimiser = torch.optim.AdamW(loaded.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(seed)
    loaded.train()
    losses = []
    for _ in range(steps):
        chosen = torch.randint(0, len(samples), (_BATCH,), generator=generator).tolist()
        ids, labels = _padded([samples[index] for index in chosen])
        loss = loaded(input_ids=ids, attention_mask=(labels >= 0).long(), labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    loaded.eval()
    for dtype in ("float32", "bfloat16"):
        save_as(loaded, Path(model), Path(folder, dtype, "tuned"), dtype)
    return {"first": sum(losses[:10]) / len(losses[:10]), "last": sum(losses[-10:]) / len(losses[-10:])}


def surgery(recipe: str, out: str) -> dict[str, Any]:
    """In the child: the whole run. Returns the record's seconds and matrices."""
    import vecsurgery

    record = vecsurgery.run(recipe, out)
    return {"seconds": record["seconds"], "matrices": record["matrices"]}


def _padded(samples: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (batch, length) padded on the right, and labels that leave the padding out."""
    length = max(map(len, samples))
    ids = torch.tensor([sample + [0] * (length - len(sample)) for sample in samples])
    labels = torch.tensor([sample + [-100] * (length - len(sample)) for sample in samples])
    return ids, labels


def effect(name: str, dtype: str, matrices: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What the projector did, over all matrices: bias and norm before and after, as intended and as stored."""
    stored = [row["stored"]["retain"] for row in matrices]
    ranks = [int(row["steps"][0]["facts"]["rank"]) for row in matrices]
    before = sum(row["rab_before"] for row in stored)
    norm = sum(row["norm_before"] ** 2 for row in stored)

    def ratio(key: str) -> float:
        squares = sum((row.get(key, 0.0) * row["norm_before"]) ** 2 for row in stored)
        return float((squares / norm) ** 0.5)

    return {
        "projector": name,
        "stored as": dtype,
        "matrices": len(matrices),
        "rank, least": min(ranks),
        "median": median(ranks),
        "most": max(ranks),
        "RAB before": before,
        "left, intended": sum(row["rab_after_intended"] for row in stored) / before,
        "left, stored": sum(row["rab_after_stored"] for row in stored) / before,
        "‖D′‖/‖D‖, intended": ratio("norm_ratio_intended"),
        "stored": ratio("norm_ratio_stored"),
    }


def cost(name: str, dtype: str, run: Outcome, forward: Outcome) -> dict[str, Any]:
    """Seconds of each phase and peak memory, against the bare forward passes."""
    phases = run.result["seconds"]
    seconds = forward.result["seconds"]
    return {
        "projector": name,
        "stored as": dtype,
        **{f"{phase} (s)": float(phases.get(phase, 0.0)) for phase in ("check", "plan", "measure", "write")},
        "forward (s)": seconds,
        "measure / forward": phases["measure"] / seconds,
        "whole process (s)": run.seconds,
        "process of the forward (s)": forward.seconds,
        "peak anonymous (MB)": run.anonymous // MEGABYTE,
        "forward's peak (MB)": forward.anonymous // MEGABYTE,
        "memory ratio": run.anonymous / forward.anonymous,
    }


def main(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Fine-tune once, then a run and a bare forward for each projector and type."""
    effects, costs = [], []
    data = options.data.resolve()
    with tempfile.TemporaryDirectory(prefix="vecsurgery-real-") as name:
        trained = child(
            fine_tune,
            model=str(options.model.resolve()),
            data=str(data),
            folder=name,
            steps=options.steps,
            seed=options.seed,
        )
        for dtype in ("float32", "bfloat16"):
            for projector, (option, limits) in PROJECTORS.items():
                recipe = Path(name, f"{dtype}-{projector}.yaml")
                texts = {
                    "project": projector,
                    "option": option,
                    "limits": limits.format(rows=options.rows, few=max(1, options.rows // 20)),
                }
                recipe.write_text(_RECIPE.format(folder=Path(name, dtype), data=data / "retain90.json", **texts))
                run = child(surgery, recipe=str(recipe), out=str(recipe.with_suffix("")))
                forward = child(_passes.bare_forward, recipe=str(recipe))
                effects.append(effect(projector, dtype, run.result["matrices"]))
                costs.append(cost(projector, dtype, run, forward))
    training = [{"steps": options.steps, **trained.result, "seconds": trained.seconds}]
    return {"Fine-tuning, loss in nats": training, "Effect on the delta": effects, "Cost": costs}


if __name__ == "__main__":
    chosen = arguments(__doc__, model=Path, data=Path, steps=120, seed=0, rows=400)
    show(main(chosen), as_json=chosen.json)
