"""The shipped recipes for merging run as written, on tiny models under the names that they give."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import models
from support.results import record_of, tensors_of, write_adapter

import vecsurgery
from vecsurgery.recipe import shipped


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`org/…`: a base, fine-tunes and adapters of it; and the texts that the recipes name."""
    folder = tmp_path_factory.mktemp("merges")
    base = models.checkpoint(folder / "org" / "base", seed=1, num_hidden_layers=2)
    names = ("math", "code", "instruct", "reasoner", "model-tuned-on-unwanted-text")
    for seed, name in enumerate(names, 2):
        models.perturbed(base, folder / "org" / name, seed=seed)
    models.perturbed(base, folder / "org" / "model", seed=9, size=0.0)
    for seed, name in enumerate(("chat-lora", "summaries-lora", "dialogue-lora")):
        write_adapter(folder / "org" / name, {"model.layers.1.self_attn.q_proj": 32}, seed=seed)
    (folder / "general.txt").write_text("\n\n".join(models.sentences(300, seed=1)))
    models.write_thoughts(folder / "reasoning.jsonl")
    return folder


def _carry_out(root: Path, name: str, out: Path, *overrides: str) -> dict[str, torch.Tensor]:
    recipe = root / f"{name}.yaml"
    if not recipe.exists():
        shipped.copy(name, recipe)
    vecsurgery.run(recipe, out, overrides=["gates=[]", *overrides])
    return tensors_of(out)


def _steps(out: Path, layer: int) -> list[dict[str, Any]]:
    """What the record says of a block's q matrix."""
    name = f"model.layers.{layer}.self_attn.q_proj.weight"
    (found,) = [each["steps"] for each in record_of(out)["matrices"] if each["tensor"] == name]
    return list(found)


def test_experts_and_an_adapter_are_made_orthogonal_and_added(root: Path, tmp_path: Path) -> None:
    found, base = _carry_out(root, "sift", tmp_path / "out"), tensors_of(root / "org" / "base")
    steps = _steps(tmp_path / "out", 1)
    assert {step["delta"] for step in steps} == {"math", "code", "chat"}
    assert all(step["facts"]["interference_after"] < step["facts"]["interference"] for step in steps)
    embedding = "model.embed_tokens.weight"
    experts = [tensors_of(root / "org" / name)[embedding] - base[embedding] for name in ("math", "code")]
    assert torch.allclose(found[embedding] - base[embedding], (experts[0] + experts[1]) / 2, atol=1e-6)


def test_adapters_merge_into_one_adapter_with_the_singular_values_of_all(root: Path, tmp_path: Path) -> None:
    merged = _carry_out(root, "adapters", tmp_path / "out", "spectral.rtol=0.000001")
    values = []
    for name in ("summaries-lora", "dialogue-lora"):
        factors = load_file(root / "org" / name / "adapter_model.safetensors")
        values.append(2.0 * torch.linalg.svdvals(_product(factors))[:4])
    assert torch.allclose(
        torch.linalg.svdvals(_product(merged))[:9],
        torch.cat([*values, torch.zeros(1)]).sort(descending=True).values,
        atol=1e-5,
    )
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 8


def _product(factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """B A of an adapter of one matrix."""
    (left,), (right,) = ([tensor for name, tensor in factors.items() if part in name] for part in ("lora_B", "lora_A"))
    return left.float() @ right.float()


def test_a_negated_task_is_what_the_fine_tune_adds_with_the_other_sign(root: Path, tmp_path: Path) -> None:
    away, towards = (
        _carry_out(root, "negate", tmp_path / str(weight), f"weights.unwanted={weight}") for weight in (-1.0, 1.0)
    )
    base = tensors_of(root / "org" / "model")
    for name, tensor in base.items():
        assert torch.allclose(away[name] - tensor, tensor - towards[name], atol=1e-6), name
        assert not torch.equal(away[name], tensor), name


def test_stages_follow_each_other(root: Path, tmp_path: Path) -> None:
    _carry_out(root, "stages", tmp_path / "out")
    first, last = (_steps(tmp_path / "out", layer) for layer in (0, 1))
    assert [step["method"] for step in first] == ["ties", "retain_energy", "null_space", "scale"]
    assert [first[-1]["facts"]["factor"], last[-1]["facts"]["factor"]] == [0.5, 1.0]
