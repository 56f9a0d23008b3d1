"""The shipped recipes for merging run as written, on tiny models under the names that they give."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.merge_methods import merge_tensors
from safetensors.torch import load_file
from support import models
from support.results import record_of, require_close, tensors_of, write_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

import vecsurgery
from tests.blackbox import reference
from vecsurgery.geometry import Geometry
from vecsurgery.recipe import shipped

pytestmark = pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name


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
    found = tensors_of(tmp_path / "out")
    into, base, math, code, instruct = (
        tensors_of(root / "org" / name) for name in ("reasoner", "base", "math", "code", "instruct")
    )
    inputs = {name: _inputs(tmp_path / "out", name) for name in ("general", "thinking")}
    for name, tensor in into.items():
        task = [tuned[name] - base[name] for tuned in (math, code)]
        parameters = {"weight": [1.0, 0.7], "density": 0.5}
        zero = torch.zeros_like(tensor)
        expected = merge_tensors([zero, *task], "ties", parameters=parameters, base_index=0).double()
        if "proj" in name:
            general, thinking = inputs["general"](name), inputs["thinking"](name)
            expected = reference.retain_energy(expected, general, 0.2, len(general))
            rank = reference.rank_at(thinking, 0.1)
            other, _ = reference.null_space(instruct[name].double() - base[name].double(), thinking, rank)
            halved = "self_attn" in name and "layers.0" in name
            expected = expected + other * (0.5 if halved else 1.0)
        require_close(found[name].double() - tensor.double(), expected, 1e-3)


def _inputs(out: Path, geometry: str) -> Callable[[str], torch.Tensor]:
    """For a matrix, rows whose second moment is the one that the run measured at its inputs; float64."""
    measured = Geometry.open(out / "surgery" / f"{geometry}.safetensors")

    def rows(tensor: str) -> torch.Tensor:
        site = measured.site_of(tensor)
        assert site is not None
        found = measured.subspace(site)
        assert found.rest == 0.0
        energies = found.energies.double()
        return (energies * len(energies)).sqrt()[:, None] * found.directions.double().T

    return rows


def test_an_unlearned_model_is_cleaned_and_taught_as_the_steps_say(root: Path, tmp_path: Path) -> None:
    base = root / "org" / "original"
    models.checkpoint(base, seed=1, num_hidden_layers=2)
    models.perturbed(base, root / "org" / "unlearned", seed=2, size=0.05)
    models.perturbed(base, root / "org" / "skilled", seed=3)
    _write_questions(base, root / "forget.jsonl", 200, seed=1)
    _write_questions(base, root / "forget-test.jsonl", 4, seed=2)
    _write_questions(base, root / "retain-test.jsonl", 4, seed=3)
    models.write_texts(root / "retain.jsonl", 24, seed=4)
    models.write_texts(root / "skill-test.jsonl", 4, seed=5)
    found = _carry_out(root, "clean-and-teach", tmp_path / "out")
    record = record_of(tmp_path / "out")
    assert set(record["evaluation"]) == {"forget", "retain", "skill"}
    (fit,) = record["fits"]
    into, unlearned, skilled = (tensors_of(root / "org" / name) for name in ("original", "unlearned", "skilled"))
    inputs = {name: _inputs(tmp_path / "out", name) for name in ("retain", "forgotten")}
    for name, tensor in into.items():
        away, skill = (tuned[name].double() - tensor.double() for tuned in (unlearned, skilled))
        if "proj" in name:
            retained, forgotten = inputs["retain"](name), inputs["forgotten"](name)
            away = fit["facts"]["factor"] * reference.retain_energy(away, retained, 0.02, len(retained))
            skill, _ = reference.null_space(skill, forgotten, reference.rank_at(forgotten, 0.1))
        require_close(found[name].double() - tensor.double(), away + skill, 1e-3)
    assert fit["facts"]["factor"] > 1.0


def _write_questions(folder: Path, path: Path, count: int, *, seed: int) -> None:
    """Questions with the answers that a model gives itself."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = models.sentences(count, seed=seed, length=3)
    ids = torch.tensor(tokenizer([f"Question: {question}\nAnswer:" for question in questions])["input_ids"])
    for _ in range(3):
        with torch.no_grad():
            scores = model(input_ids=ids).logits[:, -1]
        scores[:, :9] = -torch.inf  # tags and punctuation
        ids = torch.cat([ids, scores.argmax(dim=1, keepdim=True)], dim=1)
    rows = [
        {"question": question, "answer": " ".join(tokenizer.convert_ids_to_tokens(row[-3:].tolist()))}
        for question, row in zip(questions, ids, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
