"""Small checkpoints with the fields of real families: Qwen2.5, Llama 3.1, their R1 distillations, and Olmo 3.

Widths and depths are tiny. What a merge trips over is real: RoPE, epsilons, tying, rows of the vocabulary, end
tokens, and the tokenizers and templates of `support.words`.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.words import (
    LLAMA_WORDS,
    OLMO_TEMPLATE,
    OLMO_THINK_TEMPLATE,
    OLMO_WORDS,
    QWEN_WORDS,
    R1_LLAMA_WORDS,
    R1_QWEN_WORDS,
    Words,
    write_json,
    write_words,
)
from transformers import AutoConfig

from vecsurgery.recipe import shipped


@dataclass(frozen=True)
class Member:
    """A model of a family under its name on the hub."""

    hub: str
    config: dict[str, Any]
    words: Words
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.hub.partition("/")[2]


KINDS = ("base", "instruct", "reasoner")
_TINY: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
_SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}


def _qwen(size: str, kind: str) -> Member:
    """Qwen2.5 in one size: `kind` is base, instruct or reasoner (its R1 distillation)."""
    small, large, reasoner, instruct = size == "1.5B", size in ("14B", "32B"), kind == "reasoner", kind == "instruct"
    windows = {"1.5B": (28, 21, 21), "7B": (28, 28, 28), "14B": (48, 70, 48), "32B": (64, 70, 64)}[size]
    config = {
        **_TINY,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936 if small else 152064,
        "intermediate_size": 27648 if size == "32B" else 12,  # the real width is a matter of its own there
        "tie_word_embeddings": small and not reasoner,
        # The small distillations come from Qwen2.5-Math, the large ones from Qwen2.5.
        "rope_theta": 10000 if reasoner and not large else 1000000.0,
        "rms_norm_eps": 1e-5 if large and not instruct else 1e-6,
        "max_position_embeddings": 32768 if instruct else 131072,
        "max_window_layers": windows[KINDS.index(kind)],
        "sliding_window": 4096 if reasoner else 32768 if instruct else 131072,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645 if instruct else 151643,
    }
    if reasoner:
        name = f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}"
        return Member(name, config, R1_QWEN_WORDS, {"bos_token_id": 151646, "eos_token_id": 151643, **_SAMPLED})
    name = f"Qwen/Qwen2.5-{size}"
    if kind == "base":
        words = replace(QWEN_WORDS, eos="<|endoftext|>")
        return Member(name, config, words, {"bos_token_id": 151643, "eos_token_id": 151643, "do_sample": False})
    generation = {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643, "do_sample": True}
    return Member(f"{name}-Instruct", config, QWEN_WORDS, generation)


def _llama(kind: str) -> Member:
    """Llama-3.1-8B: `kind` is base, instruct or reasoner (its R1 distillation)."""
    ends: Any = [128001, 128008, 128009] if kind == "instruct" else 128001
    config = {
        **_TINY,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "bos_token_id": 128000,
        "eos_token_id": ends,
    }
    names = {"base": "meta-llama/Llama-3.1-8B", "instruct": "meta-llama/Llama-3.1-8B-Instruct"}
    words = {"base": replace(LLAMA_WORDS, eos="<|end_of_text|>", template=None), "instruct": LLAMA_WORDS}
    name = names.get(kind, "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    generation = {"bos_token_id": 128000, "eos_token_id": ends, **_SAMPLED}
    return Member(name, config, words.get(kind, R1_LLAMA_WORDS), generation)


def _olmo(kind: str) -> Member:
    """Olmo 3 7B: three blocks in four look at a window, and the tags of Think are no tokens."""
    config = {
        **_TINY,
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100278,
        "tie_word_embeddings": False,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "sliding_window": 4096,
        "rope_theta": 500000,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 65536,
        "bos_token_id": None,
        "eos_token_id": 100257,
        "pad_token_id": 100277,
    }
    names = {"base": "Olmo-3-1025-7B", "instruct": "Olmo-3-7B-Instruct", "reasoner": "Olmo-3-7B-Think"}
    templates = {"base": None, "instruct": OLMO_TEMPLATE, "reasoner": OLMO_THINK_TEMPLATE}
    ends: Any = [100265, 100257] if kind == "instruct" else 100257
    words = replace(OLMO_WORDS, template=templates[kind])
    return Member(f"allenai/{names[kind]}", config, words, {"eos_token_id": ends, "pad_token_id": 100277, **_SAMPLED})


FAMILIES: dict[str, dict[str, Member]] = {
    **{f"qwen-{size}": {kind: _qwen(size, kind) for kind in KINDS} for size in ("1.5B", "7B", "14B", "32B")},
    "llama-8B": {kind: _llama(kind) for kind in KINDS},
    "olmo-7B": {kind: _olmo(kind) for kind in KINDS},
}


def write_family(root: Path, family: str) -> dict[str, Path]:
    """The three checkpoints of a family under the names of their repositories; the weights are kin to the base's."""
    folders = {}
    base: dict[str, torch.Tensor] = {}
    for seed, kind in enumerate(KINDS):
        member = FAMILIES[family][kind]
        folders[kind] = folder = root / member.name
        write_words(folder, member.words)
        write_json(folder / "config.json", member.config)
        write_json(folder / "generation_config.json", member.generation)
        built = models.model(AutoConfig.from_pretrained(folder), seed=0, dtype=torch.bfloat16)
        tensors = {name: tensor.clone() for name, tensor in built.state_dict().items()}
        if member.config["tie_word_embeddings"]:
            del tensors["lm_head.weight"]
        base = base or tensors
        save_file(_kin(base, tensors, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folders


def _kin(base: dict[str, torch.Tensor], own: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The base's tensors, moved a little unless this is the base; a head that it ties starts as its embedding."""
    if seed == 0:
        return own
    generator = torch.Generator().manual_seed(seed)
    start = {**base, "lm_head.weight": base.get("lm_head.weight", base["model.embed_tokens.weight"])}
    return {
        name: (start[name].float() + 0.02 * torch.randn(start[name].shape, generator=generator)).to(torch.bfloat16)
        for name in own
    }


def resized(folder: Path, rows: int) -> Path:
    """The checkpoint with another number of rows in embedding and head, as resizing to the tokenizer leaves it."""
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            shape = (max(0, rows - tensors[name].shape[0]), tensors[name].shape[1])
            tensors[name] = torch.cat([tensors[name][:rows], torch.ones(shape, dtype=torch.bfloat16)]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "vocab_size": rows})
    return folder


THOUGHTS = (
    ("What is 2 + 3?", "2 and 3 make 5.\n\nSo it is 5.", "The sum is 5."),
    ("Name a colour of the sky.", "By day it is blue, I think.", "Blue."),
    ("Is 7 prime?", "7 has no divisor but 1 and 7.", "Yes, 7 is prime."),
)


def write_thoughts(path: Path, rows: Sequence[tuple[str, str, str]] = THOUGHTS) -> Path:
    """Rows of prompt, reasoning and response."""
    keys = ("prompt", "reasoning", "response")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Family:
    """The members of a family on disk, with the shipped recipe and its data in a folder of the test."""

    folders: dict[str, Path]
    recipe: Path

    @property
    def overrides(self) -> list[str]:
        """`--set` assignments that put these folders into the recipe; random models fall into loops by themselves."""
        return [
            f"into={self.folders['reasoner']}",
            f"deltas.instruct={{tuned: {self.folders['instruct']}, base: {self.folders['base']}}}",
            "gates=[]",
        ]

    def own(self, kind: str) -> "Family":
        """The same with a copy of one member that the test may change."""
        copy = self.recipe.parent / f"own-{self.folders[kind].name}"
        shutil.copytree(self.folders[kind], copy)
        return replace(self, folders={**self.folders, kind: copy})


@pytest.fixture(scope="session")
def written_families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """A family's checkpoints by kind, written once."""
    return cache(lambda name: write_family(tmp_path_factory.mktemp("families"), name))


@pytest.fixture
def family(written_families: Callable[[str], dict[str, Path]], tmp_path: Path) -> Callable[[str], Family]:
    """A family by name, with the shipped recipe of such merges."""

    def made(name: str) -> Family:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        recipe = root / "rain.yaml"
        if not recipe.exists():
            shipped.copy("rain", recipe)
            write_thoughts(root / "reasoning.jsonl")
        return Family(written_families(name), recipe)

    return made
