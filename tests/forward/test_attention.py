"""Attention that is listened to against transformers' own eager attention, and what is refused."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import models
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from vecsurgery.checkpoint import Stored
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import Attended, attention_mass

_BLOCK: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
REFUSED: dict[str, tuple[Any, str]] = {
    "falcon": (lambda: models.config("falcon"), "attended 0 times"),
    "bamba": (lambda: models.config("bamba"), "attended 0 times"),
    "gemma2": (lambda: transformers.Gemma2Config(**_BLOCK), "softcap"),
    "gpt_oss": (lambda: transformers.GptOssConfig(**_BLOCK, num_local_experts=2, num_experts_per_tok=1), "s_aux"),
}
LISTENED = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gpt_neox", "gemma3", "gpt2", "opt"]


def _asked(count: int = 5, *, longest: int = 30) -> list[Attended]:
    """Samples of several lengths: instructions early, two groups of queries behind them, one group that is empty."""
    draw = random.Random(3)
    found = []
    for number in range(count):
        length = longest - 4 * (number // 2)
        ids = tuple(draw.randrange(5, 150) for _ in range(length))
        keys = tuple(sorted(draw.sample(range(1, 9), 4)))
        behind = draw.sample(range(10, length), 7)
        second = () if number == 1 else tuple(sorted(behind[4:]))
        found.append(Attended(ids, (tuple(sorted(behind[:4])), second), keys))
    return found


def _eager(folder: Path, asked: list[Attended]) -> torch.Tensor:
    """The same sums from whole attention matrices."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = []
    for each in asked:
        with torch.no_grad():
            found = model(torch.tensor([each.ids]), output_attentions=True, use_cache=False).attentions
        weights = torch.stack([layer[0].double() for layer in found])  # layers, heads, queries, keys
        rows.append(
            torch.stack([weights[:, :, list(group)][..., list(each.keys)].sum((2, 3)) for group in each.queries])
        )
    return torch.stack(rows)


@pytest.mark.parametrize("family", LISTENED)
def test_what_is_heard_is_what_eager_attention_pays(family: str, tmp_path: Path) -> None:
    folder = tmp_path / family
    models.model(models.config(family), seed=4, spread=0.4).save_pretrained(folder)
    asked = _asked()
    found = attention_mass(Stored(folder), asked)
    expected = _eager(folder, asked)
    assert found.shape == (5, 2, 3, 4)
    assert float(expected.max()) > 0.2
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert bool((found[1, 1] == 0).all())


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_cannot_be_heard_is_refused_by_name(family: str, tmp_path: Path) -> None:
    make, why = REFUSED[family]
    models.model(make(), seed=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=f"listening to the attention.*{why}"):
        attention_mass(Stored(tmp_path), _asked(2))


def test_attention_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    folder = models.checkpoint(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    for name in ("q_proj", "k_proj"):  # their products overflow float32
        tensors[f"model.layers.1.self_attn.{name}.weight"] *= 1e22
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="sample 0 is not finite"):
        attention_mass(Stored(folder), _asked(2))


class _Largest(TorchDispatchMode):
    """Notes the most entries of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor):
                self.entries = max(self.entries, made.numel())
        return result


@pytest.mark.slow
def test_no_tensor_of_all_pairs_of_tokens_is_made(tmp_path: Path) -> None:
    length = 8192
    folder = models.checkpoint(tmp_path / "long", "llama", max_position_embeddings=length)
    draw = random.Random(1)
    ids = tuple(draw.randrange(5, 150) for _ in range(length))
    asked = [Attended(ids, (tuple(range(6000, length)), ()), tuple(range(3, 40)))]
    with _Largest() as largest:
        attention_mass(Stored(folder), asked)
    assert largest.entries < length * length / 2


@pytest.mark.slow
def test_of_a_sliding_window_the_model_s_own_mask_is_all_that_is_made_of_pairs(tmp_path: Path) -> None:
    length = 2048
    folder = models.checkpoint(tmp_path / "long", "mistral", max_position_embeddings=length, sliding_window=256)
    draw = random.Random(1)
    ids = tuple(draw.randrange(5, 150) for _ in range(length))
    with _Largest() as largest:
        attention_mass(Stored(folder), [Attended(ids, (tuple(range(2000, length)), ()), tuple(range(1800, 1850)))])
    assert largest.entries <= length * length  # once, not for each of the heads
