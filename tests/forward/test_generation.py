"""Greedy continuations are those of transformers' own generate, whatever is held, cached or read again."""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import models
from torch import Tensor

from vecsurgery.errors import InputError
from vecsurgery.forward import Single, Versions, generation, greedy
from vecsurgery.forward.model import StreamedModel

PROMPTS = [[5, 9, 77, 31], [1, 2, 3, 4, 5, 6, 7, 8, 90], [100, 101, 102, 103], [11]]


class Two:
    """A tiny model, and the same with every matrix moved by random steps: large ones inside of the blocks."""

    count = 2

    def __init__(self, tiny: Any) -> None:
        self.tiny, self.weights = tiny, tiny.weights
        self.layout, self.config = tiny.weights.layout, tiny.weights.config
        self.moved = {name: self._move(name, tensor) for name, tensor in self.weights.tensors.items()}
        self.references: dict[int, Any] = {0: tiny.model}

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Versions:
        own = self.weights.read(tensor, rows)
        if self.moved[tensor] is self.weights.tensors[tensor]:
            return own
        other = self.moved[tensor] if rows is None else self.moved[tensor][rows]
        return [own, other].__getitem__

    def reference(self, variant: int, folder: Any) -> Any:
        """The model as transformers loads it."""
        if variant not in self.references:
            from transformers import AutoModelForCausalLM

            self.config.save_pretrained(folder)
            save_file(self.moved, folder / "model.safetensors", metadata={"format": "pt"})
            self.references[variant] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return self.references[variant]

    def expected(self, folder: Any, prompts: Sequence[Sequence[int]], tokens: int, stop: Any = None) -> Any:
        """What `generate` continues each prompt with, alone."""
        continued: list[list[list[int]]] = []
        for variant in range(self.count):
            model = self.reference(variant, folder)
            options = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": stop, "pad_token_id": 0}
            continued.append(
                [
                    model.generate(torch.tensor([prompt]), use_cache=True, **options)[0, len(prompt) :].tolist()
                    for prompt in prompts
                ]
            )
        return continued

    def _move(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim < 2:
            return tensor
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        size = 0.5 if self.layout.tensors[name].layer is not None else 0.1
        return tensor + size * torch.randn(tensor.shape, generator=generator)


@pytest.fixture(scope="module")
def two(tiny: Callable[[str], Any]) -> Callable[[str], Two]:
    made: dict[str, Two] = {}

    def get(architecture: str) -> Two:
        if architecture not in made:
            made[architecture] = Two(tiny(architecture))
        made[architecture].weights.reads.clear()
        return made[architecture]

    return get


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in every pass, as a model is that is too large to be held."""
    monkeypatch.setattr(generation, "HELD_BYTES", 0)


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each batch that enters the blocks: whether it comes with a cache."""
    cached: list[bool] = []
    own = StreamedModel.calls

    def calls(self: Any, ids: Tensor, count: int, *, cache: Any = None, past: int = 0) -> Any:
        cached.append(cache is not None)
        return own(self, ids, count, cache=cache, past=past)

    monkeypatch.setattr(StreamedModel, "calls", calls)
    return cached


@pytest.mark.parametrize("architecture", [*models.CONFIGS, "mixtral", "jamba", "bamba", "bloom"])
def test_continuations_are_those_of_generate_token_by_token(two, tmp_path, architecture) -> None:
    variants = two(architecture)
    assert greedy(variants, PROMPTS, tokens=12) == variants.expected(tmp_path, PROMPTS, 12)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3", "falcon", "mixtral"])
def test_a_model_that_is_not_held_is_continued_alike(two, tmp_path, streamed, architecture) -> None:
    variants = two(architecture)
    assert greedy(variants, PROMPTS[:2], tokens=8) == variants.expected(tmp_path, PROMPTS[:2], 8)


def test_variants_differ_and_do_not_repeat_themselves(two) -> None:
    into, edited = greedy(two("llama"), PROMPTS, tokens=20)
    assert all(own != other for own, other in zip(into, edited, strict=True))
    assert min(len(set(ids)) for ids in edited) > 10


@pytest.mark.parametrize("held", [True, False])
def test_a_stop_id_ends_one_continuation_and_is_its_last(two, monkeypatch, held) -> None:
    monkeypatch.setattr(generation, "HELD_BYTES", int(held) << 30)
    variants = two("llama")
    free = greedy(variants, PROMPTS, tokens=20)
    stop = {free[0][0][5], free[1][2][0], free[1][3][19]}

    def cut(ids: list[int]) -> list[int]:
        return ids[: next((place + 1 for place, token in enumerate(ids) if token in stop), 20)]

    found = greedy(variants, PROMPTS, tokens=20, stop=stop)
    assert found == [[cut(ids) for ids in own] for own in free]
    assert len({len(ids) for own in found for ids in own}) > 2


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4])
def test_few_tokens_are_the_first_of_many(two, tokens) -> None:
    variants = two("qwen3")
    many = greedy(variants, PROMPTS, tokens=9)
    assert greedy(variants, PROMPTS, tokens=tokens) == [[ids[:tokens] for ids in own] for own in many]


def test_a_model_that_is_held_is_read_once(two) -> None:
    weights = two("llama").weights
    greedy(two("llama"), PROMPTS, tokens=16)
    assert {count for name, count in weights.reads.items() if "embed" not in name} == {1}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_model_that_is_not_held_is_read_at_most_once_a_pass(two, monkeypatch, streamed, architecture) -> None:
    variants, cached = two(architecture), count_passes(monkeypatch)
    passes: Counter[str] = Counter()
    own = StreamedModel.read_block
    monkeypatch.setattr(StreamedModel, "read_block", lambda self, index: passes.update([index]) or own(self, index))
    greedy(variants, [PROMPTS[0], PROMPTS[2]], tokens=16)
    # Fifteen tokens by the caches, and two passes that decide; the replay of the first block is tested once.
    assert set(passes.values()) == {17}
    assert cached.count(False) == 2 * 2 + 1
    tied = variants.config.tie_word_embeddings
    for name, count in variants.weights.reads.items():
        assert count <= 17 * (2 if tied and "embed" in name else 1), name
    assert max(passes.values()) == variants.weights.reads["model.layers.1.mlp.down_proj.weight"]


def test_of_the_embedding_the_rows_in_use_alone_are_read(two) -> None:
    variants, asked = two("llama"), []

    class Watched(Two):
        def read(self, tensor: str, rows: Any = None) -> Versions:
            if "embed" in tensor:
                asked.extend(rows.tolist())
            return super().read(tensor, rows)

    found = greedy(Watched(variants.tiny), PROMPTS, tokens=16)
    used = {token for prompt in PROMPTS for token in prompt} | {token for own in found for ids in own for token in ids}
    assert len(asked) == len(set(asked))
    assert set(asked) <= used


def test_prompts_of_near_lengths_share_their_passes_where_the_model_is_held(two, monkeypatch) -> None:
    cached = count_passes(monkeypatch)
    greedy(two("llama"), PROMPTS, tokens=16)
    # The longest prompt has eight more tokens than the shortest: of each variant as many passes more, not four times.
    assert cached.count(True) == 2 * (15 + 8)


def forgetful(known: int) -> Any:
    """A key-value cache that mistakes one value for another as soon as it knows so many tokens."""
    from transformers import DynamicCache

    class Forgetful(DynamicCache):
        def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any, **more: Any) -> Any:
            past = self.get_seq_length(layer)
            keys, values = super().update(keys, values, layer, *rest, **more)
            if past >= known:
                values = torch.cat([values[:, :, -1:], values[:, :, 1:]], dim=2)
            return keys, values

    return Forgetful()


@pytest.mark.parametrize(("known", "most"), [(0, 4), (20, 100)])
@pytest.mark.parametrize("held", [True, False])
def test_a_cache_that_goes_wrong_is_found_out(two, tmp_path, monkeypatch, held, known, most) -> None:
    variants, cached = two("llama"), count_passes(monkeypatch)
    monkeypatch.setattr(generation, "HELD_BYTES", int(held) << 30)
    monkeypatch.setattr(StreamedModel, "new_cache", lambda self: forgetful(known))
    prompts = [PROMPTS[0], PROMPTS[2]]
    assert greedy(variants, prompts, tokens=24) == variants.expected(tmp_path, prompts, 24)
    assert cached.count(True) <= most
    assert cached.count(False) > 4


def test_blocks_that_refuse_the_cache_are_fed_whole_sequences(two, tmp_path, monkeypatch) -> None:
    variants, cached = two("llama"), count_passes(monkeypatch)
    monkeypatch.setattr(StreamedModel, "new_cache", lambda self: object())
    assert greedy(variants, PROMPTS, tokens=8) == variants.expected(tmp_path, PROMPTS, 8)
    assert cached.count(True) <= 1


def test_a_continuation_ends_where_it_fills_the_context(two) -> None:
    variants = two("gpt2")
    prompts = [list(range(60)), list(range(64)), [7, 8]]
    found = greedy(variants, prompts, tokens=70)
    assert [[len(ids) for ids in own] for own in found] == [[4, 0, 62]] * 2
    short = greedy(variants, prompts, tokens=3)
    assert [[ids[:3] for ids in own] for own in found] == short


def test_a_continuation_in_bfloat16_is_that_of_the_model_in_bfloat16(tiny_of_type) -> None:
    model = tiny_of_type("llama", torch.bfloat16)
    (found,) = greedy(Single(model.weights), PROMPTS, tokens=8, compute="stored")
    for prompt, ids in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            logits = model.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
        missed = logits.max(-1).values - logits[torch.arange(len(ids)), ids]
        assert float(missed.max()) < 0.1


def test_progress_counts_tokens(two) -> None:
    told: list[tuple[str, float, float, str]] = []
    greedy(two("llama"), PROMPTS, tokens=6, stage="speak", progress=lambda *news: told.append(news))
    assert told[0][0] == "speak"
    assert {total for _, _, total, _ in told} == {6}
    assert [done for _, done, _, _ in told] == sorted(done for _, done, _, _ in told)
    assert told[-1] == ("speak", 6, 6, "tokens")


def test_no_prompt_has_no_continuation(two) -> None:
    assert greedy(two("llama"), [], tokens=5) == [[], []]


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "prompt 1: it has no tokens"), (list(range(65)), "65 tokens"), ([999], "tokenizer")]
)
def test_a_prompt_that_cannot_be_continued_is_an_error(two, prompt, message) -> None:
    with pytest.raises(InputError, match=message):
        greedy(two("llama"), [[1, 2], prompt], tokens=5)


def test_logits_that_are_not_finite_are_an_error(tiny_of_type) -> None:
    weights = tiny_of_type("llama", torch.float32).weights
    for name in ("lm_head.weight", "model.norm.weight"):
        weights.tensors[name] *= 1e20
    with pytest.raises(InputError, match="not finite"):
        greedy(Single(weights), PROMPTS, tokens=5)
