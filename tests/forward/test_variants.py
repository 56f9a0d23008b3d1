"""Several variants in one pass: each as in a pass of its own, what they share read once."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from vecsurgery.errors import InputError
from vecsurgery.forward import TokenScores, Versions, losses, token_losses, token_scores
from vecsurgery.forward import model as streamed_model


class Scaled:
    """Variants of a model: variant k multiplies the named tensors by the k-th number; reads are counted."""

    def __init__(self, weights: Any, numbers: tuple[float, ...], names: Collection[str]) -> None:
        self.weights, self.numbers, self.names = weights, numbers, set(names)
        self.layout, self.config, self.count = weights.layout, weights.config, len(numbers)
        self.reads: Counter[str] = Counter()

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Versions:
        self.reads[tensor] += 1
        values = self.weights.read(tensor, rows)
        if tensor not in self.names:
            return values
        return lambda variant: values * self.numbers[variant]


class Alone:
    """One of them as weights."""

    def __init__(self, variants: Scaled, number: int) -> None:
        self._variants, self._number = variants, number
        self.layout, self.config, self.fingerprint = variants.layout, variants.config, str(number)

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        found = self._variants.read(tensor, rows)
        return found if isinstance(found, Tensor) else found(self._number)


def _equal(together: list[list[TokenScores]], variants: Scaled, texts: Any) -> None:
    for number, scores in enumerate(together):
        alone = token_losses(Alone(variants, number), texts)
        assert all(torch.equal(score.losses, losses) for score, losses in zip(scores, alone, strict=True))


def _tensors(layout: Any, which: str) -> list[str]:
    if which == "last block":
        return [name for name, info in layout.tensors.items() if info.layer == layout.blocks - 1]
    if which == "all":
        return list(layout.tensors)
    return [name for name, info in layout.tensors.items() if info.kind == which]


@pytest.mark.parametrize("which", ["matrix", "last block", "embedding", "head", "other", "all"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "mixtral"])
def test_every_variant_scores_as_in_a_pass_of_its_own(tiny, samples, architecture: str, which: str) -> None:
    model, texts = tiny(architecture), samples([9, 5, 14, 9])
    variants = Scaled(model.weights, (1.0, 0.5, 1.5), _tensors(model.weights.layout, which))
    scores = token_scores(variants, texts)
    _equal(scores, variants, texts)
    differ = not torch.equal(scores[0][0].losses, scores[1][0].losses)
    assert differ == bool(variants.names)


def test_every_tensor_is_read_once_for_all_variants(tiny, samples) -> None:
    weights = tiny("llama").weights
    variants = Scaled(weights, (1.0, 0.5, 1.5, 2.0), _tensors(weights.layout, "matrix"))
    token_scores(variants, samples([9, 5, 14]))
    assert set(variants.reads.values()) == {1}
    assert set(variants.reads) == set(weights.layout.tensors)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "gpt2"])
def test_a_head_in_pieces_scores_like_a_whole_one(tiny, samples, architecture: str, monkeypatch) -> None:
    model, texts = tiny(architecture), samples([9, 5, 14])
    whole = token_scores(Scaled(model.weights, (1.0, 0.7), []), texts)
    monkeypatch.setattr(streamed_model, "_HEAD_BYTES", 7 * 32 * 4)
    pieces = token_scores(Scaled(model.weights, (1.0, 0.7), []), texts)
    for first, second in zip(whole[0], pieces[0], strict=True):
        torch.testing.assert_close(first.losses, second.losses, rtol=0, atol=3e-6)
        assert torch.equal(first.hits, second.hits)


def test_hits_are_the_tokens_that_the_model_itself_would_choose(tiny, samples) -> None:
    model, (sample,) = tiny("llama"), samples([14])
    (scores,) = token_scores(Scaled(model.weights, (1.0,), []), [sample])
    with torch.no_grad():
        chosen = model.model(input_ids=torch.tensor([sample.ids])).logits[0].argmax(-1)
    expected = [int(chosen[index - 1]) == sample.ids[index] for index in sample.answer]
    assert scores[0].hits.tolist() == expected


def test_weights_that_are_not_finite_in_one_variant_are_refused_by_name(tiny, samples) -> None:
    weights = tiny("llama").weights
    name = _tensors(weights.layout, "matrix")[0]
    with pytest.raises(InputError, match=name):
        token_scores(Scaled(weights, (1.0, float("inf")), [name]), samples([9]))


def test_variants_in_groups_score_as_in_one_pass(tiny, samples, monkeypatch) -> None:
    weights, texts = tiny("llama").weights, samples([9, 5, 14])
    variants = Scaled(weights, (1.0, 0.5, 1.5, 2.0, 0.7), _tensors(weights.layout, "matrix"))
    together = token_scores(variants, texts)
    variants.reads.clear()
    monkeypatch.setattr(losses, "_STATES", 2 * 32 * 4 * sum(max(sample.answer) for sample in texts))
    grouped = token_scores(variants, texts)
    assert set(variants.reads.values()) == {3}
    for first, second in zip(together, grouped, strict=True):
        assert all(torch.equal(a.losses, b.losses) for a, b in zip(first, second, strict=True))
