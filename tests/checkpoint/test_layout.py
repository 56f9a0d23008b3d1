"""The layout says of every tensor what a real forward of the model shows."""

from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
import transformers
from safetensors.torch import load_file

from vecsurgery.checkpoint import InMemory, Stored, missing_parameters, trace_layout, tracing
from vecsurgery.errors import InputError, UnsupportedError


def _headers(tensors: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: ("float32", tuple(tensor.shape)) for name, tensor in tensors.items()}


def _saved(folder: Path, name: str) -> Stored:
    architectures.build(name).save_pretrained(folder)
    return Stored(folder)


@pytest.mark.parametrize("name", architectures.CONFIGURATIONS)
def test_linear_maps_share_a_site_exactly_where_they_read_the_same_input(name: str) -> None:
    model = architectures.build(name)
    layout = InMemory(model).layout
    seen = architectures.watch(model).inputs
    matrices = {info.parameter: info.matrix for info in layout.tensors.values() if info.matrix is not None}
    assert matrices
    for parameter, matrix in matrices.items():
        for other, other_matrix in matrices.items():
            left, right = seen[parameter], seen[other]
            same = left.numel() == right.numel() and torch.equal(left.flatten(), right.flatten())
            assert (matrix.site == other_matrix.site) == same, (parameter, other)


@pytest.mark.parametrize("name", architectures.CONFIGURATIONS)
def test_a_site_is_named_after_a_map_that_reads_it_and_has_its_width(name: str) -> None:
    model = architectures.build(name)
    layout = InMemory(model).layout
    seen = architectures.watch(model).inputs
    for site in layout.sites.values():
        assert seen[f"{site.name}.weight"].shape[-1] == site.width
        assert all(layout.tensors[tensor].layer == site.layer for tensor in site.tensors)
        assert {layout.tensors[tensor].matrix.site for tensor in site.tensors} == {site.name}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", architectures.CONFIGURATIONS)
def test_every_saved_tensor_is_in_the_layout_and_fills_a_parameter(name: str, tmp_path: Path) -> None:
    stored = _saved(tmp_path, name)
    model = architectures.build(name)
    state = model.state_dict()
    assert set(stored.layout.order) == set(stored.headers)
    for info in stored.layout.tensors.values():
        if info.parameter in state and "experts" not in info.parameter:
            assert torch.equal(stored.read(info.name), state[info.parameter])
    missing = missing_parameters(stored.layout, stored.config)
    assert bool(missing) == (name == "mixtral")
    assert all("experts" in parameter for parameter in missing)


@pytest.mark.parametrize("name", architectures.CONFIGURATIONS)
def test_walking_order_is_embedding_blocks_in_numeric_order_then_the_rest(name: str, tmp_path: Path) -> None:
    layout = _saved(tmp_path, name).layout
    infos = list(layout.tensors.values())
    assert infos[0].kind == "embedding"
    layers = [info.layer for info in infos if info.layer is not None]
    assert layers == sorted(layers)
    first = next(index for index, info in enumerate(infos) if info.layer is not None)
    assert all(info.layer is not None for info in infos[first : first + len(layers)])
    heads = [index for index, info in enumerate(infos) if info.kind == "head"]
    assert heads == list(range(len(infos)))[len(infos) - len(heads) :]
    final = [index for index, info in enumerate(infos) if info.name.endswith((".norm.weight", ".ln_f.weight"))]
    assert all(index > first for index in final)


def test_blocks_are_ordered_by_number_not_by_text() -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=11, num_attention_heads=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    layers = [info.layer for info in InMemory(model).layout.tensors.values() if info.layer is not None]
    assert layers == sorted(layers)
    assert max(layers) == 10


def test_position_embeddings_that_run_first_come_before_the_blocks() -> None:
    layout = InMemory(architectures.build("opt")).layout
    order = [info.parameter for info in layout.tensors.values()]
    first = order.index("model.decoder.layers.0.self_attn.k_proj.weight")
    assert order.index("model.decoder.embed_positions.weight") < first
    assert order.index("model.decoder.project_in.weight") < first
    assert order.index("model.decoder.project_out.weight") > first


@pytest.mark.parametrize("strip", [False, True])
def test_gpt2_is_read_with_and_without_the_prefix_of_its_base_model(strip: bool, tmp_path: Path) -> None:
    stored = _saved(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    if strip:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors["h.1.attn.bias"] = torch.ones(1, 1, 4, 4)
    layout = trace_layout(stored.config, _headers(tensors))
    parameters = {info.parameter for info in layout.tensors.values()}
    assert "transformer.h.0.attn.c_attn.weight" in parameters
    matrix = next(info.matrix for info in layout.tensors.values() if info.parameter.endswith("0.attn.c_attn.weight"))
    assert matrix is not None
    assert matrix.transposed
    if strip:
        leftover = layout.tensors["h.1.attn.bias"]
        assert (leftover.kind, leftover.layer, leftover.parameter) == ("block", 1, "h.1.attn.bias")


@pytest.mark.parametrize("name", ["mixtral", "jamba"])
def test_fused_experts_and_routers_are_block_tensors_without_a_site(name: str, tmp_path: Path) -> None:
    if name == "jamba":
        config = architectures.CONFIGURATIONS["jamba"]()
        config.num_experts, config.expert_layer_period, config.expert_layer_offset = 4, 2, 1
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path)
        layout = Stored(tmp_path).layout
    else:
        layout = _saved(tmp_path, name).layout
    experts = [info for info in layout.tensors.values() if "experts" in info.name]
    routers = [info for info in layout.tensors.values() if info.name.endswith(("router.weight", "gate.weight"))]
    assert experts
    assert routers
    assert all(info.kind == "block" and info.matrix is None for info in experts + routers)
    assert all(info.layer is not None for info in experts + routers)


def test_two_dimensional_weights_that_no_linear_map_reads_are_block_tensors() -> None:
    layout = InMemory(architectures.build("jamba")).layout
    assert layout.tensors["model.layers.0.mamba.dt_proj.weight"].kind == "block"
    assert layout.tensors["model.layers.0.mamba.A_log"].kind == "block"
    assert layout.tensors["model.layers.0.mamba.in_proj.weight"].kind == "matrix"


def test_kinds_of_the_tensors_outside_of_the_blocks() -> None:
    kinds = {name: info.kind for name, info in InMemory(architectures.build("llama")).layout.tensors.items()}
    assert kinds["model.embed_tokens.weight"] == "embedding"
    assert kinds["lm_head.weight"] == "head"
    assert kinds["model.norm.weight"] == "other"
    assert kinds["model.layers.0.input_layernorm.weight"] == "block"


def test_tying_follows_the_configuration(tmp_path: Path) -> None:
    assert _saved(tmp_path / "tied", "qwen2").layout.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert _saved(tmp_path / "untied", "llama").layout.tied == {}


def test_a_tensor_of_another_shape_than_the_configuration_describes_is_refused() -> None:
    model = architectures.build("llama")
    headers = _headers(model.state_dict())
    headers["model.norm.weight"] = ("float32", (33,))
    with pytest.raises(InputError, match=r"model\.norm\.weight.*\[33\].*\[32\]"):
        trace_layout(model.config, headers)


def test_unknown_tensors_are_kept_under_their_own_names() -> None:
    model = architectures.build("llama")
    layout = trace_layout(model.config, {**_headers(model.state_dict()), "extra.stuff": ("float32", (3,))})
    assert layout.tensors["extra.stuff"].kind == "other"
    assert layout.tensors["extra.stuff"].parameter == "extra.stuff"


@pytest.mark.parametrize(
    "config",
    [
        transformers.BartConfig(encoder_layers=1, decoder_layers=1),
        transformers.Gemma3Config(),
        transformers.ViTConfig(),
        transformers.OpenAIGPTConfig(n_layer=2, n_embd=8, n_head=2, vocab_size=9),
        transformers.RwkvConfig(num_hidden_layers=2, hidden_size=8, vocab_size=9),
    ],
    ids=["encoder-decoder", "multimodal", "no language model", "openai-gpt", "rwkv"],
)
def test_other_kinds_of_models_are_refused_by_name(config: Any) -> None:
    with pytest.raises(UnsupportedError, match=config.model_type):
        trace_layout(config, {})


def test_two_folders_of_one_configuration_are_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [_saved(tmp_path / name, "llama") for name in ("one", "other")]
    traced: list[str] = []
    original = tracing._trace

    def watched(config: Any) -> tracing.Trace:
        traced.append(config.name_or_path)
        return original(config)

    monkeypatch.setattr(tracing, "_trace", watched)
    monkeypatch.setattr(tracing, "_known", {})
    first, second = (folder.layout for folder in folders)
    assert first == second
    assert traced == [str(tmp_path / "one")]
