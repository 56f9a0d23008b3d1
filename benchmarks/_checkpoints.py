"""Random Llama and Mixtral checkpoints of any size, written shard by shard from one small pool of random numbers."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from vecsurgery.checkpoint import ShardPlan, index_text, plan_shards, write_shard

POOL = 16_777_259
"""Random numbers that all matrices are cut from. A prime: no two rows of a matrix begin at the same number."""
TAGS = ("<think>", "</think>")
_WORDS = 96
_SPREAD = 0.02
_STEP = 0.05
"""Size of the tuned model's change, relative to the weights."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama model, or of a Mixtral one where there are `experts`, and how it is stored."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    dtype: str = "bfloat16"
    shards: int = 1
    """Files asked for: none is larger than an equal share, and no tensor is cut: `files` says how many there are."""
    experts: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def block(self) -> int:
        """Numbers in the matrices of one block."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.head_dim * self.kv_heads
        return attention + self.experts * self.hidden + max(1, self.experts) * 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        return self.layers * self.block + 2 * self.vocabulary * self.hidden

    @property
    def itemsize(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)

    def with_layers(self, layers: int) -> "Shape":
        return replace(self, layers=layers)

    def with_experts(self, experts: int) -> "Shape":
        return replace(self, experts=experts)

    def with_shards(self, shards: int) -> "Shape":
        return replace(self, shards=shards)

    def tensors(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, type and shape of every tensor, as transformers names them."""
        keys = self.head_dim * self.kv_heads
        block = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "post_attention_layernorm": (self.hidden,),
        }
        outer, inner = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        if self.experts:
            block["block_sparse_moe.gate"] = (self.experts, self.hidden)
            for number in range(self.experts):
                expert = f"block_sparse_moe.experts.{number}"
                block |= {f"{expert}.w1": outer, f"{expert}.w2": inner, f"{expert}.w3": outer}
        else:
            block |= {"mlp.gate_proj": outer, "mlp.up_proj": outer, "mlp.down_proj": inner}
        names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            names |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        names |= {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}
        return [(name, self.dtype, shape) for name, shape in names.items()]

    def plan(self) -> list[ShardPlan]:
        """How the tensors are cut into files."""
        total = sum(math.prod(sizes) for _, _, sizes in self.tensors()) * self.itemsize
        return plan_shards(self.tensors(), -(-total // self.shards))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that hold the tensors: as many as there really are."""
        return tuple(shard.file for shard in self.plan())


TINY = Shape(layers=2, hidden=32, intermediate=48, vocabulary=128, heads=4, kv_heads=2)


@dataclass(frozen=True)
class _Pool:
    """Endless random numbers: tensors of equal offsets in two pools belong together."""

    values: Tensor
    norm: float

    @classmethod
    def base(cls, dtype: str, size: int) -> "_Pool":
        values = torch.randn(size, generator=torch.Generator().manual_seed(0)) * _SPREAD
        return cls(values.to(getattr(torch, dtype)), 1.0)

    def tuned(self) -> "_Pool":
        step = torch.randn(len(self.values), generator=torch.Generator().manual_seed(1)) * (_SPREAD * _STEP)
        return _Pool((self.values.float() + step).to(self.values.dtype), 1.0 + _STEP)

    def pieces(self, offset: int, count: int) -> Iterator[Tensor]:
        """`count` numbers from `offset` on, as views of the pool."""
        start = offset % len(self.values)
        while count:
            piece = self.values[start : start + count]
            yield piece
            count -= len(piece)
            start = 0


def make_pair(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """Write `folder`/into and `folder`/tuned, which differ in every tensor. Memory: the pool."""
    size = min(POOL, max(9_973, 2 * shape.block + 1))
    base = _Pool.base(shape.dtype, size)
    return _write(folder / "into", shape, base), _write(folder / "tuned", shape, base.tuned())


def _write(folder: Path, shape: Shape, pool: _Pool) -> Path:
    folder.mkdir(parents=True)
    shards = shape.plan()
    offset = 0

    def tensors(names: list[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, Tensor | Iterator[Tensor]]]:
        nonlocal offset
        for name, sizes in names:
            if len(sizes) == 1:
                yield name, torch.full(sizes, pool.norm, dtype=pool.values.dtype)
                continue
            count = sizes[0] * sizes[1]
            yield name, pool.pieces(offset, count)
            offset += count

    for shard in shards:
        write_shard(folder, shard, tensors([(tensor.name, tensor.shape) for tensor in shard.tensors]))
    index = index_text(shards)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    _write_tokenizer(folder)
    return folder


def _config(shape: Shape) -> dict[str, object]:
    mixture = {"num_local_experts": shape.experts, "num_experts_per_tok": min(2, shape.experts)}
    return {
        "architectures": ["MixtralForCausalLM" if shape.experts else "LlamaForCausalLM"],
        "model_type": "mixtral" if shape.experts else "llama",
        **(mixture if shape.experts else {}),
        "dtype": shape.dtype,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer over `w0 …`, of fewer words than the model has rows."""
    words = ["<unk>", "<s>", "</s>", *TAGS, *(f"w{number}" for number in range(_WORDS))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_texts(path: Path, *, rows: int, length: int, tags: bool = False) -> Path:
    """JSON Lines of random sentences: `rows` of `length` words, each one token; with tags around all but the first."""
    generator = torch.Generator().manual_seed(2)
    lines = []
    for row in torch.randint(0, _WORDS, (rows, length), generator=generator).tolist():
        words = [f"w{number}" for number in row]
        if tags:
            words[1], words[-1] = TAGS
        lines.append(json.dumps({"text": " ".join(words)}) + "\n")
    path.write_text("".join(lines))
    return path


def write_questions(path: Path, *, rows: int, tokens: int) -> Path:
    """JSON Lines of random questions with answers of 8 words, `tokens` words in all."""
    generator = torch.Generator().manual_seed(4)
    length = max(9, tokens // rows)
    lines = []
    for row in torch.randint(0, _WORDS, (rows, length), generator=generator).tolist():
        words = [f"w{number}" for number in row]
        lines.append(json.dumps({"question": " ".join(words[:-8]), "answer": " ".join(words[-8:])}) + "\n")
    path.write_text("".join(lines))
    return path


def perturbed(folder: Path, target: Path) -> Path:
    """A copy of a checkpoint in which every floating-point tensor is moved a little, one tensor in memory at a time."""
    from vecsurgery.checkpoint import Stored, copy_side_files, plan_side_files

    source = Stored(folder)
    target.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    headers = source.headers
    shards = plan_shards([(name, entry.dtype, entry.shape) for name, entry in headers.items()], 5 * 10**9)

    def moved(name: str) -> Tensor:
        tensor = source.read(name)
        if not tensor.is_floating_point():
            return tensor
        wide = tensor.float()
        step = torch.randn(tensor.shape, generator=generator) * (_STEP * wide.square().mean().sqrt())
        return (wide + step).to(tensor.dtype)

    for shard in shards:
        write_shard(target, shard, ((tensor.name, moved(tensor.name)) for tensor in shard.tensors))
    index = index_text(shards)
    if index is not None:
        (target / "model.safetensors.index.json").write_text(index)
    copy_side_files(folder, target, plan_side_files(folder).copied)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return target


def save_as(model: Any, source: Path, folder: Path, dtype: str) -> None:
    """The model's weights in this type, beside the tokenizer files that it came with."""
    from vecsurgery.checkpoint import copy_side_files, plan_side_files

    state = {name: tensor.detach().to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2))
    side = tuple(name for name in plan_side_files(source).copied if name != "generation_config.json")
    copy_side_files(source, folder, side)
