"""Greedy answers, and how much of the true answer they recall."""

from collections.abc import Sequence
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

from vecsurgery.calibration.types import Sample

_BATCH = 64


@torch.no_grad()
def rouge_recall(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> float:
    """Mean ROUGE-L recall of greedy answers, each as many tokens long as the true one (no end token was trained)."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores: list[float] = []
    order = sorted(range(len(samples)), key=lambda index: samples[index].answer[0])
    for start in range(0, len(order), _BATCH):
        members = [samples[index] for index in order[start : start + _BATCH]]
        for sample, made in zip(members, _greedy(model, members), strict=True):
            truth = tokenizer.decode([sample.ids[index] for index in sample.answer])
            scores.append(scorer.score(truth, tokenizer.decode(made))["rougeL"].recall)
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
