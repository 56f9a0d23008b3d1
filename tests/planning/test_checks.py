"""What `check` compares before heavy work: lineage, strangers, vocabularies, end tokens, tying, finite weights."""

import json
import shutil
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support import models
from support.results import edit_json, same_bits, tensors_of
from support.workspace import Workspace

import vecsurgery
from vecsurgery import report
from vecsurgery.cli import main
from vecsurgery.errors import InputError

ROPE = {"rope_theta": 1e6, "rope_type": "default"}
SCALED = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _warnings(workspace: Workspace) -> list[str]:
    """Those about models; the tags of the thoughts stand beside words, which the word tokenizer does not know."""
    found = vecsurgery.check(workspace.write())["warnings"]
    return [warning for warning in found if not warning.startswith("geometry ")]


def test_kin_with_equal_settings_give_no_warning(rain: Workspace) -> None:
    found = vecsurgery.check(rain.write())
    assert _warnings(rain) == []
    assert 0.0 < found["facts"]["distances"]["instruct"] < 0.5
    assert found["facts"]["architecture"] == "llama"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("changes", "title", "shown"),
    [
        ({"rope_parameters": ROPE}, "RoPE base", "1000000.0"),
        ({"rope_parameters": SCALED}, "RoPE scaling", "linear"),
        ({"rms_norm_eps": 1e-5}, "normalisation epsilon", "1e-05"),
        ({"hidden_act": "gelu"}, "activation", "gelu"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}, "attention heads", "8"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}, "key-value heads", "4"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}, "head dimension", "4"),
    ],
    ids=["rope base", "rope scaling", "epsilon", "activation", "heads", "key-value heads", "head dimension"],
)
@pytest.mark.parametrize("model", ["tuned", "base"])
def test_a_difference_of_lineage_is_a_warning_by_name(
    rain: Workspace, changes: dict[str, Any], title: str, shown: str, model: str
) -> None:
    edit_json(rain.root / model / "config.json", **changes)
    (warning,) = [text for text in _warnings(rain) if title in text]
    assert warning.startswith(f"deltas.instruct: {title} differs: into has ")
    assert f", {model} has " in warning
    assert shown in warning.partition(f"{model} has ")[2]


def test_a_difference_of_sliding_windows_is_a_warning(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / "into")
    shutil.rmtree(workspace.root / "tuned")
    into = models.checkpoint(workspace.root / "into", "mistral", seed=1)
    models.perturbed(into, workspace.root / "tuned", seed=2)
    assert _warnings(workspace) == []
    edit_json(workspace.root / "tuned" / "config.json", sliding_window=8)
    (warning,) = _warnings(workspace)
    assert "sliding window differs" in warning


def test_tying_follows_into_and_a_difference_is_a_warning(workspace: Workspace) -> None:
    tuned = workspace.root / "tuned"
    tensors = tensors_of(tuned)
    del tensors[HEAD]
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    edit_json(tuned / "config.json", tie_word_embeddings=True)
    assert any("tying of embedding and head differs" in warning for warning in _warnings(workspace))


def _tie(workspace: Workspace) -> None:
    """`into` ties its head to its embedding; the pair keeps two tensors that differ."""
    tensors = tensors_of(workspace.root / "into")
    del tensors[HEAD]
    save_file(tensors, workspace.root / "into" / "model.safetensors", metadata={"format": "pt"})
    edit_json(workspace.root / "into" / "config.json", tie_word_embeddings=True)


def test_an_untied_delta_on_a_tied_model_is_refused_unless_it_is_dropped(rain: Workspace) -> None:
    _tie(rain)
    rain.recipe["steps"][0]["others"] = "source"
    with pytest.raises(InputError, match=r"ties 'lm_head.weight' to 'model.embed_tokens.weight'"):
        vecsurgery.run(rain.write(), rain.out)
    rain.recipe["steps"][0]["others"] = "drop"
    vecsurgery.run(rain.write(), rain.out)
    assert same_bits(tensors_of(rain.out)[EMBEDDING], tensors_of(rain.root / "into")[EMBEDDING])
    assert HEAD not in tensors_of(rain.out)


def test_strangers_are_told_from_kin(rain: Workspace) -> None:
    for name in ("base", "tuned"):
        shutil.rmtree(rain.root / name)
    base = models.checkpoint(rain.root / "base", seed=77, dtype=torch.bfloat16)
    models.perturbed(base, rain.root / "tuned", seed=2)
    found = vecsurgery.check(rain.write())
    assert found["facts"]["distances"]["instruct"] > 1.0
    assert any("into and base differ by" in warning and "unrelated" in warning for warning in found["warnings"])


def test_rows_of_other_tokens_get_no_delta_and_are_listed(workspace: Workspace) -> None:
    file = workspace.root / "tuned" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w100"', '"x"').replace('"w101"', '"w100"').replace('"x"', '"w101"'))
    found = vecsurgery.check(workspace.write())
    assert found["facts"]["vocabulary rows without delta"] == {"change": 2}
    (warning,) = found["warnings"]
    assert "2 vocabulary rows of `into` mean another token" in warning
    assert "100: into 'w100', tuned 'w101', base 'w100'" in warning
    vecsurgery.run(workspace.write(), workspace.out)
    into, tuned, written = (tensors_of(workspace.root / name) for name in ("into", "tuned", "out"))
    for name in (EMBEDDING, HEAD):
        assert same_bits(written[name][100:102], into[name][100:102])
        assert same_bits(written[name][:100], tuned[name][:100])
        assert same_bits(written[name][102:], tuned[name][102:])


@pytest.mark.parametrize("rows", [150, 170])
def test_the_output_has_the_rows_of_into_whatever_the_pair_has(workspace: Workspace, rows: int) -> None:
    tuned = workspace.root / "tuned"
    tensors = tensors_of(tuned)
    for name in (EMBEDDING, HEAD):
        longer = torch.cat([tensors[name], torch.ones(10, 32, dtype=torch.bfloat16)])
        tensors[name] = longer[:rows].clone()
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    edit_json(tuned / "config.json", vocab_size=rows)
    models.write_tokenizer(tuned, size=rows)
    vecsurgery.run(workspace.write(), workspace.out)
    into, written = tensors_of(workspace.root / "into"), tensors_of(workspace.out)
    common = min(rows, 160)
    for name in (EMBEDDING, HEAD):
        assert written[name].shape == into[name].shape
        assert same_bits(written[name][:common], tensors[name][:common])
        assert same_bits(written[name][common:], into[name][common:])


def test_an_end_token_that_into_lacks_is_a_warning(workspace: Workspace) -> None:
    edit_json(workspace.root / "tuned" / "generation_config.json", eos_token_id=[2, 4])
    (warning,) = _warnings(workspace)
    assert "ends texts with '</think>', which is no end token of `into`" in warning


def test_check_weights_names_every_tensor_that_is_not_finite(rain: Workspace) -> None:
    damaged = {"tuned": ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"], "base": [EMBEDDING]}
    for folder, names in damaged.items():
        tensors = tensors_of(rain.root / folder)
        for number, name in enumerate(names):
            tensors[name].view(-1)[-1] = float("nan") if number else float("inf")
        save_file(tensors, rain.root / folder / "model.safetensors", metadata={"format": "pt"})
    result = CliRunner().invoke(main, ["check", str(rain.write()), "--weights"])
    assert result.exit_code == 2
    assert "3 tensors hold NaN or infinity" in result.stderr
    for folder, names in damaged.items():
        for name in names:
            assert f"{rain.root / folder}: {name}" in result.stderr


def test_check_weights_passes_finite_checkpoints(workspace: Workspace) -> None:
    assert vecsurgery.check(workspace.write(), weights=True)["warnings"] == []


def test_warnings_of_check_stand_in_the_record_of_the_run(rain: Workspace) -> None:
    edit_json(rain.root / "tuned" / "config.json", rms_norm_eps=1e-5)
    record = vecsurgery.run(rain.write(), rain.out)
    assert any("normalisation epsilon differs" in warning for warning in record["warnings"])


def test_a_delta_that_is_named_twice_is_told_of_before_a_run(workspace: Workspace) -> None:
    shutil.copytree(workspace.root / "tuned", workspace.root / "copy")
    workspace.recipe["deltas"] |= {"copy": {"tuned": "copy", "base": "into"}, "other": {"tuned": "base"}}
    told = "deltas.change and deltas.copy are the same change"
    (warning,) = [text for text in _warnings(workspace) if "the same change" in text]
    assert warning.startswith(told)
    plan = vecsurgery.plan(workspace.write())
    assert plan.to_dict()["warnings"] == [warning]
    assert f"\nwarning: {told}" in plan.text()


def test_deltas_that_are_nearly_one_are_told_of_by_the_run(workspace: Workspace) -> None:
    models.perturbed(workspace.root / "tuned", workspace.root / "near", seed=5, only="model.norm")
    workspace.recipe["deltas"] |= {"near": {"tuned": "near"}}
    workspace.recipe["steps"] = [{"project": "spectral"}]
    del workspace.recipe["geometry"]
    assert not [text for text in _warnings(workspace) if "same" in text]
    record = vecsurgery.run(workspace.write(), workspace.out)
    (warning,) = [text for text in report.warnings(record) if "nearly the same" in text]
    assert warning.startswith("spectral: the deltas change and near are nearly the same in 21 of 21 matrices")
