"""A module, its state dict and its folder are the same weights."""

from pathlib import Path

import architectures
import pytest
import torch

from vecsurgery.checkpoint import InMemory, Stored, missing_parameters
from vecsurgery.errors import InputError


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi3", "falcon-grouped"])
def test_module_state_dict_and_folder_agree(name: str, tmp_path: Path) -> None:
    model = architectures.build(name)
    model.save_pretrained(tmp_path)
    module, state, stored = InMemory(model), InMemory(model.state_dict(), model.config), Stored(tmp_path)
    assert module.layout == state.layout
    assert module.fingerprint == state.fingerprint
    assert set(module.layout.by_parameter()) == set(stored.layout.by_parameter())
    for parameter, info in stored.layout.by_parameter().items():
        assert torch.equal(module.read(module.layout.by_parameter()[parameter].name), stored.read(info.name))


def test_of_a_tied_pair_only_the_name_that_a_checkpoint_holds_is_kept() -> None:
    model = architectures.build("qwen2")
    assert "lm_head.weight" in model.state_dict()
    layout = InMemory(model).layout
    assert "lm_head.weight" not in layout.tensors
    assert layout.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert missing_parameters(layout, model.config) == ()


def test_an_untied_copy_in_a_state_dict_breaks_the_tie() -> None:
    model = architectures.build("qwen2")
    state = {**model.state_dict(), "lm_head.weight": model.lm_head.weight + 1.0}
    layout = InMemory(state, model.config).layout
    assert layout.tied == {}
    assert layout.tensors["lm_head.weight"].kind == "head"


def test_fused_experts_of_a_module_are_its_own_parameters() -> None:
    model = architectures.build("mixtral")
    layout = InMemory(model).layout
    assert missing_parameters(layout, model.config) == ()
    assert {info.kind for info in layout.tensors.values() if "experts" in info.name} == {"block"}


def test_reads_are_views_and_rows_are_rows() -> None:
    model = architectures.build("llama")
    weights = InMemory(model)
    name = "model.embed_tokens.weight"
    assert weights.read(name).data_ptr() == model.get_parameter(name).data_ptr()
    assert torch.equal(weights.read(name, slice(2, 5)), model.get_parameter(name)[2:5])
    assert torch.equal(weights.read(name, torch.tensor([4, 1])), model.get_parameter(name)[[4, 1]])
    assert not weights.read(name).requires_grad


def test_what_cannot_be_used_is_refused() -> None:
    model = architectures.build("llama")
    with pytest.raises(InputError, match="config="):
        InMemory(model.state_dict())
    with pytest.raises(InputError, match="'a' is int"):
        InMemory({"a": 3}, model.config)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="meta"):
        InMemory({"a": torch.empty(3, device="meta")}, model.config)
