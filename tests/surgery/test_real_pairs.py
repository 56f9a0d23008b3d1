"""The shipped recipe on families with real fields: what is edited, what stays byte for byte, what loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import Family, resized
from support.results import record_of, same_bits, tensors_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import vecsurgery

SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BIAS = "model.layers.1.self_attn.k_proj.bias"


def _run(family: Family, out: Path, *overrides: str) -> Path:
    vecsurgery.run(family.recipe, out, overrides=[*family.overrides, *overrides])
    return out


@pytest.mark.parametrize("name", ["qwen-1.5B", "qwen-7B", "qwen-14B", "llama-8B", "olmo-7B"])
def test_the_merge_loads_and_differs_from_the_reasoning_model_in_matrices_alone(
    name: str, family: Any, tmp_path: Path
) -> None:
    members = family(name)
    out = _run(members, tmp_path / "out", "null_space.rtol=0.7")  # of so few directions, some must be left
    reasoner = members.folders["reasoner"]
    before, after = tensors_of(reasoner), tensors_of(out)
    assert before.keys() == after.keys()
    changed = {tensor for tensor in before if not same_bits(before[tensor], after[tensor])}
    assert changed == {tensor for tensor in before if tensor.endswith("_proj.weight")}
    for file in SIDE_FILES:
        assert (out / file).read_bytes() == (reasoner / file).read_bytes()
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert bool(torch.isfinite(model(**prompt).logits).all())
    assert GenerationConfig.from_pretrained(out).top_p == 0.95
    if name != "olmo-7B":
        assert any("7 vocabulary rows" in warning for warning in record_of(out)["warnings"])


def test_added_as_they_are_vocabulary_rows_follow_their_strings_and_the_head_the_tied_pair(
    family: Any, tmp_path: Path
) -> None:
    members = family("qwen-1.5B")
    out = _run(members, tmp_path / "out", "null_space.others=source")
    into, tuned, base = (tensors_of(members.folders[kind]) for kind in ("reasoner", "instruct", "base"))
    after = tensors_of(out)
    delta = tuned[EMBEDDING].double() - base[EMBEDDING].double()
    delta[151643:151650] = 0.0
    for table in (EMBEDDING, HEAD):
        assert same_bits(after[table], (into[table].double() + delta).to(torch.bfloat16))
        assert not same_bits(after[table], into[table])
    moved = tuned[BIAS].double() - base[BIAS].double()
    assert same_bits(after[BIAS], (into[BIAS].double() + moved).to(torch.bfloat16))


@pytest.mark.parametrize(("role", "rows"), [("reasoner", 151665), ("instruct", 151665), ("reasoner", 152192)])
def test_the_result_has_the_rows_of_the_reasoning_model_whatever_the_pair_has(
    role: str, rows: int, family: Any, tmp_path: Path
) -> None:
    members = family("qwen-7B").own(role)
    resized(members.folders[role], rows)
    out = _run(members, tmp_path / "out", "null_space.others=source")
    into, tuned, base = (tensors_of(members.folders[kind]) for kind in ("reasoner", "instruct", "base"))
    common = min(tensors[EMBEDDING].shape[0] for tensors in (into, tuned, base))
    delta = torch.zeros(into[EMBEDDING].shape, dtype=torch.float64)
    for table in (EMBEDDING, HEAD):
        delta[:common] = tuned[table][:common].double() - base[table][:common].double()
        delta[151643:151650] = 0.0
        assert same_bits(tensors_of(out)[table], (into[table].double() + delta).to(torch.bfloat16))
