"""Token losses are those of the model's own forward."""

import dataclasses

import pytest
import torch
from support import models

from vecsurgery.errors import InputError
from vecsurgery.forward import token_losses


@pytest.mark.parametrize("architecture", [*models.CONFIGS, "mixtral", "jamba", "bloom"])
def test_losses_are_those_of_the_models_own_forward(tiny, samples, architecture) -> None:
    model, texts = tiny(architecture), samples([9, 5, 14, 9])
    for sample, found in zip(texts, token_losses(model.weights, texts), strict=True):
        torch.testing.assert_close(found, model.losses(sample), rtol=0, atol=3e-6)


def test_every_tensor_is_read_once_and_a_tied_head_from_the_embedding(tiny, samples) -> None:
    untied, tied = tiny("llama").weights, tiny("qwen2").weights
    token_losses(untied, samples([9, 5]))
    assert set(untied.reads.values()) == {1}
    token_losses(tied, samples([9, 5]))
    # The rows in use at the start, the whole table as the head at the end.
    assert {name: count for name, count in tied.reads.items() if count > 1} == {"model.embed_tokens.weight": 2}


def test_chosen_positions_take_the_place_of_the_answer(tiny, samples) -> None:
    model, (sample,) = tiny("gpt2"), samples([12])
    chosen = (1, 2, 7)
    (found,) = token_losses(model.weights, [sample], positions=[chosen])
    expected = model.losses(dataclasses.replace(sample, answer=chosen))
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


def test_a_sample_without_answer_has_no_losses(tiny, samples) -> None:
    model, (first, second) = tiny("llama"), samples([9, 7])
    none, some = token_losses(model.weights, [dataclasses.replace(first, answer=()), second])
    assert none.shape == (0,)
    torch.testing.assert_close(some, model.losses(second), rtol=0, atol=3e-6)
    assert token_losses(model.weights, []) == []


def test_answers_longer_than_a_chunk_are_scored_whole(tiny, samples) -> None:
    model, (sample,) = tiny("opt"), samples([60])
    sample = dataclasses.replace(sample, ids=sample.ids, answer=tuple(range(1, 60)))
    (found,) = token_losses(model.weights, [sample])
    torch.testing.assert_close(found, model.losses(sample), rtol=0, atol=3e-6)


def test_the_first_token_cannot_be_scored(tiny, samples) -> None:
    (sample,) = samples([5])
    with pytest.raises(InputError, match=r"data\.jsonl:1"):
        token_losses(tiny("llama").weights, [dataclasses.replace(sample, answer=(0, 1))])


def test_losses_do_not_depend_on_the_order_of_samples(tiny, samples) -> None:
    model, texts = tiny("llama"), samples([9, 5, 14])
    forward, backward = token_losses(model.weights, texts), token_losses(model.weights, texts[::-1])
    assert all(torch.equal(a, b) for a, b in zip(forward, backward[::-1], strict=True))
