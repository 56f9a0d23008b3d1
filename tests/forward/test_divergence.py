"""Divergences of next-token distributions are those of whole models, however the heads are read."""

import dataclasses

import pytest
import torch
from support import models
from torch import Tensor

from tests.forward.conftest import Counted, Tiny
from vecsurgery.calibration.types import Sample
from vecsurgery.checkpoint import Stored
from vecsurgery.errors import InputError
from vecsurgery.forward import model as streamed
from vecsurgery.forward import token_divergences


def _logs(tiny: Tiny, sample: Sample, ids: int) -> Tensor:
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0]
    return logits[list(sample.positions), :ids].double().log_softmax(-1)


def _expected(reference: Tiny, other: Tiny, sample: Sample, ids: int = 160) -> Tensor:
    p, q = _logs(reference, sample, ids), _logs(other, sample, ids)
    return (p.exp() * (p - q)).sum(-1)


def _moved(tiny: Tiny, tmp_path, size: float = 0.05, seed: int = 3) -> Tiny:
    """Another model of the same configuration."""
    other = object.__new__(Tiny)
    other.folder = models.perturbed(tiny.folder, tmp_path / f"moved{seed}", seed=seed, size=size)
    other.model = other.loaded(torch.float32)
    other.weights = Stored(other.folder)  # type: ignore[assignment]
    return other


@pytest.mark.parametrize("architecture", [*models.CONFIGS, "mixtral"])
@pytest.mark.parametrize("head_bytes", [1 << 26, 32 * 4 * 21], ids=["whole", "runs"])
def test_divergences_are_those_of_whole_models(
    tiny, samples, architecture, head_bytes, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "_HEAD_BYTES", head_bytes)
    one, texts = tiny(architecture), samples([9, 5, 14, 9])
    ids = models.config(architecture).get_text_config().vocab_size if architecture in models.CONFIGS else 160
    others = [_moved(one, tmp_path, seed=seed) for seed in (3, 4)]
    found = token_divergences(one.weights, [other.weights for other in others], texts)
    for other, own in zip(others, found, strict=True):
        for sample, part in zip(texts, own, strict=True):
            expected = _expected(one, other, sample, ids)
            assert part.dtype == torch.float64
            assert float(expected.max()) > 1e-3
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head_bytes", [1 << 26, 32 * 4 * 21])
def test_models_of_other_layouts_and_longer_heads_are_compared_on_the_ids_that_all_have(
    tiny, samples, head_bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "_HEAD_BYTES", head_bytes)
    texts = samples([9, 5, 14])
    one, wide, other = tiny("llama"), tiny("qwen2"), tiny("gpt2")
    for first, rest in ((one, [wide, other]), (wide, [one])):
        found = token_divergences(first.weights, [each.weights for each in rest], texts)
        for each, own in zip(rest, found, strict=True):
            for sample, part in zip(texts, own, strict=True):
                torch.testing.assert_close(part, _expected(first, each, sample), rtol=0, atol=1e-5)


def test_a_model_does_not_diverge_from_itself(tiny, samples) -> None:
    one = tiny("llama")
    (found,) = token_divergences(one.weights, [one.weights], samples([9, 5]))
    assert all(torch.equal(part, torch.zeros_like(part)) for part in found)


def test_small_divergences_keep_their_digits(tiny, samples, tmp_path) -> None:
    one, texts = tiny("llama"), samples([14, 9])
    other = _moved(one, tmp_path, size=1e-4)
    (found,) = token_divergences(one.weights, [other.weights], texts)
    for sample, part in zip(texts, found, strict=True):
        expected = _expected(one, other, sample)
        assert float(expected.max()) < 1e-4
        torch.testing.assert_close(part, expected, rtol=1e-2, atol=1e-10)


def test_chosen_positions_take_the_place_of_those_of_the_samples(tiny, samples, tmp_path) -> None:
    one, (sample, second) = tiny("llama"), samples([12, 9])
    other = _moved(one, tmp_path)
    chosen = (0, 3, 4)
    (found,) = token_divergences(one.weights, [other.weights], [sample, second], positions=[chosen, ()])
    expected = _expected(one, other, dataclasses.replace(sample, positions=chosen))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    assert found[1].shape == (0,)


def test_every_tensor_of_every_model_is_read_once(tiny, samples, tmp_path) -> None:
    one = tiny("llama")
    tensors = {name: one.weights.tensors[name] * 1.01 for name in one.weights.tensors}
    other = Counted(one.model.config, tensors)
    token_divergences(one.weights, [other], samples([9, 5]))
    assert set(one.weights.reads.values()) == set(other.reads.values()) == {1}


def test_logits_that_are_not_finite_are_refused_with_the_row(tiny, samples) -> None:
    one = tiny("llama")
    tensors = {name: one.weights.tensors[name].clone() for name in one.weights.tensors}
    tensors["lm_head.weight"] *= 3e38
    with pytest.raises(InputError, match=r"data\.jsonl:1: comparing .* not finite"):
        token_divergences(one.weights, [Counted(one.model.config, tensors)], samples([9]))
