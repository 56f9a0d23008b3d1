"""LoRA adapters: the delta equals what PEFT merges, stays factored, and every other kind is refused by name."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from delta_fakes import Fake, of_model
from safetensors.torch import load_file, save_file

from vecsurgery.checkpoint import Stored
from vecsurgery.delta import Adapter, Difference, Factored, WithAdapter, check_tying
from vecsurgery.errors import InputError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own


def llama(**changes: Any) -> transformers.PreTrainedModel:
    fields = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **{**fields, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, **changes}
    )
    return _built(config)


def gpt2() -> transformers.PreTrainedModel:
    return _built(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32))


def _built(config: Any) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model


def trained(model: transformers.PreTrainedModel, folder: Path, **settings: Any) -> tuple[Fake, Fake]:
    """Save an adapter with random values to `folder`; the base's weights, and PEFT's merged ones in float32."""
    base = of_model(model)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings})
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    adapted.save_pretrained(folder)
    return base, of_model(adapted.merge_and_unload())


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


ATTENTION = ["q_proj", "v_proj", "o_proj"]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (llama, {"target_modules": ATTENTION}),
    "rslora": (llama, {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.o_proj": 5},
            "alpha_pattern": {"v_proj": 11, "model.layers.0.mlp.down_proj": 3},
        },
    ),
    "all linear": (llama, {"target_modules": "all-linear"}),
    "saved modules": (llama, {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "embedding": (llama, {"target_modules": [*ATTENTION, "embed_tokens"]}),
    "head": (llama, {"target_modules": ["lm_head", "q_proj"]}),
    "biases": (lambda: llama(attention_bias=True), {"target_modules": ATTENTION, "bias": "all"}),
    "turned": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "turned unsaid": (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_delta_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    build, settings = CASES[case]
    base, merged = trained(build(), tmp_path, **settings)
    source = Adapter("lora", tmp_path, base)
    check_tying(source)
    merged_delta = Difference("merged", merged, base, base)
    changed = [name for name in source.names if source.changed(name)]
    assert changed == [name for name in merged_delta.names if merged_delta.changed(name)]
    for name in base.layout.order:
        delta, expected = source.read(name), merged_delta.read(name)
        assert (delta is None) == (expected is None), name
        if delta is not None and expected is not None:
            torch.testing.assert_close(delta.dense(), expected.dense(), rtol=1e-5, atol=1e-6)
            rows = torch.tensor([3, 0])
            part = source.read(name, rows)
            assert part is not None
            torch.testing.assert_close(part.dense(), delta.dense()[rows])


@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_stored_checkpoint_takes_the_adapter_that_peft_trained_on_it(build: Any, tmp_path: Path) -> None:
    model = build()
    model.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "down_proj"] if build is llama else ["c_attn", "c_fc"]
    _, merged = trained(model, tmp_path / "adapter", target_modules=targets)
    base = Stored(tmp_path / "base")
    source = Difference("x", WithAdapter(base, tmp_path / "adapter"), Stored(tmp_path / "base"), base)
    changed = [name for name in source.names if source.changed(name)]
    assert len(changed) == 4
    for name in changed:
        delta, info = source.read(name), base.layout.by_parameter()[name]
        assert isinstance(delta, Factored)
        assert info.matrix is not None
        added = delta.dense().T if info.matrix.transposed else delta.dense()
        torch.testing.assert_close(base.read(info.name) + added, merged.tensors[name], rtol=1e-5, atol=1e-6)


def test_factors_stay_factors_of_the_adapters_rank(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["q_proj"])
    source = Adapter("lora", tmp_path, base)
    delta = source.read("model.layers.0.self_attn.q_proj.weight")
    assert isinstance(delta, Factored)
    assert delta.left.shape == (16, 4)
    assert delta.left.dtype == delta.right.dtype == torch.float32
    assert source.reads("model.layers.0.self_attn.q_proj.weight") == 2 * 4 * 16 * 4
    assert source.stored("model.layers.0.self_attn.q_proj.weight") == []
    assert source.read("model.layers.0.self_attn.k_proj.weight") is None


def test_a_base_with_an_adapter_is_what_peft_merges_before_any_rounding(tmp_path: Path) -> None:
    base, merged = trained(gpt2(), tmp_path, target_modules=["c_attn", "wte"])
    combined = WithAdapter(base, tmp_path)
    for name in base.layout.order:
        torch.testing.assert_close(combined.read(name), merged.tensors[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(combined.read(name, slice(1, 3)), merged.tensors[name][1:3], rtol=1e-5, atol=1e-6)
    assert combined.fingerprint != base.fingerprint


def test_a_low_precision_base_with_an_adapter_is_float32_where_the_adapter_acts(tmp_path: Path) -> None:
    base, _ = trained(llama().to(torch.bfloat16), tmp_path, target_modules=["q_proj"])
    combined = WithAdapter(base, tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert combined.layout.tensors[name].dtype == "float32"
    assert combined.read(name).dtype == torch.float32
    other = "model.layers.0.self_attn.k_proj.weight"
    assert combined.read(other).dtype == torch.bfloat16
    assert torch.equal(combined.read(other), base.tensors[other])


@pytest.mark.parametrize("case", ["plain", "saved modules", "embedding", "turned"])
def test_the_difference_to_the_same_base_is_the_adapters_own_delta(case: str, tmp_path: Path) -> None:
    build, settings = CASES[case]
    base, _ = trained(build(), tmp_path, **settings)
    adapter = Adapter("lora", tmp_path, base)
    source = Difference("x", WithAdapter(base, tmp_path), base, base)
    for name in base.layout.order:
        delta, expected = source.read(name), adapter.read(name)
        assert type(delta) is type(expected)
        assert source.changed(name) == adapter.changed(name)
        assert source.reads(name) == adapter.reads(name)
        assert source.stored(name) == adapter.stored(name)
        if delta is not None and expected is not None:
            assert torch.equal(delta.dense(), expected.dense())


def test_masked_token_rows_of_a_factored_delta_are_zero(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["embed_tokens"])
    adapter = Adapter("lora", tmp_path, base)
    name = "model.embed_tokens.weight"
    mask = torch.arange(40) % 3 != 0
    delta = Difference("x", WithAdapter(base, tmp_path), base, base, {name: mask}).read(name, slice(4, 20))
    whole = adapter.read(name)
    assert isinstance(delta, Factored)
    assert whole is not None
    assert torch.equal(delta.dense(), (whole.dense() * mask[:, None])[4:20])


def test_the_difference_to_another_base_is_dense(tmp_path: Path) -> None:
    base, merged = trained(llama(), tmp_path, target_modules=["q_proj"])
    other = base.moved()
    delta = Difference("x", WithAdapter(base, tmp_path), other, base).read("model.layers.0.self_attn.q_proj.weight")
    assert delta is not None
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(delta.dense(), merged.tensors[name] - other.tensors[name], rtol=1e-5, atol=1e-6)


def test_a_bin_file_gives_the_same_delta_without_running_code(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = Adapter("lora", tmp_path, base).read(name)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    found = Adapter("lora", tmp_path, base).read(name)
    assert found is not None
    assert expected is not None
    assert torch.equal(found.dense(), expected.dense())


class _Payload:
    def __reduce__(self) -> Any:
        return print, ("code that must not run",)


def test_a_bin_file_with_code_is_refused(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["q_proj"])
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"x": _Payload()}, tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="cannot be read"):
        Adapter("lora", tmp_path, base)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["q_proj"])
    rewrite(tmp_path, **settings)
    with pytest.raises(UnsupportedError, match=name):
        Adapter("lora", tmp_path, base)


def _renamed(key: str, new: str) -> Any:
    return lambda tensors: {new if name == key else name: tensor for name, tensor in tensors.items()}


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_renamed(KEY, KEY.replace("layers.0", "layers.7")), "expected both lora_A and lora_B"),
        (_renamed(KEY, "model.q.lora_A.weight"), "named in an unknown way"),
        (_renamed(KEY, KEY.replace("lora_A", "lora_X")), "of an unknown kind"),
        (lambda tensors: {**tensors, "base_model.model.extra.weight": torch.ones(2)}, "extra.weight.* fits no tensor"),
        (lambda tensors: {**tensors, KEY: torch.ones(3, 16)}, "expected rank 4"),
        (lambda tensors: {**tensors, KEY: torch.ones(4, 17)}, r"of shape \(16, 17\)"),
        (lambda _: {}, "holds no tensor"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_tensor(change: Any, message: str, tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(InputError, match=message):
        Adapter("lora", tmp_path, base)


def test_numbers_that_are_none_are_refused_on_reading(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(path), KEY: torch.full((4, 16), float("nan"))}, path)
    source = Adapter("lora", tmp_path, base)
    with pytest.raises(InputError, match=r"q_proj\.weight' contains NaN or infinity"):
        source.read("model.layers.0.self_attn.q_proj.weight")


def test_missing_or_damaged_files_are_named(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path / "good", target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        Adapter("lora", tmp_path, base)
    weights = tmp_path / "good" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(InputError, match="cannot be read"):
        Adapter("lora", tmp_path / "good", base)
    weights.unlink()
    with pytest.raises(InputError, match="holds none of"):
        Adapter("lora", tmp_path / "good", base)


def test_an_adapter_on_one_of_two_tied_tensors_is_refused_unless_dropped(tmp_path: Path) -> None:
    base, _ = trained(llama(tie_word_embeddings=True), tmp_path, target_modules=["lm_head", "q_proj"])
    source = Adapter("lora", tmp_path, base)
    with pytest.raises(InputError, match="changes them differently"):
        check_tying(source)
    check_tying(source, others="drop")


def test_an_embedding_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(InputError, match="was trained on another"):
        Adapter("lora", tmp_path, base.moved()).read("model.embed_tokens.weight")


def test_an_adapter_without_the_class_prefix_finds_its_tensors(tmp_path: Path) -> None:
    base, _ = trained(llama(), tmp_path, target_modules=["q_proj"])
    expected = Adapter("lora", tmp_path, base).names
    path = tmp_path / "adapter_model.safetensors"
    save_file(
        {key.replace("base_model.model.model.", "base_model.model."): t for key, t in load_file(path).items()}, path
    )
    assert Adapter("lora", tmp_path, base).names == expected
