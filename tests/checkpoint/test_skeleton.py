"""The skeleton has no weights, finds its blocks, and tells what each block would be called with."""

from typing import Any

import pytest
import torch
from support import models
from transformers import BertConfig, MixtralConfig, RwkvConfig

from vecsurgery.checkpoint import skeleton
from vecsurgery.errors import UnsupportedError

NAMES = {
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "falcon": "transformer.h",
}


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_parameters_are_on_meta_and_rotary_tables_are_real(architecture) -> None:
    config = models.config(architecture)
    built = skeleton.build(config)
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in built.buffers()} <= {"cpu"}
    assert not any(parameter.requires_grad for parameter in built.parameters())
    assert not built.training
    assert built.config is not config


@pytest.mark.parametrize("architecture", models.CONFIGS)
def test_blocks_are_found_under_their_name(architecture) -> None:
    built = skeleton.build(models.config(architecture))
    name, blocks = skeleton.decoder_blocks(built)
    assert name == NAMES.get(architecture, "model.layers")
    assert built.get_submodule(name) is blocks
    assert len(blocks) == 3


def test_the_configuration_is_not_changed() -> None:
    config = models.config("llama", use_cache=True)
    before = config.to_dict()
    skeleton.build(config, dtype=torch.bfloat16)
    assert config.to_dict() == before


def test_a_model_type_without_causal_class_is_refused_by_name() -> None:
    class Unknown(BertConfig):
        model_type = "unheard_of"

    with pytest.raises(UnsupportedError, match="unheard_of"):
        skeleton.build(Unknown())


def test_experts_larger_than_any_memory_are_built_without_it() -> None:
    config = MixtralConfig(
        vocab_size=32, hidden_size=4096, intermediate_size=2**24, num_hidden_layers=1, num_local_experts=4096
    )
    parameters = skeleton.build(config).named_parameters()
    experts = {name: parameter for name, parameter in parameters if parameter.ndim == 3}
    assert sum(parameter.numel() for parameter in experts.values()) > 10**14
    assert all(parameter.is_meta for parameter in experts.values())


def test_forwards_are_restored_even_after_an_error() -> None:
    _, blocks = skeleton.decoder_blocks(skeleton.build(models.config("llama")))
    own = [block.forward for block in blocks]

    def fail(_index: int, _args: Any, _kwargs: Any) -> Any:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), skeleton.replaced_forwards(blocks, fail):
        blocks[0](torch.zeros(1, 1, 32))
    assert [block.forward for block in blocks] == own
    assert all("forward" not in block.__dict__ for block in blocks)


@pytest.mark.parametrize(("architecture", "returns_tuple"), [("gemma3", False), ("falcon", True)])
def test_calls_are_those_of_the_models_own_forward(architecture, returns_tuple) -> None:
    model = models.model(models.config(architecture), seed=0)
    _, blocks = skeleton.decoder_blocks(model)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]])}
    own: dict[int, Any] = {}
    hooks = [
        block.register_forward_pre_hook(
            lambda _module, args, kwargs, index=index: own.__setitem__(index, (args, kwargs)), with_kwargs=True
        )
        for index, block in enumerate(blocks)
    ]
    with torch.no_grad():
        model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    calls = skeleton.block_calls(model, blocks, inputs, returns_tuple=returns_tuple)
    assert torch.equal(skeleton.hidden_states(calls[0]), skeleton.hidden_states(own[0]))
    for index, (_, kwargs) in enumerate(calls):
        mask, expected = kwargs.get("attention_mask"), own[index][1].get("attention_mask")
        assert (mask is None) == (expected is None)
        assert mask is None or torch.equal(mask, expected)


def test_the_first_call_needs_no_block_no_norm_and_no_head() -> None:
    built: Any = skeleton.build(models.config("llama"))
    built.model.embed_tokens.weight = torch.nn.Parameter(torch.randn(160, 32), requires_grad=False)
    _, blocks = skeleton.decoder_blocks(built)
    call = skeleton.first_call(built, blocks, {"input_ids": torch.tensor([[5, 6, 7]])})
    assert torch.equal(skeleton.hidden_states(call)[0], built.model.embed_tokens.weight[5:8])
    assert (
        len(skeleton.block_calls(built, blocks, {"input_ids": torch.tensor([[5, 6]])}, returns_tuple=False, count=2))
        == 2
    )


def test_with_hidden_shares_every_other_argument() -> None:
    shared: dict[str, Any] = {}
    states, other = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    args, kwargs = skeleton.with_hidden(((states, shared), {"memory": shared}), other)
    assert args[0] is other
    assert args[1] is shared
    assert kwargs["memory"] is shared
    _, kwargs = skeleton.with_hidden(((), {"hidden_states": states, "memory": shared}), other)
    assert kwargs["hidden_states"] is other
    assert kwargs["memory"] is shared


def test_blocks_that_do_not_exist_are_refused_by_architecture() -> None:
    built: Any = skeleton.build(RwkvConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, context_length=8))
    built.config.num_hidden_layers = 7
    with pytest.raises(UnsupportedError, match="rwkv"):
        skeleton.decoder_blocks(built)
