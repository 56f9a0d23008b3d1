"""Head coefficients from checkpoint to checkpoint, against float64 models with whole attention matrices."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from torch import Tensor
from transformers import AutoModelForCausalLM

import vecsurgery
from tests.blackbox import reference
from vecsurgery.calibration import SpannedSample
from vecsurgery.surgery.api import opened

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gpt_neox"]
RHO, LOW, HIGH = 0.5, 0.2, 1.3
RECIPE = """
into: {into}
deltas: {{instruct: {{tuned: {tuned}, base: {base}}}}}
geometry: {{thinking: {{data: {thoughts}, template: none, tokens: {{around: ["<think>", "</think>"]}}}}}}
steps:
  - {{project: null_space, geometry: thinking, rtol: 0.3}}
{fit}
weights: {{instruct: 0.7}}
gates: []
"""
FIT = "  - {{fit: attention_scale, data: {rows}, template: none, rho: 0.5, range: [0.2, 1.3], model: {model}}}"


def _rows(path: Path, count: int = 6) -> Path:
    draw = random.Random(5)
    rows = []
    for number in range(count):
        asked, thought, told = (models.sentences(1, seed=draw.randrange(999), length=size)[0] for size in (6, 5, 8))
        words, reply = asked.split(), told.split()
        rows.append(
            {
                "prompt": f"{asked} ",
                "reasoning": thought,
                "response": told,
                "instruction_spans": [" ".join(words[1:3])],
                "related_spans": [" ".join(reply[:3])],
                "unrelated_spans": [] if number == 2 else [" ".join(reply[5:])],
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _alpha(folder: Path, samples: list[SpannedSample]) -> Tensor:
    """α (layers, heads) by the formula, from eager attention of a float64 model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    related, unrelated = [], []
    for sample in samples:
        with torch.no_grad():
            layers = model(torch.tensor([sample.ids]), output_attentions=True, use_cache=False).attentions
        paid = torch.stack([layer[0].double() for layer in layers])[..., list(sample.instruction)].sum(-1)
        for found, rows in ((related, sample.related), (unrelated, sample.unrelated)):
            if rows:
                found.append(paid[:, :, list(rows)].sum(-1) / len(rows))
    a, u = torch.stack(related).mean(0), torch.stack(unrelated).mean(0)
    alpha = ((a - RHO * u) / (1 + u)).clamp(min=0)
    return (alpha / alpha.mean()).clamp(LOW, HIGH)


def _numbers(tensor: str, shape: tuple[int, ...], alpha: Tensor) -> tuple[Tensor, Tensor]:
    """What rows and columns of one matrix are multiplied by, written down for each family's names."""
    rows, columns = torch.ones(shape[0], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)
    layer = alpha[int(next(part for part in tensor.split(".") if part.isdigit()))]
    shared = layer.reshape(2, 2).mean(1)
    leaf = tensor.split(".")[-2]
    if leaf in ("o_proj", "dense"):
        return rows, layer.repeat_interleave(shape[1] // 4)
    if leaf == "q_proj":
        return layer.repeat_interleave(shape[0] // 4), columns
    if leaf in ("k_proj", "v_proj"):
        return shared.repeat_interleave(shape[0] // 2), columns
    if leaf == "qkv_proj":
        return torch.cat([layer, shared, shared]).repeat_interleave(shape[0] // 8), columns
    if leaf == "query_key_value":
        return layer.repeat_interleave(shape[0] // 4), columns
    return rows * layer.mean(), columns


@pytest.mark.parametrize("model", ["edited", "into"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_scaled_as_whole_attention_matrices_say(family: str, model: str, tmp_path: Path) -> None:
    into = tmp_path / "into"
    wide = {"sliding_window": 16} if family == "mistral" else {}  # wide enough to see some of the instructions
    models.model(models.config(family, **wide), seed=1, spread=0.3).save_pretrained(into)
    models.write_byte_tokenizer(into) if family == "qwen2" else models.write_tokenizer(into)
    places: dict[str, Any] = {"into": into}
    places["tuned"] = models.perturbed(into, tmp_path / "tuned", seed=2)
    places["base"] = models.perturbed(into, tmp_path / "base", seed=3)
    places["thoughts"] = models.write_thoughts(tmp_path / "thoughts.jsonl")
    rows = _rows(tmp_path / "rows.jsonl")
    texts = {"plain": "", "scaled": FIT.format(rows=rows, model=model)}
    for name, fit in texts.items():
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(**places, fit=fit))
        vecsurgery.run(tmp_path / f"{name}.yaml", tmp_path / name)
    samples = opened(tmp_path / "scaled.yaml").fit_samples["attention_scale"].samples
    expected = _alpha(tmp_path / "plain" if model == "edited" else into, list(samples))  # type: ignore[arg-type]
    assert float(expected.std()) > 0.1

    found = json.loads((tmp_path / "scaled" / "surgery" / "attention_scale.coefficients.json").read_text())["tensors"]
    before, plain, scaled = (reference.tensors_of(tmp_path / name) for name in ("into", "plain", "scaled"))
    matrices = [name for name in before if name in found]
    assert len(matrices) == len(found) == {"phi3": 12, "gpt_neox": 12}.get(family, 21)
    for name in before:
        if name not in found:
            assert torch.equal(scaled[name], before[name])
            continue
        along, across = _numbers(name, tuple(before[name].shape), _alpha_of(found))
        added = (plain[name].double() - before[name].double()) * along[:, None] * across
        # Half a unit in the last place of `plain`, times α at most HIGH as much, and of the sum; a unit of float32 in
        # each factor of what is added.
        rounding = 0.5 * HIGH * reference.ulp(plain[name], torch.float32)
        rounding += 0.5 * reference.ulp(scaled[name], torch.float32) + 2.0**-22 * added.abs()
        off = (scaled[name].double() - before[name].double() - added).abs()
        assert bool((off <= rounding).all())
    _require_equal_coefficients(found, expected)


def _alpha_of(found: dict[str, Any]) -> Tensor:
    """(layers, query heads) as the coefficient file has them, read off the rows of q."""
    rows = {
        int(next(part for part in name.split(".") if part.isdigit())): numbers["q"]
        for name, numbers in found.items()
        if isinstance(numbers, dict) and "q" in numbers
    }
    return torch.tensor([rows[layer] for layer in sorted(rows)], dtype=torch.float64)


def _require_equal_coefficients(found: dict[str, Any], expected: Tensor) -> None:
    for name, multiplier in found.items():
        layer = expected[int(next(part for part in name.split(".") if part.isdigit()))]
        if not isinstance(multiplier, dict):
            assert multiplier == pytest.approx(float(layer.mean()), abs=1e-4)
            continue
        for numbers in multiplier.values():
            assert numbers == pytest.approx(layer.reshape(len(numbers), -1).mean(1).tolist(), abs=1e-4)
