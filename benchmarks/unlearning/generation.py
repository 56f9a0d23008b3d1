"""Greedy answers, and how much of the true answer they recall."""

from collections.abc import Sequence
from typing import Any

import torch

from vecsurgery import evaluation
from vecsurgery.calibration.types import Sample

_BATCH = 64


@torch.no_grad()
def rouge_recall(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> float:
    """Mean ROUGE-L recall of greedy answers, each as many tokens long as the true one (no end token was trained)."""
    answers, expected = list[str](), list[str]()
    order = sorted(range(len(samples)), key=lambda index: samples[index].answer[0])
    for start in range(0, len(order), _BATCH):
        members = [samples[index] for index in order[start : start + _BATCH]]
        answers += [tokenizer.decode(made) for made in _greedy(model, members)]
        expected += [tokenizer.decode([sample.ids[index] for index in sample.answer]) for sample in members]
    scores = evaluation.rouge_recall(answers, expected)
    return sum(scores) / len(scores)


def _greedy(model: Any, samples: Sequence[Sample]) -> list[list[int]]:
    """The most likely continuation of each prompt; prompts are padded on the left and masked."""
    prompts = [list(sample.ids[: sample.answer[0]]) for sample in samples]
    lengths = [len(sample.answer) for sample in samples]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max(lengths),
        do_sample=False,
        pad_token_id=0,
    )
    return [row[longest : longest + length].tolist() for row, length in zip(made, lengths, strict=True)]
