"""What `check` says of reasoning models and instruction models of real families, with the shipped recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support import families
from support.families import Family
from support.results import edit_json

import vecsurgery
from vecsurgery.errors import InputError

QWEN_ENDS = "ends texts with '<|endoftext|>' and '<|im_end|>', which are no end tokens of `into`"
QWEN_ROWS = "7 vocabulary rows of `into` mean another token in the pair"
SMALL_ROPE = 'RoPE base differs: into has {"rope_theta": 10000}, tuned and base have {"rope_theta": 1000000.0}'
LARGE_EPSILON = (
    'normalisation epsilon differs: into has {"rms_norm_eps": 1e-05}, tuned has {"rms_norm_eps": 1e-06}; a delta'
)
TYING = 'tying of embedding and head differs: into has {"tied": false}, tuned and base have {"tied": true}'
LLAMA_ENDS = "ends texts with '<|end_of_text|>' and '<|eom_id|>' and '<|eot_id|>', which are no end tokens of `into`"
WARNINGS = {
    "qwen-1.5B": [SMALL_ROPE, TYING, QWEN_ENDS, QWEN_ROWS],
    "qwen-7B": [SMALL_ROPE, QWEN_ENDS, QWEN_ROWS],
    "qwen-14B": [LARGE_EPSILON, QWEN_ENDS, QWEN_ROWS],
    "qwen-32B": [LARGE_EPSILON, QWEN_ENDS, QWEN_ROWS],
    "llama-8B": [LLAMA_ENDS, QWEN_ROWS],
    "olmo-7B": ["ends texts with '<|im_end|>', which is no end token of `into`"],
}


def _check(family: Family, *overrides: str) -> Any:
    return vecsurgery.check(family.recipe, overrides=[*family.overrides, *overrides])


@pytest.mark.parametrize("name", WARNINGS)
def test_each_family_gets_the_warnings_of_its_differences_and_no_other(name: str, family: Any) -> None:
    found = _check(family(name))
    assert len(found["warnings"]) == len(WARNINGS[name])
    for warning, expected in zip(found["warnings"], WARNINGS[name], strict=True):
        assert warning.startswith("deltas.instruct: ")
        assert expected in warning
    assert found["facts"]["geometry"]["thinking"]["samples"] == len(families.THOUGHTS)
    assert found["facts"]["distances"]["instruct"] < 0.5


def test_an_id_that_ends_a_text_in_one_model_and_names_a_role_in_the_other_is_listed(family: Any) -> None:
    found = _check(family("qwen-7B"))
    (listed,) = [warning for warning in found["warnings"] if "vocabulary rows" in warning]
    assert "151645: into '<｜Assistant｜>', tuned '<|im_end|>', base '<|im_end|>'" in listed
    assert "151648: into '<think>', tuned '<|box_start|>', base '<|box_start|>'" in listed
    assert found["facts"]["vocabulary rows without delta"] == {"instruct": 7}


@pytest.mark.parametrize("role", ["instruct", "base"])
def test_padding_that_only_one_embedding_has_is_listed_as_one_run_of_rows(role: str, family: Any) -> None:
    """A fine-tune resized to its 151,665 tokens meets an embedding padded to 152,064 rows."""
    changed = family("qwen-7B").own(role)
    families.resized(changed.folders[role], 151665)
    found = _check(changed)
    (listed,) = [warning for warning in found["warnings"] if "vocabulary rows" in warning]
    assert listed.endswith("151665-152063: no token, and no row in the pair)")
    assert found["facts"]["vocabulary rows without delta"] == {"instruct": 7 + 399}


def test_padding_that_into_lacks_is_no_matter(family: Any) -> None:
    changed = family("qwen-7B").own("reasoner")
    families.resized(changed.folders["reasoner"], 151936)
    assert _check(changed)["facts"]["vocabulary rows without delta"] == {"instruct": 7}


def test_a_member_of_the_generation_before_llama_3_1_differs_in_its_rope_scaling(family: Any) -> None:
    changed = family("llama-8B").own("instruct")
    edit_json(changed.folders["instruct"] / "config.json", rope_scaling=None)
    (warning,) = [text for text in _check(changed)["warnings"] if "RoPE" in text]
    assert 'RoPE scaling differs: into has {"factor": 8.0, ' in warning
    assert '"rope_type": "llama3"}, tuned has {"rope_type": "default"}' in warning


@pytest.mark.parametrize("name", ["qwen-7B", "llama-8B", "olmo-7B"])
def test_another_spelling_of_the_same_settings_is_no_difference(name: str, family: Any) -> None:
    """As later releases write them: RoPE in one key, the head dimension spelt out, windows that no block has."""
    changed = family(name).own("instruct")
    config = json.loads((changed.folders["instruct"] / "config.json").read_text())
    rope = {"rope_type": "default", **config.get("rope_scaling", {}), "rope_theta": float(config["rope_theta"])}
    rope |= {"type": rope["rope_type"]}
    if "layer_types" in config:
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": rope["rope_theta"]}}
    gone = {"rope_theta": None, "rope_scaling": None}
    if "use_sliding_window" in config:
        gone |= {"sliding_window": None, "max_window_layers": 2}
    edit_json(changed.folders["instruct"] / "config.json", **gone, rope_parameters=rope, head_dim=4)
    assert _check(changed)["warnings"] == _check(family(name))["warnings"]


def test_a_tied_model_takes_no_delta_of_an_untied_pair_but_what_is_dropped(family: Any) -> None:
    """Qwen2.5-1.5B-Instruct ties its head, its R1 distillation does not."""
    members = family("qwen-1.5B")
    folders = members.folders
    swapped = [f"into={folders['instruct']}", f"deltas.instruct.tuned={folders['reasoner']}"]
    with pytest.raises(InputError, match=r"ties 'lm_head\.weight' to 'model\.embed_tokens\.weight'"):
        _check(members, *swapped, "null_space.others=source")
    found = _check(members, *swapped)
    assert any('into has {"tied": true}, tuned has {"tied": false}' in warning for warning in found["warnings"])


def test_a_pair_of_another_size_is_refused_by_tensor_and_shape(family: Any) -> None:
    members, other = family("qwen-7B"), family("qwen-1.5B").own("instruct")
    path = other.folders["instruct"] / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name][:4].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"q_proj\.weight"):
        _check(members, f"deltas.instruct.tuned={other.folders['instruct']}")


@pytest.mark.parametrize("name", ["qwen-7B", "qwen-1.5B", "llama-8B"])
def test_the_plan_drops_biases_norms_and_vocabulary_and_edits_every_matrix(name: str, family: Any) -> None:
    members = family(name)
    plan = vecsurgery.plan(members.recipe, overrides=members.overrides)
    edited = {tensor for tensor, item in plan.tensors.items() if item.action == "edit"}
    assert edited == {tensor for tensor in plan.tensors if tensor.endswith("_proj.weight")}
    assert {item.action for tensor, item in plan.tensors.items() if tensor not in edited} == {"copy"}


def test_without_a_tokenizer_in_the_base_the_ends_and_rows_cannot_be_compared(family: Any, tmp_path: Path) -> None:
    changed = family("qwen-7B").own("base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (changed.folders["base"] / file).unlink()
    assert any("base has no tokenizer in the folder" in warning for warning in _check(changed)["warnings"])
