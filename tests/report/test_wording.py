"""Phrases that stand for many names."""

import pytest
from support import models

from vecsurgery.checkpoint import Stored
from vecsurgery.report import wording


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"], "the embedding, the head and 1 norm"),
        (["transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.bias"], "2 embeddings and 1 bias"),
        (["gpt_neox.embed_in.weight", "embed_out.weight"], "the embedding and the head"),
        (
            ["model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.experts.3.w1.weight"],
            "1 router and 1 expert tensor",
        ),
        (["a.bias", "b.bias"], "2 biases"),
        (["backbone.layers.0.mixer.A_log"], "1 other tensor"),
        ([], ""),
    ],
)
def test_kinds_of_tensors_are_told_by_their_names(names, said):
    assert wording.kinds(names) == said


def test_without_numbers_only_the_kinds_are_told():
    assert wording.kinds(["a.norm.weight", "b.norm.weight", "c.bias", "d.bias"], numbers=False) == "norms and biases"


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_every_tensor_outside_the_matrices_of_a_common_model_has_a_name(architecture, tmp_path):
    layout = Stored(models.checkpoint(tmp_path, architecture, tokenizer=False)).layout
    names = [name for name, info in layout.tensors.items() if info.matrix is None]
    said = wording.kinds(names)
    assert "other" not in said
    heads = sum(info.kind == "head" for info in layout.tensors.values())
    assert ("the head" in said) == (heads == 1)


def test_counts_leave_out_what_is_zero():
    assert wording.counts({"rows": 1200, "repeats": 0, "cut": 2, "fingerprint": "abc"}) == "1,200 rows, 2 cut"


def test_settings_say_how_a_step_works_and_not_on_what():
    step = {"fit": "amplify", "id": "a", "delta": "x", "data": ["f"], "seed": 0, "share": 0.9, "range": [1, 8]}
    assert wording.settings(step) == "share 0.9"
    assert wording.settings({"scale": 0.5, "layers": ["0-3"]}) == "scale 0.5"
    assert (
        wording.settings({"project": "x", "keep": 0.02, "unsure": True, "tag": "a"}) == "keep 0.02, unsure yes, tag a"
    )
