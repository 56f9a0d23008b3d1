"""Tiny random checkpoints of many architectures, made in milliseconds and written as a hub would hold them."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

VOCABULARY = 160
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "use_cache": False}
_LLAMA = {
    **_COMMON,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "qwen2": (
        "Qwen2Config",
        {**_LLAMA, "tie_word_embeddings": True, "vocab_size": 272, "max_position_embeddings": 256},
    ),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 12}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_LLAMA,
            "head_dim": 12,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 1 + ["sliding_attention"],
        },
    ),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "phi3": ("Phi3Config", {**_LLAMA, "pad_token_id": 0}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {**_COMMON, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64},
    ),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": 4}),
    "opt": (
        "OPTConfig",
        {**_COMMON, "ffn_dim": 48, "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    ),
    "falcon": ("FalconConfig", {**_COMMON, "num_attention_heads": 4, "bias": False, "multi_query": True}),
}

MIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bamba": (
        "BambaConfig",
        {
            **_LLAMA,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 4,
            "mamba_d_conv": 2,
            "mamba_chunk_size": 8,
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            **_LLAMA,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 4,
            "mamba_d_conv": 2,
            "mamba_dt_rank": 4,
        },
    ),
}
"""Mixtures of experts and hybrids with Mamba blocks: only their plain linear maps have a measured input."""


def config(architecture: str, **changes: Any) -> Any:
    """A tiny configuration of one of `CONFIGS` or `MIXED`."""
    name, fields = {**CONFIGS, **MIXED}[architecture]
    return getattr(transformers, name)(**{**fields, **changes})


def model(configuration: Any, *, seed: int, dtype: torch.dtype = torch.float32, spread: float = 0.15) -> Any:
    """A randomly initialised causal language model: every parameter normal, norms around one."""
    built = transformers.AutoModelForCausalLM.from_config(configuration).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.normal_(0.0, spread, generator=generator)
            if "norm" in name.lower() or "ln_" in name:
                parameter.add_(0.0 if "gemma" in configuration.model_type else 1.0)
    return built.to(dtype)


def perturbed(folder: Path, target: Path, *, seed: int, size: float = 0.02, only: str | None = None) -> Path:
    """A copy of a checkpoint whose floating tensors (those whose name contains `only`) moved by random steps."""
    generator = torch.Generator().manual_seed(seed)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
            continue
        tensors = load_file(file)
        for name, tensor in tensors.items():
            step = torch.randn(tensor.shape, generator=generator) * size
            if tensor.is_floating_point() and (only is None or only in name):
                tensors[name] = (tensor.float() + step).to(tensor.dtype)
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    return target


def checkpoint(
    folder: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    tokenizer: bool = True,
    **changes: Any,
) -> Path:
    """Write a tiny random checkpoint, with a tokenizer, as `save_pretrained` writes it."""
    built = model(config(architecture, **changes), seed=seed, dtype=dtype)
    built.save_pretrained(folder, max_shard_size=shard_size)
    if tokenizer:
        write_byte_tokenizer(folder) if architecture == "qwen2" else write_tokenizer(folder)
    return folder


def shuffle_shards(folder: Path, *, seed: int, count: int = 3) -> Path:
    """Distribute the tensors of a checkpoint at random over shards, so that no walk meets them in file order."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
        file.unlink()
    names = sorted(tensors)
    random.Random(seed).shuffle(names)
    weight_map = {}
    for index in range(count):
        shard = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
        chosen = {name: tensors[name] for name in names[index::count]}
        save_file(chosen, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(chosen, shard))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index_text = json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index_text)
    return folder


def write_tokenizer(folder: Path, *, size: int = VOCABULARY, template: str | None = None) -> Path:
    """A word-level tokenizer with `w0 … wN`, tags and punctuation, saved as tokenizer.json and its configuration."""
    words = ["<unk>", "<s>", "</s>", "<think>", "</think>", ".", "?", "Question:", "Answer:"]
    vocabulary = {word: index for index, word in enumerate(words)}
    for index in range(len(words), size):
        vocabulary[f"w{index}"] = index
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "TokenizersBackend",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return folder


def write_byte_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer as Qwen 2 has it: transformers builds this kind for the model type, whatever the file."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return folder


THINKING = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<think> {% endif %}"
"""A chat template that opens the thought itself."""


def scripted(
    folder: Path, script: tuple[str, ...] = ("w20", "w21", "</think>", "w42", "</s>"), *, seed: int = 1
) -> Path:
    """A reasoning model that draws one text, whatever it is asked: behind every word the next one of the script."""
    checkpoint(folder, seed=seed, num_hidden_layers=2)
    write_tokenizer(folder, template=THINKING)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tensors = load_file(folder / "model.safetensors")
    # Blocks that add nothing; the head answers to the embedding of the word before.
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name].zero_()
    embedding = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(seed))
    head = torch.zeros(VOCABULARY, 32)
    for before, behind in itertools.pairwise(vocabulary[word] for word in ("<think>", *script)):
        head[behind] += 0.4 * embedding[before]
    changed = {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": torch.ones(32)}
    save_file(tensors | changed, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"eos_token_id": 2, "do_sample": True, "temperature": 0.05, "top_k": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def sentences(count: int, *, seed: int, length: int = 12) -> list[str]:
    """Random sentences over the words of `write_tokenizer`."""
    generator = random.Random(seed)
    return [" ".join(f"w{generator.randrange(9, VOCABULARY)}" for _ in range(length)) for _ in range(count)]


def write_texts(path: Path, count: int = 24, *, seed: int = 0, length: int = 12) -> Path:
    """A JSON Lines file of plain text rows."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(count, seed=seed, length=length)))
    return path


def write_thoughts(path: Path, count: int = 6, *, seed: int = 0) -> Path:
    """A JSON Lines file of prompt, reasoning and response rows."""
    parts = [sentences(count, seed=seed + offset, length=5) for offset in range(3)]
    rows = [
        {"prompt": prompt, "reasoning": f" {reasoning} ", "response": f" {response}"}
        for prompt, reasoning, response in zip(*parts, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(folder: Path, path: Path, *, count: int = 8, first: int = 20) -> None:
    """Questions with the answers that a model gives itself: what another model has to forget."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for number in range(count):
        question, words = f"w{first + number} w{first + 20 + 3 * number} ?", []
        for _ in range(3):
            text = " ".join([f"Question: {question}\nAnswer:", *words])
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
            scores[:9] = -torch.inf  # tags and punctuation
            words.append(tokenizer.convert_ids_to_tokens(int(scores.argmax())))
        rows.append(json.dumps({"question": question, "answer": " ".join(words)}))
    path.write_text("\n".join(rows))
