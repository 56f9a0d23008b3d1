"""Answer loss: equal to a plain forward, capped token by token, honest about rows without an answer."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.checkpoint.memory import InMemory
from vecsurgery.errors import InputError
from vecsurgery.evaluation import answer_nll
from vecsurgery.evaluation.answers import summarise


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return LlamaForCausalLM(config).eval()


def _samples(*answers: tuple[int, ...]) -> Samples:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for number, answer in enumerate(answers):
        ids = tuple(torch.randint(61, (7 + number,), generator=generator).tolist())
        samples.append(Sample(ids, tuple(range(1, len(ids))), answer, f"row {number}", f"rows.jsonl:{number + 1}"))
    return Samples(tuple(samples), {}, "")


def _plain(model: LlamaForCausalLM, sample: Sample) -> torch.Tensor:
    """−ln p of each answer token by transformers' own forward, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0].double()
    return torch.stack([-logits[index - 1].log_softmax(-1)[sample.ids[index]] for index in sample.answer])


def test_answer_loss_equals_the_plain_forward_and_leaves_out_rows_without_answer(model: LlamaForCausalLM) -> None:
    samples = _samples((4, 5, 6), (), (8,))
    measured = answer_nll(InMemory(model), samples)
    losses = [_plain(model, sample) for sample in samples.samples if sample.answer]
    expected = [loss.mean().item() for loss in losses]
    assert measured.per_row == pytest.approx(expected, abs=1e-5)
    assert measured.mean == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert measured.probability == pytest.approx(_probability(losses), abs=1e-6)


def _probability(losses: list[torch.Tensor]) -> float:
    return sum(loss.neg().exp().mean().item() for loss in losses) / len(losses)


def test_no_answer_at_all_is_an_error_that_says_which_rows_have_one(model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match=r"none of 2 samples has an answer.*question/answer"):
        answer_nll(InMemory(model), _samples((), ()))


def test_cap_cuts_single_tokens_at_the_logarithm_of_the_vocabulary() -> None:
    losses = [torch.tensor([0.0, 70.0]), torch.tensor([1.0])]
    measured = summarise(losses, vocabulary=8)
    assert measured.per_row == (35.0, 1.0)
    assert measured.mean == 18.0
    assert measured.capped == pytest.approx((math.log(8) / 2 + 1) / 2)
    assert measured.probability == pytest.approx((0.5 + math.exp(-1)) / 2)


def test_guessing_uniformly_costs_the_logarithm_of_the_vocabulary_in_both_measures() -> None:
    measured = summarise([torch.full((3,), math.log(50), dtype=torch.float64)], vocabulary=50)
    assert measured.mean == pytest.approx(measured.capped) == pytest.approx(math.log(50))
